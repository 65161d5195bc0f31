"""Disks that are full while transcripts are written: an error in one line, no torn file, no text lost."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import sys
import wave
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.faults.neighbour import undisturbed
from tests.processes import ROOT, Address, process
from tests.serving import RATE, in_loop

N_SECONDS = 120  # of which the fake recognizer makes more text than fits
WORDS = " ".join(f"w{n}" for n in range(2 * N_SECONDS))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "speech.wav"
    soundfile.write(path, np.zeros(N_SECONDS * 16_000), 16_000)
    return path


def in_namespace(before: str) -> list[str]:
    """What runs a script in a mount namespace of its own; skips where ``before`` cannot be done in one."""
    if sys.platform != "linux" or not shutil.which("unshare"):
        pytest.skip("needs Linux with unshare")
    namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    probe = subprocess.run([*namespace, before], capture_output=True, text=True, timeout=30)
    if probe.returncode:
        pytest.skip(f"this machine lets nobody mount in a namespace: {probe.stderr.strip()[:200]}")
    return namespace


def transcribe(
    recording: Path, *arguments: str, before: str = "", stdout: int | None = None
) -> subprocess.CompletedProcess[str]:
    """``foresound transcribe`` with the fake model, after a shell command in a mount namespace of its own."""
    command = [sys.executable, "-m", "tests.fake_recognizer", "transcribe", str(recording), *arguments]
    if before:
        script = f'{before} && "$0" "$@"; code=$?; ls -A {arguments[1]} >&2; exit $code'
        command = [*in_namespace(before), script, *command]
    return subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("kind", ["json", "jsonl", "all"])
def test_disk_full_while_writing_transcripts(recording: Path, tmp_path: Path, kind: str) -> None:
    """The file is named with the reason, nothing torn is left, and the text is printed instead."""
    folder = tmp_path / "out"
    folder.mkdir()
    result = transcribe(
        recording,
        *("--output-dir", str(folder), "--format", kind, "--quiet"),
        before=f"mount -t tmpfs -o size=4k tmpfs {folder}",
    )
    assert result.returncode == 2, result.stderr
    error, *left = result.stderr.splitlines()
    assert "No space left on device" in error and error.startswith("foresound: error: ")
    assert " ".join(result.stdout.split()) == WORDS
    whole = {"speech.txt"} if kind == "all" else set()  # small enough to fit
    assert set(left) <= whole, left


def test_standard_output_is_full(recording: Path) -> None:
    """What cannot be printed is an error, not a success."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        result = transcribe(recording, "--quiet", stdout=full.fileno())
    assert result.returncode == 2
    assert "No space left on device" in result.stderr and "Traceback" not in result.stderr


@in_loop
async def test_disk_full_while_an_upload_arrives(tmp_path: Path) -> None:
    """An upload that does not fit is answered with 507, and the server takes others that do."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=64k tmpfs {folder}"
    within = [*in_namespace(mount), f'{mount} && TMPDIR={folder} exec "$0" "$@"']
    async with process("--rest-port", "0", within=within) as (running, url):
        assert running.stdout
        lines = [(await running.stdout.readline()).decode() for _ in range(2)]
        port = int(lines[-1].rpartition(":")[2].partition("/")[0])
        async with undisturbed(Address(url)):
            answer = await upload(port, wav(60))
            assert b" 507 " in answer.splitlines()[0] and b"no room for the recording" in answer, answer
            assert b"w0 w1 w2 w3" in await upload(port, wav(1))
        running.terminate()
        assert await running.wait() == 0 and running.stderr
        log = (await running.stderr.read()).decode()
        assert "No space left on device" in log and "Traceback" not in log


def wav(seconds: float) -> bytes:
    """Silence; the fake hears a word in each quarter second of it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframes(bytes(int(seconds * RATE) * 2))
    return file.getvalue()


async def upload(port: int, recording: bytes) -> bytes:
    """The answer to a request for a transcription."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body += recording + b"\r\n--b--\r\n"
    head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
    with suppress(ConnectionError):
        writer.write(head.encode() + body)
        await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer
