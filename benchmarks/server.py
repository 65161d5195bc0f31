"""``foresound serve`` in a process of its own, for benchmarks that want a real server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from asr import ForesoundError


class ServerProcess:
    """A server, as a context manager.

    Attributes:
        url: Where it takes streams of the native protocol.
        vosk_url: Where it speaks vosk-server's protocol; empty if it does not.
        start_s: What it took to start.
    """

    def __init__(
        self,
        *,
        model: str,
        max_streams: int,
        threads: int | None,
        has_vosk: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        """Say what to serve.

        Args:
            model: As for the command.
            max_streams: At a time.
            threads: Of the model; None is the command's default.
            has_vosk: Open a port for vosk-server's protocol.
            options: More of the command's.
        """
        self._command = [sys.executable, "-m", "clients.cli", "serve", "--port", "0", "--model", model]
        self._command += ["--max-streams", str(max_streams)]
        self._command += ["--threads", str(threads)] if threads else []
        self._command += ["--vosk-port", "0"] if has_vosk else []
        self._command += options
        self._last = "vosk-server's protocol" if has_vosk else "streams"  # that it says at its start
        self.url = self.vosk_url = ""
        self.start_s = 0.0

    def __enter__(self) -> ServerProcess:
        """Start it and wait until it listens."""
        started = time.perf_counter()
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        told: dict[str, str] = {}
        for line in self._process.stdout:
            what, _, address = line.strip().rpartition(" at ")
            told[what] = address
            if what == self._last:
                break
        else:
            raise ForesoundError(f"the server did not start: {' '.join(self._command)}")
        self.url, self.vosk_url = told["streams"], told.get("vosk-server's protocol", "")
        self.start_s = time.perf_counter() - started
        self._info = psutil.Process(self._process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    @property
    def cpu_s(self) -> float:
        """Processor time that it and the model's processes have used."""
        times = [process.cpu_times() for process in self._processes]
        return float(sum(each.user + each.system for each in times))

    @property
    def memory_mb(self) -> float:
        """Memory that it and the model's processes hold."""
        return float(sum(process.memory_info().rss for process in self._processes)) / 2**20

    @property
    def _processes(self) -> list[psutil.Process]:
        return [self._info, *self._info.children(recursive=True)]
