"""The inputs of a command: files or standard input, one after the other."""

from __future__ import annotations

import argparse
import select
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asr.errors import AudioError, ForesoundError
from clients.common import EXIT_SOME_FAILED, EXIT_USAGE, bounded_int, report_error

if TYPE_CHECKING:
    from asr.audio import AudioSource

BLOCK_S = 0.1  # seconds of audio read at a time
_STDIN = "-"
_POLL_S = 0.05


class InputError(ForesoundError):
    """One input could not be done; others may be."""


@dataclass(frozen=True)
class Input:
    """One of the inputs on the command line.

    Attributes:
        file: As given, '-' for standard input.
        name: What to call it in messages.
        stem: What to call its output files, without suffix.
    """

    file: str
    name: str
    stem: str

    @property
    def is_stdin(self) -> bool:
        """Whether it is standard input."""
        return self.file == _STDIN

    def open(self, args: argparse.Namespace, *, abandoned: threading.Event | None = None) -> AudioSource:
        """Open it for reading.

        Args:
            args: With sample_rate and channels, for raw PCM on standard input.
            abandoned: Once it is set, whoever waits for standard input in a thread sees its end.

        Returns:
            The source; use it in a ``with`` statement.

        Raises:
            AudioError: It cannot be read.
        """
        from asr.audio import read_audio, read_stream

        if not self.is_stdin:
            return read_audio(self.file)
        binary: Any = sys.stdin.buffer
        if abandoned is not None and sys.platform != "win32":  # where select knows sockets only
            binary = _AbandonablePipe(binary.raw, abandoned)
        return read_stream(binary, sample_rate=args.sample_rate or 16_000, channels=args.channels or 1)


class _AbandonablePipe:
    """A pipe whose reader can be called off, though nothing comes and nobody closes it."""

    def __init__(self, raw: Any, abandoned: threading.Event) -> None:
        self._raw = raw  # unbuffered: select sees nothing of what a buffer holds
        self._abandoned = abandoned

    def read(self, n_bytes: int) -> bytes:
        while not self._abandoned.is_set():
            if select.select([self._raw], [], [], _POLL_S)[0]:
                data: bytes = self._raw.read(n_bytes)
                return data
        return b""


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Add files and what describes them.

    Args:
        parser: A subcommand's parser; gets files, sample_rate, channels and real_time.
    """
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="audio files; '-' is WAV or raw s16le PCM on standard input")
    add("--sample-rate", type=bounded_int(1000, 768_000), metavar="HZ", help="of raw PCM (default: 16000)")
    add("--channels", type=bounded_int(1, 64), metavar="N", help="of raw PCM (default: 1)")
    add("--real-time", action="store_true", help="feed files at the speed of a microphone")


def input_problem(args: argparse.Namespace) -> str | None:
    """Return what is wrong with the input arguments together, None if nothing is.

    Args:
        args: As :func:`add_input_arguments` has them parsed.
    """
    if args.files.count(_STDIN) > 1:
        return "'-' is given twice; standard input can be read once"
    if _STDIN not in args.files and (args.sample_rate or args.channels):
        return "--sample-rate and --channels describe raw PCM on standard input; leave them out or give '-'"
    if _STDIN in args.files and (sys.stdin is None or sys.stdin.isatty()):
        return "standard input is closed or a terminal; pipe audio into '-'"
    return None


def run_inputs(files: list[str], work: Callable[[Input], None]) -> int:
    """Work on every input; one that fails is reported and does not stop the others.

    AudioError, InputError and what the system says about files concern one input.

    Args:
        files: As given on the command line.
        work: What to do with one.

    Returns:
        The exit code: 0 when all were done, 1 when some failed, 2 when all failed.

    Raises:
        BrokenPipeError: The reader of the output is gone.
        ForesoundError: Something that concerns all inputs.
    """
    from clients.formats import output_stems

    names = ["stdin" if file == _STDIN else file for file in files]
    n_failed = 0
    for file, name, stem in zip(files, names, output_stems(names), strict=True):
        try:
            work(Input(file, name, stem))
        except BrokenPipeError:
            raise
        except (AudioError, InputError) as error:
            message = str(error)
            report_error(message if message.startswith(f"{name}: ") else f"{name}: {message}")
            n_failed += 1
        except OSError as error:
            where = "" if error.filename is None else f" {error.filename}"
            report_error(f"{name}: cannot write{where} ({error.strerror}); check space and permissions")
            n_failed += 1
    if n_failed == 0:
        return 0
    return EXIT_USAGE if n_failed == len(files) else EXIT_SOME_FAILED
