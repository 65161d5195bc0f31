"""The microphone with a fake sounddevice: recording, Ctrl-C, overruns, missing devices and libraries."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_server import FakeServer, serving

from asr.errors import OptionError
from clients import mic
from clients.cli import build_parser, main
from clients.microphone import Microphone, load_sounddevice


class PortAudioError(Exception):
    pass


class FakeStream:
    """Calls back from a thread with noise, twenty times as fast as a microphone."""

    active = False

    def __init__(self, owner: FakeDevice, options: dict[str, Any]) -> None:
        self.device, self.options = owner, options
        if owner.is_busy:
            raise PortAudioError("Device unavailable\n[PaErrorCode -9985]")

    def start(self) -> None:
        self.device.is_open = self.active = True
        self.ended = threading.Event()  # a thread's own join is not safe from Ctrl-C
        threading.Thread(target=self.record).start()

    def record(self) -> None:
        n_frames, rate = self.options["blocksize"], self.options["samplerate"]
        noise = np.random.default_rng(0).integers(-99, 99, n_frames).astype(np.int16)
        n_heard = 0
        while self.active and n_heard < self.device.breaks_after_s * rate:
            status = SimpleNamespace(input_overflow=n_heard == 0 and self.device.overflows)
            self.options["callback"](memoryview(noise).cast("B"), n_frames, None, status)
            n_heard += n_frames
            if self.device.ctrl_c_after_s * rate <= n_heard < self.device.ctrl_c_after_s * rate + n_frames:
                for _ in range(self.device.n_ctrl_c):
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.1)
            time.sleep(n_frames / rate / 20)
        self.options["finished_callback"]()
        self.ended.set()

    def stop(self) -> None:
        self.active = False
        self.ended.wait()

    def close(self) -> None:
        if self.device.is_open:
            self.stop()
        self.device.is_open = False


class FakeDevice:
    """The parts of the module sounddevice that are used, with one device behind them."""

    PortAudioError = PortAudioError
    default = SimpleNamespace(device=(1, 2))

    def __init__(self, **behaviour: Any) -> None:
        self.rates = {16_000}
        self.is_there, self.is_busy, self.is_open, self.overflows = True, False, False, False
        self.ctrl_c_after_s, self.n_ctrl_c, self.breaks_after_s = 2.2, 1, 60.0
        vars(self).update(behaviour)

    def query_devices(self, device: int | str | None = None, kind: str | None = None) -> Any:
        speaker = {"name": "Lautsprecher", "max_input_channels": 0, "default_samplerate": 44_100.0}
        mike = {"name": "Mïke", "max_input_channels": 2, "default_samplerate": 48_000.0}
        devices = [speaker, *([mike] * self.is_there)]
        if kind is None:
            return devices
        if not self.is_there:
            raise PortAudioError("Error querying device -1")
        if device not in (None, 1, "Mïke"):
            raise ValueError(f"No input device matching {device!r}")
        return mike

    def check_input_settings(self, *, samplerate: int, **_: Any) -> None:
        if samplerate not in self.rates:
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    def RawInputStream(self, **options: Any) -> FakeStream:  # noqa: N802 (sounddevice's name)
        return FakeStream(self, options)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer()) as server:
        yield server


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """A background job of a shell ignores Ctrl-C; the tests send it all the same."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs the command with a device."""

    def run(device: FakeDevice, *arguments: str) -> int:
        monkeypatch.setattr(mic, "run", lambda args: run_mic(args, sounddevice=device))
        return main(["mic", *arguments])

    run_mic = mic.run
    return run


def test_ctrl_c_stops_the_recording_and_waits_for_the_last_words(
    server: FakeServer, listen: Callable[..., int], capsys: Any
) -> None:
    """Everything recorded is recognised; the exit code is that of every command stopped by Ctrl-C."""
    device = FakeDevice()
    assert listen(device, "--server", server.url) == 130
    assert capsys.readouterr() == ("w0 w1 w2 w3\n" + "w4\n" * (heard(server) >= 2.5), "")
    assert 2.2 <= heard(server) < 3.0 and not device.is_open
    (start,) = server.starts
    assert (start["sample_rate"], start["encoding"], start["channels"]) == (16_000, "pcm_s16le", 1)


def heard(server: FakeServer) -> float:
    (session,) = server.sessions.values()
    return session.n_samples / 16_000


def test_outputs_are_streams(
    server: FakeServer, listen: Callable[..., int], tmp_path: Path, capsys: Any
) -> None:
    """Formats and folders work as for files, also over a lost connection."""
    server.cuts = [12]
    folder = tmp_path / "out"
    arguments = ["--server", server.url, "--format", "all", "--output-dir", str(folder)]
    assert listen(FakeDevice(), *arguments) == 130
    assert (folder / "microphone.txt").read_text().startswith("w0 w1 w2 w3\n")
    assert len(list(folder.iterdir())) == 6
    out, err = capsys.readouterr()
    assert out == "" and err.count("is lost") == err.count("is back") == 1


