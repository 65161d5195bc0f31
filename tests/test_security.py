"""Weights come in through safe loaders only."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from whisper.model import Whisper

from asr.adapters import WEIGHTS_FILE, AdapterCard, merge_adapter
from asr.checkpoint import load_checkpoint
from asr.errors import AdapterError, CheckpointError

ROOT = Path(__file__).parents[1]
FOLDERS = ("asr", "service", "clients", "training", "benchmarks")
SOURCES = [file for name in FOLDERS for file in (ROOT / name).rglob("*.py")]
PICKLES = r"pickle\.loads?\("
OURS_AT_BOTH_ENDS = (
    "worker_wire.py"  # pickles of the server and its own processes; they have no address and no file
)
UNSAFE = (
    PICKLES,
    r"allow_pickle=True",
    r"weights_only=False",
    r"\beval\(",
    r"\bexec\(",
    "shell=True",
)


@pytest.mark.parametrize("pattern", UNSAFE)
def test_nothing_runs_what_it_reads(pattern: str) -> None:
    """No loader that executes what a file holds. PyTorch's model.eval() has no arguments."""
    found = [
        f"{file.name}: {line.strip()}"
        for file in SOURCES
        if (pattern, file.name) != (PICKLES, OURS_AT_BOTH_ENDS)
        for line in file.read_text().splitlines()
        if re.search(pattern, line) and ".eval()" not in line
    ]
    assert not found


def test_every_torch_load_is_of_weights_only() -> None:
    """The default has changed between versions, so it is said each time."""
    calls = [call for file in SOURCES for call in re.findall(r"torch\.load\(.*", file.read_text())]
    assert calls and all("weights_only=True" in call for call in calls)


class Trap:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """With an error, and without having run it."""
    trap, checkpoint = tmp_path / "sprung", tmp_path / "model.pt"
    torch.save({"dims": {}, "model_state_dict": Trap(trap)}, checkpoint)
    with pytest.raises(CheckpointError):
        load_checkpoint(str(checkpoint))
    assert not trap.exists()


def test_an_adapter_that_would_run_code_is_refused(tmp_path: Path, tiny_model: Whisper) -> None:
    """Pickled weights instead of safetensors: peft, which would read them, is not even asked."""
    folder, trap = tmp_path / "adapter", tmp_path / "sprung"
    shutil.copytree(ROOT / "asr" / "models" / "tiny.en-causal", folder)
    (folder / WEIGHTS_FILE).unlink()
    torch.save(Trap(trap), folder / "adapter_model.bin")
    weights_hash = AdapterCard.read(folder).base_weights_hash
    with pytest.raises(AdapterError, match="No such file"):
        merge_adapter(tiny_model, folder, weights_hash=weights_hash)
    assert not trap.exists()
