"""Disks that are full while transcripts are written: an error in one line, no torn file, no text lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.processes import ROOT

N_SECONDS = 120  # of which the fake recognizer makes more text than fits
WORDS = " ".join(f"w{n}" for n in range(2 * N_SECONDS))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "speech.wav"
    soundfile.write(path, np.zeros(N_SECONDS * 16_000), 16_000)
    return path


def transcribe(
    recording: Path, *arguments: str, before: str = "", stdout: int | None = None
) -> subprocess.CompletedProcess[str]:
    """``foresound transcribe`` with the fake model, after a shell command in a mount namespace of its own."""
    command = [sys.executable, "-m", "tests.fake_recognizer", "transcribe", str(recording), *arguments]
    if before:
        if sys.platform != "linux" or not shutil.which("unshare"):
            pytest.skip("needs Linux with unshare")
        namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
        probe = subprocess.run([*namespace, before], capture_output=True, text=True, timeout=30)
        if probe.returncode:
            pytest.skip(f"this machine lets nobody mount in a namespace: {probe.stderr.strip()[:200]}")
        script = f'{before} && "$0" "$@"; code=$?; ls -A {arguments[1]} >&2; exit $code'
        command = [*namespace, script, *command]
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
