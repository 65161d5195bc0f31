"""Transcribing: outputs, bad input, exit codes, Ctrl-C; with a fake recognizer, without weights."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pysubs2
import pytest
import soundfile
import webvtt
from fake_recognizer import FakeRecognizer, fake_load

import clients.transcribe
from asr.events import SAMPLE_RATE
from clients.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRecognizer:
    recognizer = FakeRecognizer()

    def load(args: Any) -> FakeRecognizer:
        fake_load(args)
        return recognizer

    monkeypatch.setattr(clients.transcribe, "load_recognizer", load)
    return recognizer


@pytest.fixture
def wav(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes noise and returns the file's path."""

    def write(name: str = "a.wav", *, seconds: float = 3.0, rate: int = 16_000, channels: int = 1) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pcm = np.random.default_rng(0).uniform(-1, 1, size=(round(seconds * rate), channels))
        soundfile.write(path, pcm, rate)
        return str(path)

    return write


def spawn(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "tests" / "fake_recognizer.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def test_text_on_a_pipe_is_one_line_per_segment(wav: Callable[..., str], capsys: Any) -> None:
    """Nothing but the finals' text, without control characters, and nothing on stderr."""
    assert main(["transcribe", wav()]) == 0
    assert capsys.readouterr() == ("w0 w1 w2 w3\nw4 w5\n", "")


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (8_000, 1), (48_000, 6)])
def test_any_rate_and_channels(wav: Callable[..., str], capsys: Any, rate: int, channels: int) -> None:
    """44.1 kHz stereo and telephone audio give the same words at the same times."""
    assert main(["transcribe", wav(rate=rate, channels=channels), "--format", "tsv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out), delimiter="\t"))
    assert [tuple(row.values()) for row in rows] == [("0", "2000", "w0 w1 w2 w3"), ("2000", "3000", "w4 w5")]


def test_every_format_on_stdout(wav: Callable[..., str], capsys: Any) -> None:
    """Independent readers find the same two segments in srt, vtt, json and jsonl."""
    path = wav()

    def output(output_format: str) -> str:
        assert main(["transcribe", path, "--format", output_format]) == 0
        return str(capsys.readouterr().out)

    texts = ["w0 w1 w2 w3", "w4 w5"]
    cues = pysubs2.SSAFile.from_string(output("srt"), format_="srt")
    assert [(cue.start, cue.end, cue.text) for cue in cues] == [(0, 2000, texts[0]), (2000, 3000, texts[1])]
    assert [cue.text for cue in webvtt.from_buffer(io.StringIO(output("vtt")))] == texts
    result = json.loads(output("json"))
    assert [segment["text"] for segment in result["segments"]] == texts
    assert (result["segments"][1]["words"][0]["start"], result["duration"]) == (2.0, 3.0)
    events = [json.loads(line) for line in output("jsonl").splitlines()]
    assert [event["type"] for event in events[:2]] == ["speech_started", "partial"]
    assert [event["text"] for event in events if event["type"] == "final"] == texts
    assert [event["committed"] for event in events if event["type"] == "partial"][1] == " w0 w1"
    assert all("file" not in event for event in events)


def test_options_reach_the_stream(wav: Callable[..., str], fake: FakeRecognizer, capsys: Any) -> None:
    """Each option has its place in Recognizer.stream."""
    options = ["--chunk-ms", "80", "--beam", "3", "--language", "en", "--prompt", "Hi.", "--second-pass"]
    options += ["--hotwords", "Ann, Bo Lee,", "--decoder", "transducer", "--latency", "low"]
    assert main(["transcribe", wav(), *options]) == 0
    assert fake.options == [
        {"decoder": "transducer", "latency": "low", "chunk_ms": 80, "right_context_ms": None, "beam_size": 3}
        | {"language": "en"}
        | {"prompt": "Hi.", "hotwords": ["Ann", "Bo Lee"], "second_pass": True}
    ]
    assert capsys.readouterr().out == "W0 W1 W2 W3\nW4 W5\n"


def test_output_dir(wav: Callable[..., str], tmp_path: Path, capsys: Any) -> None:
    """All formats of two files of one stem stand side by side; stdout stays empty."""
    folder = tmp_path / "new" / "out"
    first, second = wav("x/a.wav"), wav("y/a.wav", seconds=1.0)
    assert main(["transcribe", first, second, "--format", "all", "--output-dir", str(folder)]) == 0
    assert capsys.readouterr() == ("", "")
    suffixes = ["json", "jsonl", "srt", "tsv", "txt", "vtt"]
    stems = ["a.wav", "a.wav-2"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{s}.{x}" for s in stems for x in suffixes)
    assert (folder / "a.wav.txt").read_text() == "w0 w1 w2 w3\nw4 w5\n"
    assert (folder / "a.wav-2.txt").read_text() == "w0 w1\n"
    events = [json.loads(line) for line in (folder / "a.wav.jsonl").read_text().splitlines()]
    assert [event["text"] for event in events if event["type"] == "final"] == ["w0 w1 w2 w3", "w4 w5"]


def test_several_files_with_a_broken_one(wav: Callable[..., str], tmp_path: Path, capsys: Any) -> None:
    """The others are done, the error names the file, and the exit code is 1."""
    (tmp_path / "b.wav").write_text("not audio")
    files = [wav("a.wav", seconds=1.0), str(tmp_path / "b.wav"), wav("c.wav", seconds=1.5)]
    assert main(["transcribe", *files]) == 1
    out, err = capsys.readouterr()
    assert out == f"==> {files[0]} <==\nw0 w1\n==> {files[2]} <==\nw0 w1 w2\n"
    assert err.startswith(f"foresound: error: {files[1]}: cannot be decoded") and err.count("\n") == 1
    assert main(["transcribe", *files, "--format", "jsonl"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["file"] for event in events if event["type"] == "final"] == [files[0], files[2]]
    assert main(["transcribe", *files, "--format", "json"]) == 1
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["text"] for result in results] == ["w0 w1", "w0 w1 w2"]


def bad_file(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.wav"
    if kind == "empty":
        path.touch()
    elif kind == "no-samples":
        soundfile.write(path, np.zeros(0), SAMPLE_RATE)
    elif kind == "nan":
        soundfile.write(path, np.full(100, np.nan), SAMPLE_RATE, subtype="FLOAT")
    elif kind == "text":
        path.write_text("hello " * 100)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "contains no audio"),
        ("no-samples", "contains no audio"),
        ("nan", "not a finite number"),
        ("text", "cannot be decoded"),
        ("folder", "is a folder"),
        ("missing", "no such file"),
    ],
)
def test_bad_files(tmp_path: Path, monkeypatch: Any, capsys: Any, kind: str, message: str) -> None:
    """One line that names the file, exit code 2, and no output file."""
    monkeypatch.setenv("PATH", "")  # no ffmpeg
    path = bad_file(tmp_path, kind)
    assert main(["transcribe", str(path), "--format", "all", "--output-dir", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"foresound: error: {path}: ") and message in err and ";" in err
    assert list((tmp_path / "out").iterdir()) == []
    assert main(["transcribe", str(path), str(path)]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chunk-ms", "39"], "40 to 1000"),
        (["--chunk-ms", "1001"], "40 to 1000"),
        (["--chunk-ms", "x"], "40 to 1000"),
        (["--beam", "0"], "at least 1"),
        (["--threads", "0"], "from 1"),
        (["--format", "docx"], "invalid choice"),
        (["--format", "all"], "--output-dir"),
        (["--language", "xx"], "language is 'xx'"),
        (["--model", "enormous"], "model 'enormous' is unknown"),
        (["--adapter", "nowhere"], "nowhere: adapter_config.json"),
        (["--sample-rate", "8000"], "standard input"),
        (["--output-dir", "/dev/null/x"], "/dev/null/x"),
        (["--nonsense"], "--nonsense"),
        (["other.wav", "--format", "srt"], "add --output-dir"),
        (["-", "-"], "given twice"),
    ],
)
def test_bad_options(wav: Callable[..., str], capsys: Any, options: list[str], message: str) -> None:
    """Wrong usage is one line on stderr and exit code 2."""
    assert main(["transcribe", wav(), *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("foresound: error: ") and message in err and err.count("\n") == 1


def test_ten_milliseconds_and_clipping(wav: Callable[..., str], tmp_path: Path, capsys: Any) -> None:
    """10 ms have no words and are no error; clipped samples are audio."""
    assert main(["transcribe", wav(seconds=0.01)]) == 0
    assert capsys.readouterr() == ("", "")
    soundfile.write(tmp_path / "loud.wav", np.full(SAMPLE_RATE, 5.0), SAMPLE_RATE, subtype="FLOAT")
    assert main(["transcribe", str(tmp_path / "loud.wav")]) == 0
    assert capsys.readouterr().out == "w0 w1\n"


def test_words_before_damage_are_kept(tmp_path: Path, capsys: Any) -> None:
    """What was heard before a bad sample is printed and written, then the error follows."""
    path = tmp_path / "half.wav"
    pcm = np.zeros(3 * SAMPLE_RATE, dtype=np.float32)
    pcm[-100] = np.nan
    soundfile.write(path, pcm, SAMPLE_RATE, subtype="FLOAT")
    assert main(["transcribe", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "w0 w1 w2 w3\nw4\n" and "at 2.994 s" in err
    assert main(["transcribe", str(path), "--output-dir", str(tmp_path)]) == 2
    assert (tmp_path / "half.txt").read_text() == "w0 w1 w2 w3\nw4\n"


def test_ctrl_c_prints_and_writes_what_was_committed(
    wav: Callable[..., str], fake: FakeRecognizer, tmp_path: Path, capsys: Any
) -> None:
    """The open segment's committed words come out as a last segment; the exit code is 130."""
    fake.crash_at = round(2.8 * SAMPLE_RATE)
    assert main(["transcribe", wav(), wav("b.wav")]) == 130
    assert capsys.readouterr().out.splitlines()[1:] == ["w0 w1 w2 w3", "w4"]
    assert main(["transcribe", wav(), "--format", "jsonl"]) == 130
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["type"], last["text"]) == ("final", "w4")
    assert main(["transcribe", wav(), "--format", "all", "--output-dir", str(tmp_path / "out")]) == 130
    assert (tmp_path / "out" / "a.txt").read_text() == "w0 w1 w2 w3\nw4\n"
    assert len(list((tmp_path / "out").iterdir())) == 6


def read_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


def test_raw_pcm_on_stdin_gives_words_while_it_is_open_and_ctrl_c_ends_it() -> None:
    """Events come before stdin ends; a real SIGINT prints what was committed, without a traceback."""
    process = spawn("transcribe", "-", "--format", "jsonl", "--sample-rate", "8000", "--channels", "2")
    assert process.stdin is not None
    process.stdin.write(bytes(4 * 8000))
    process.stdin.flush()
    assert read_line(process)["type"] == "speech_started"
    assert read_line(process)["committed"] == " w0"
    process.stdin.write(bytes(2 * 8000))
    process.stdin.flush()
    assert read_line(process)["committed"] == " w0 w1"
    time.sleep(0.2)  # now it waits in a read
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.stdout is not None and process.stderr is not None
    last = json.loads(process.stdout.read().splitlines()[-1])
    assert (last["type"], last["text"]) == ("final", "w0 w1")
    assert process.stderr.read() == b""


def test_wav_on_stdin(wav: Callable[..., str]) -> None:
    """A WAV header is found and its rate used."""
    path = Path(wav(rate=22_050, channels=2))
    out, err = spawn("transcribe", "-").communicate(path.read_bytes(), timeout=60)
    assert (out, err) == (b"w0 w1 w2 w3\nw4 w5\n", b"")


def test_empty_stdin_is_an_error() -> None:
    """No byte at all is told like an empty file."""
    process = spawn("transcribe", "-")
    out, err = process.communicate(b"", timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert err.startswith(b"foresound: error: stdin: contains no audio") and err.count(b"\n") == 1


def test_a_closed_pipe_ends_quietly(wav: Callable[..., str]) -> None:
    """When the reader goes away there is no traceback and no complaint at exit."""
    process = spawn("transcribe", wav(seconds=60.0), "--format", "jsonl", "--real-time")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""


def test_a_terminal_shows_words_drafts_and_a_bar(wav: Callable[..., str]) -> None:
    """On a terminal drafts are dimmed, the bar shows position and speed, and the text stays."""
    pty = pytest.importorskip("pty")
    termios, fcntl = pytest.importorskip("termios"), pytest.importorskip("fcntl")
    leading, following = pty.openpty()
    fcntl.ioctl(following, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # rows, columns
    process = spawn("transcribe", wav(), stdout=following, stderr=following)
    os.close(following)
    screen = b""
    while True:
        try:
            part = os.read(leading, 4096)
        except OSError:  # Linux tells the end of a terminal by EIO
            break
        if not part:
            break
        screen += part
    os.close(leading)
    assert process.wait(timeout=60) == 0
    assert b"\x1b[2m d1\x1b[0m" in screen
    assert b"real-time factor" in screen and b"/00:03" in screen
    assert b"\rw0 w1 w2 w3\x1b[K\r\n" in screen
    assert b"00:03 of audio in" in screen


def test_real_time_waits(wav: Callable[..., str], capsys: Any) -> None:
    """--real-time takes as long as the audio."""
    started = time.perf_counter()
    assert main(["transcribe", wav(seconds=0.6), "--real-time"]) == 0
    assert time.perf_counter() - started >= 0.59


def test_a_full_disk_is_told(wav: Callable[..., str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A write error fails the file with one line, not with a traceback."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device", "a.txt")

    monkeypatch.setattr("clients.display.write_atomic", fail)
    assert main(["transcribe", wav(), "--output-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "a.wav: cannot write a.txt (No space left on device)" in err and err.count("\n") == 1


def test_threads_are_set_before_torch_starts(wav: Callable[..., str], monkeypatch: Any) -> None:
    """torch takes its thread count from the environment when it is imported."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["transcribe", wav(), "--threads", "3"]) == 0
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_an_unusable_device_is_one_line(wav: Callable[..., str], monkeypatch: Any, capsys: Any) -> None:
    """torch's own complaint about a device does not become a traceback."""
    monkeypatch.undo()
    import asr

    class Recognizer:
        @staticmethod
        def load(model: str, *, adapter: str, head: str, weights: str, device: str) -> None:
            raise RuntimeError(f"Expected one of cpu, cuda, got {device}\nmore")

    monkeypatch.setattr(asr, "Recognizer", Recognizer, raising=False)
    assert main(["transcribe", wav(), "--device", "abacus"]) == 2
    err = capsys.readouterr().err
    assert "device 'abacus' cannot be used (Expected one of cpu, cuda, got abacus)" in err
