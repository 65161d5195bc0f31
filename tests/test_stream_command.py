"""``foresound stream``: the outputs of transcribe from a fake server, bad networks, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fake_recognizer import FakeRecognizer
from fake_server import FakeServer, serving

import clients.transcribe
from asr.events import SAMPLE_RATE
from clients.cli import main

ROOT = Path(__file__).parents[1]
NOBODY = "ws://127.0.0.1:9"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer()) as server:
        yield server


@pytest.fixture
def wav(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes noise and returns the file's path."""

    def write(name: str = "a.wav", *, seconds: float = 3.0, rate: int = 16_000, channels: int = 1) -> str:
        path = tmp_path / name
        pcm = np.random.default_rng(0).uniform(-1, 1, size=(round(seconds * rate), channels))
        soundfile.write(path, pcm, rate)
        return str(path)

    return write


def stream(server: FakeServer, *arguments: str) -> int:
    return main(["stream", *arguments, "--server", server.url])


def spawn(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    code = (
        # A background job of a shell ignores Ctrl-C; the tests send it all the same.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from clients.cli import main; code = main(); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, **pipes)


@pytest.mark.parametrize("options", [[], ["--second-pass"]])
@pytest.mark.parametrize("output_format", ["txt", "srt", "vtt", "tsv", "json", "jsonl"])
def test_every_format_is_transcribes(
    server: FakeServer,
    wav: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    output_format: str,
    options: list[str],
) -> None:
    """The same events give the same bytes, whoever recognised them, also after lost connections."""
    monkeypatch.setattr(clients.transcribe, "load_recognizer", lambda args: FakeRecognizer())
    # Resampled audio comes in uneven blocks; the fake tells their ends as the times of its drafts.
    form = {} if output_format == "jsonl" else {"rate": 44_100, "channels": 2}
    arguments = [wav(**form), "--format", output_format, *options]
    assert main(["transcribe", *arguments]) == 0
    expected = capsys.readouterr().out
    assert stream(server, *arguments) == 0
    assert capsys.readouterr() == (expected, "")
    if output_format != "jsonl":  # drafts may be lost
        server.cuts = [10, 20]
        assert stream(server, *arguments) == 0
        out, err = capsys.readouterr()
        assert out == expected and err.count("is lost") == err.count("is back") == 2


def test_output_dir_and_unicode(server: FakeServer, wav: Callable[..., str], tmp_path: Path) -> None:
    """All formats stand side by side in UTF-8; no torch is needed for any of them."""
    server.letter = "ŵ世😀"
    folder = tmp_path / "out"
    process = spawn("stream", wav(), "--format", "all", "--output-dir", str(folder), "--server", server.url)
    assert process.communicate(timeout=60) == (b"", b"") and process.returncode == 0
    assert sorted(path.suffix for path in folder.iterdir()) == [
        ".json",
        ".jsonl",
        ".srt",
        ".tsv",
        ".txt",
        ".vtt",
    ]
    text = "ŵ世😀0 ŵ世😀1 ŵ世😀2 ŵ世😀3"
    assert (folder / "a.txt").read_text(encoding="utf-8").splitlines()[0] == text
    result = json.loads((folder / "a.json").read_text(encoding="utf-8"))
    assert (result["segments"][0]["text"], result["model"], result["duration"]) == (text, "fake", 3.0)


def test_options_reach_the_server(
    server: FakeServer, wav: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option has its field in start; the token comes from the environment or the option."""
    server.token = "s3cret"
    monkeypatch.setenv("FORESOUND_TOKEN", "s3cret\n")
    options = ["--chunk-ms", "80", "--language", "en", "--prompt", "Hi.", "--second-pass"]
    assert stream(server, wav(), *options, "--hotwords", "a, bß,,", "--silence-ms", "500") == 0
    (start,) = server.starts
    expected = {"chunk_ms": 80, "language": "en", "prompt": "Hi.", "second_pass": True, "words": True}
    assert (
        start.items()
        >= {**expected, "hotwords": ["a", "bß"], "endpointing": {"silence_ms": 500}, "channels": 1}.items()
    )
    monkeypatch.setenv("FORESOUND_TOKEN", "other")
    assert stream(server, wav(), "--latency", "low", "--token", "s3cret") == 0
    assert server.starts[1]["latency"] == "low" and "chunk_ms" not in server.starts[1]
    options = ["--decoder", "transducer", "--latency", "90", "--chunk-ms", "80", "--token", "s3cret"]
    assert stream(server, wav(), *options) == 0
    assert server.starts[2].items() >= {"decoder": "transducer", "latency": 90.0, "chunk_ms": 80}.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chunk-ms", "39"], "40 to 1000"),
        (["--latency", "none"], "minimal, low, medium, high or a number of ms"),
        (["--decoder", "ctc"], "invalid choice"),
        (["--silence-ms", "99"], "100 to 5000"),
        (["--server", "localhost:8765"], "ws://127.0.0.1:8765"),
        (["--format", "all"], "--output-dir"),
        (["--sample-rate", "8000"], "standard input"),
        (["--server", NOBODY], "no server answers at ws://127.0.0.1:9/v1/stream (connection refused); start"),
    ],
)
def test_bad_options(wav: Callable[..., str], capsys: Any, options: list[str], message: str) -> None:
    """Wrong usage, and a server that is not there, are one line on stderr and exit code 2."""
    assert main(["stream", wav(), wav("b.wav"), *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("foresound: error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(("status", "message"), [(401, "FORESOUND_TOKEN"), (503, "try again in 5 s")])
def test_refusals(
    server: FakeServer, wav: Callable[..., str], capsys: Any, status: int, message: str
) -> None:
    """A full server and a wrong token are explained, once for all files."""
    server.refuse = status
    assert stream(server, wav(), wav("b.wav")) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    server.refuse = None
    assert stream(server, wav(), "--language", "xx") == 2
    assert capsys.readouterr().err == "foresound: error: language is unknown; expected en\n"


def test_several_files_with_a_broken_one(
    server: FakeServer, wav: Callable[..., str], tmp_path: Path, capsys: Any
) -> None:
    """The others are done, the error names the file, and the exit code is 1."""
    (tmp_path / "b.wav").write_text("not audio")
    files = [wav("a.wav", seconds=1.0), str(tmp_path / "b.wav"), wav("c.wav", seconds=1.5)]
    assert stream(server, *files) == 1
    out, err = capsys.readouterr()
    assert out == f"==> {files[0]} <==\nw0 w1\n==> {files[2]} <==\nw0 w1 w2\n"
    assert err.startswith(f"foresound: error: {files[1]}: cannot be decoded") and err.count("\n") == 1


def test_words_before_damage_are_kept(server: FakeServer, tmp_path: Path, capsys: Any) -> None:
    """What was heard before a bad sample is recognised, printed and written, then the error follows."""
    path = tmp_path / "half.wav"
    pcm = np.zeros(3 * SAMPLE_RATE, dtype=np.float32)
    pcm[-100] = np.nan
    soundfile.write(path, pcm, SAMPLE_RATE, subtype="FLOAT")
    assert stream(server, str(path)) == 2
    out, err = capsys.readouterr()
    assert out == "w0 w1 w2 w3\nw4\n" and "half.wav: a sample is nan at 2.994 s" in err
    assert stream(server, str(path), "--output-dir", str(tmp_path)) == 2
    assert (tmp_path / "half.txt").read_text() == "w0 w1 w2 w3\nw4\n"
    pcm[:] = np.nan
    soundfile.write(path, pcm, SAMPLE_RATE, subtype="FLOAT")
    assert stream(server, str(path), "--output-dir", str(tmp_path / "none")) == 2
    assert list((tmp_path / "none").iterdir()) == []


def test_a_server_that_is_gone_for_good(wav: Callable[..., str], tmp_path: Path, capsys: Any) -> None:
    """Committed words are shown and written; the file counts as failed, later ones as well."""
    with serving(FakeServer(vanish_after_s=2.6)) as server:
        files = [wav("a.wav", seconds=2.0), wav("b.wav"), wav("c.wav")]
        arguments = [*files, "--reconnect-s", "0", "--format", "all", "--output-dir", str(tmp_path / "out")]
        assert stream(server, *arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and (tmp_path / "out" / "a.txt").read_text() == "w0 w1 w2 w3\n"
    assert (tmp_path / "out" / "b.txt").read_text() == "w0 w1 w2 w3\nw4\n"
    words = json.loads((tmp_path / "out" / "b.json").read_text())["segments"][1]["words"]
    assert [word["word"] for word in words] == ["w4"]
    lines = err.splitlines()
    assert "is lost" in lines[0] and len(lines) == 3
    assert lines[1].startswith(
        f"foresound: error: {files[1]}: the connection to {server.url}/v1/stream was lost"
    )
    assert lines[2].startswith(f"foresound: error: {files[2]}: no server answers at")


def test_a_stream_that_the_server_ends(server: FakeServer, wav: Callable[..., str], capsys: Any) -> None:
    """The last finals are shown before the error."""
    server.end_after_s = 2.5
    assert stream(server, wav()) == 2
    out, err = capsys.readouterr()
    assert out == "w0 w1 w2 w3\nw4\n" and err.endswith("a.wav: it is over; start again\n")


def read_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


def test_raw_pcm_on_stdin_gives_words_while_it_is_open_and_ctrl_c_ends_it(server: FakeServer) -> None:
    """Events come before stdin ends; Ctrl-C prints what was committed, at once and without a traceback."""
    pcm = ["--sample-rate", "8000", "--channels", "2"]
    process = spawn("stream", "-", "--format", "jsonl", *pcm, "--server", server.url)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write(bytes(3 * 8000))
    process.stdin.flush()
    assert read_line(process)["type"] == "speech_started"
    assert read_line(process)["committed"] == " w0"
    process.stdin.write(bytes(2 * 8000))
    process.stdin.flush()
    assert read_line(process)["committed"] == " w0 w1"
    time.sleep(0.2)  # now it waits in a read
    sent = time.perf_counter()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert time.perf_counter() - sent < 3.0
    last = json.loads(process.stdout.read().splitlines()[-1])
    assert (last["type"], last["text"]) == ("final", "w0 w1")
    assert process.stderr.read() == b""


def test_wav_and_nothing_on_stdin(server: FakeServer, wav: Callable[..., str]) -> None:
    """A WAV header is found and its rate used; no byte at all is an error."""
    path = Path(wav(rate=22_050, channels=2))
    out, err = spawn("stream", "-", "--server", server.url).communicate(path.read_bytes(), timeout=60)
    assert (out, err) == (b"w0 w1 w2 w3\nw4 w5\n", b"")
    process = spawn("stream", "-", "--server", server.url)
    out, err = process.communicate(b"", timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert err.startswith(b"foresound: error: stdin: contains no audio") and err.count(b"\n") == 1


def test_a_closed_pipe_ends_quietly(server: FakeServer, wav: Callable[..., str]) -> None:
    """When the reader goes away there is no traceback and no complaint at exit."""
    process = spawn("stream", wav(seconds=60.0), "--format", "jsonl", "--real-time", "--server", server.url)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""


def test_a_terminal_shows_words_drafts_and_a_bar(server: FakeServer, wav: Callable[..., str]) -> None:
    """As with transcribe: dim drafts, a bar, text that stays, and how long it took by the server's count."""
    pty, fcntl = pytest.importorskip("pty"), pytest.importorskip("fcntl")
    termios = pytest.importorskip("termios")
    leading, following = pty.openpty()
    fcntl.ioctl(following, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # rows, columns
    process = spawn(
        "stream", wav(), "--real-time", "--server", server.url, stdout=following, stderr=following
    )
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
    assert b"00:03 of audio in 0.8 s, real-time factor 0.25" in screen


def test_real_time_waits(server: FakeServer, wav: Callable[..., str], capsys: Any) -> None:
    """--real-time takes as long as the audio; without it a minute is sent at once."""
    started = time.perf_counter()
    assert stream(server, wav(seconds=0.6), "--real-time") == 0
    assert time.perf_counter() - started >= 0.59
    started = time.perf_counter()
    assert stream(server, wav(seconds=60.0)) == 0
    assert time.perf_counter() - started < 15.0
    assert capsys.readouterr().out.split()[-1] == "w119"


def test_a_full_disk_is_told(
    server: FakeServer, wav: Callable[..., str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """A write error fails the file with one line, not with a traceback."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device", "a.txt")

    monkeypatch.setattr("clients.display.write_atomic", fail)
    assert stream(server, wav(), "--output-dir", str(tmp_path)) == 2
    err = capsys.readouterr().err
    assert "a.wav: cannot write a.txt (No space left on device)" in err and err.count("\n") == 1


def test_documents_are_what_whisper_writes(server: FakeServer, wav: Callable[..., str], capsys: Any) -> None:
    """Subtitles and tables are byte for byte those of Whisper's own writers."""
    import io

    from whisper.utils import get_writer

    assert stream(server, wav(seconds=4.0), "--format", "json") == 0
    result = json.loads(capsys.readouterr().out)
    for segment in result["segments"]:
        del segment["words"]
    for output_format in ("txt", "srt", "vtt", "tsv"):
        assert stream(server, wav(seconds=4.0), "--format", output_format) == 0
        expected = io.StringIO()
        get_writer(output_format, "").write_result(result, file=expected)
        assert capsys.readouterr().out == expected.getvalue().rstrip("\n") + "\n"
