"""Averages of adapters along one training run."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asr.adapters import WEIGHTS_FILE, AdapterCard, add_adapter, merge_adapter, save_adapter
from tests.tiny import tiny_whisper
from training.average import main

HASH = "0" * 64


def _adapter(folder: Path, value: float, *, rank: int = 2, weights_hash: str = HASH, steps: int = 1) -> Path:
    """An adapter with the same value everywhere."""
    wrapped = add_adapter(tiny_whisper(), encoder_rank=rank, decoder_rank=rank)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.fill_(value)
    card = AdapterCard("tiny", weights_hash, training={"steps": steps}, results={"wer": 1.0})
    save_adapter(wrapped, folder, card)
    return folder


@pytest.mark.parametrize(("weights", "expected"), [([], 2.0), (["--weights", "0.75,0.25"], 1.5)])
def test_the_mean_is_an_adapter(tmp_path: Path, weights: list[str], expected: float) -> None:
    """It merges like any other; its card says of what it is, and claims no results."""
    first, second = _adapter(tmp_path / "a", 1.0, steps=5), _adapter(tmp_path / "b", 3.0, steps=9)
    assert main([str(first), str(second), "-o", str(tmp_path / "mean"), *weights]) == 0
    tensors = load_file(tmp_path / "mean" / WEIGHTS_FILE).values()
    assert all(torch.equal(tensor, torch.full_like(tensor, expected)) for tensor in tensors)
    _, card = merge_adapter(tiny_whisper(), tmp_path / "mean", weights_hash=HASH)
    assert card.training["averaged"]["of_steps"] == [5, 9] and card.results == {}


def test_what_cannot_be_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every refusal says why, and nothing is written."""
    folder = _adapter(tmp_path / "a", 1.0)
    damaged = _adapter(tmp_path / "damaged", 1.0)
    (damaged / WEIGHTS_FILE).write_bytes(b"no tensors")
    refused = {
        "two or more": [folder],
        "which add up to 1": [folder, folder, "--weights", "0.5,0.6"],
        "other base weights, layers or ranks": [folder, _adapter(tmp_path / "b", 1.0, rank=4)],
        "average adapters of one run": [_adapter(tmp_path / "c", 1.0, weights_hash="1" * 64), folder],
        "not a readable peft adapter": [folder, damaged],
        "no card.json": [folder, tmp_path],
    }
    for message, arguments in refused.items():
        assert main([*map(str, arguments), "-o", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main([str(folder), str(folder), "-o", str(tmp_path / "out"), "--weights", "a,b"])