def test_a_second_ctrl_c_does_not_wait(listen: Callable[..., int], capsys: Any) -> None:
    """With the server gone, the first Ctrl-C would wait for it to come back."""
    with serving(FakeServer(vanish_after_s=1.0)) as server:
        started = time.perf_counter()
        assert listen(FakeDevice(n_ctrl_c=2), "--server", server.url) == 130
    assert time.perf_counter() - started < 5.0
    out, err = capsys.readouterr()
    assert out == "w0 w1\n" and "is lost" in err


def test_ctrl_c_while_connecting(server: FakeServer, listen: Callable[..., int], capsys: Any) -> None:
    """A server that accepts and then says nothing can be left."""

    async def silent() -> None:
        hold = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            await hold.wait()
            writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as listener:
            ports.append(listener.sockets[0].getsockname()[1])
            ready.set()
            await asyncio.to_thread(stop.wait, 10)
            hold.set()

    ports: list[int] = []
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(silent(),))
    thread.start()
    try:
        assert ready.wait(10)
        assert listen(FakeDevice(), "--server", f"ws://127.0.0.1:{ports[0]}") == 130
    finally:
        stop.set()
        thread.join()
    assert capsys.readouterr() == ("", "")


def test_a_device_that_breaks(server: FakeServer, listen: Callable[..., int], capsys: Any) -> None:
    """What was recorded is recognised, then the error follows."""
    assert listen(FakeDevice(breaks_after_s=1.1), "--server", server.url) == 2
    out, err = capsys.readouterr()
    assert out == "w0 w1\n" and err.startswith("foresound: error: Mïke: stopped recording; check")


def test_lost_audio_is_counted_and_told(
    server: FakeServer, listen: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """PortAudio's own losses and those of a full queue; the callback never waits."""
    assert listen(FakeDevice(overflows=True), "--server", server.url) == 130
    assert "audio was lost: 1 blocks" in capsys.readouterr().err
    monkeypatch.setattr("clients.microphone._MAX_QUEUE_S", 0.2)
    device = FakeDevice(breaks_after_s=1.0)

    async def record() -> tuple[int, int]:
        n_blocks = 0
        with Microphone(device, device=None, sample_rate=None) as microphone:
            blocks = microphone.blocks()
            await anext(blocks)
            time.sleep(0.2)  # a loop that is busy
            microphone.stop()
            async for _ in blocks:
                n_blocks += 1
        return n_blocks, microphone.n_overruns

    n_blocks, n_overruns = asyncio.run(record())
    assert 9 <= n_blocks <= 11 and n_overruns >= 35


def test_sample_rates(server: FakeServer, listen: Callable[..., int], capsys: Any) -> None:
    """The recogniser's rate if the device has it, else one that it has; a wish is not overruled."""
    assert Microphone(FakeDevice(rates={44_100, 48_000}), device=1, sample_rate=None).sample_rate == 48_000
    assert Microphone(FakeDevice(rates={44_100}), device="Mïke", sample_rate=44_100).sample_rate == 44_100
    assert listen(FakeDevice(), "--server", server.url, "--sample-rate", "44100") == 2
    assert "Mïke: cannot record at 44100 Hz (Invalid sample rate" in capsys.readouterr().err
    assert listen(FakeDevice(), "--sample-rate", "96000") == 2
    assert "8000 to 48000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "arguments", "message"),
    [
        (FakeDevice(is_there=False), [], "no microphone was found"),
        (FakeDevice(is_there=False), ["--list-devices"], "no microphone was found"),
        (FakeDevice(), ["--device", "7"], "device '7' cannot be used (No input device matching 7)"),
        (FakeDevice(), ["--device", "Kopfhörer"], "--list-devices"),
        (FakeDevice(is_busy=True), [], "Mïke: cannot be opened (Device unavailable)"),
        (FakeDevice(), ["--server", "ws://127.0.0.1:9"], "start one with 'foresound serve'"),
        (FakeDevice(), ["--format", "all"], "--output-dir"),
    ],
)
def test_what_can_be_missing(
    listen: Callable[..., int], capsys: Any, device: FakeDevice, arguments: list[str], message: str
) -> None:
    """One line and exit code 2, and nothing is recorded."""
    assert listen(device, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1 and not device.is_open


def test_list_devices(listen: Callable[..., int], capsys: Any) -> None:
    """Microphones only, with the numbers that --device takes."""
    assert listen(FakeDevice(), "--list-devices") == 0
    assert capsys.readouterr().out == "*   1  Mïke  (2 channels, 48000 Hz)\n"
    parse = build_parser().parse_args
    assert (parse(["mic", "--device", "1"]).device, parse(["mic", "--device", "M"]).device) == (1, "M")


def test_missing_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Without sounddevice or PortAudio the message says what to install."""
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["mic"]) == 2
    assert "pip install 'foresound[mic]'" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "sounddevice")
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OptionError, match="libportaudio2"):
        load_sounddevice()
