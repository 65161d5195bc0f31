"""Adapters: plain peft folders that fit one base model, merge into a copy and leave the base alone."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asr.adapters import AdapterCard, add_adapter, continue_adapter, merge_adapter, save_adapter
from asr.errors import AdapterError
from tests.tiny import tiny_whisper

HASH = "0" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter whose layers are all different from zero."""
    torch.manual_seed(0)
    wrapped = add_adapter(tiny_whisper(), encoder_rank=4, decoder_rank=2)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    save_adapter(wrapped, tmp_path / "adapter", AdapterCard("tiny", HASH, initial_chunks=1))
    return tmp_path / "adapter"


@torch.no_grad()
def test_merged_equals_unmerged(folder: Path) -> None:
    """The merged copy computes what base plus low-rank layers compute."""
    from peft import PeftModel

    merged, card = merge_adapter(tiny_whisper(), folder, weights_hash=HASH)
    apart = PeftModel.from_pretrained(tiny_whisper(), str(folder)).eval()
    mel, tokens = torch.randn(1, 80, 3000), torch.arange(5)[None]
    torch.testing.assert_close(merged(mel, tokens), apart.base_model.model(mel, tokens), atol=1e-3, rtol=1e-3)
    assert card.base_model == "tiny"


@torch.no_grad()
def test_base_is_untouched(folder: Path) -> None:
    """Switched off means the original bit for bit: merging never changes the base model."""
    base, reference = tiny_whisper(), tiny_whisper()
    merged, _ = merge_adapter(base, folder, weights_hash=HASH)
    assert all(torch.equal(p, q) for p, q in zip(base.parameters(), reference.parameters(), strict=True))
    mel = torch.randn(1, 80, 3000)
    assert torch.equal(base.encoder(mel), reference.encoder(mel))
    assert not torch.allclose(merged.encoder(mel), base.encoder(mel))


def test_training_goes_on_where_the_file_stopped(folder: Path) -> None:
    """A continued adapter has the file's values in float32, and only they can be trained."""
    wrapped = continue_adapter(tiny_whisper(), folder, weights_hash=HASH)
    saved = load_file(folder / "adapter_model.safetensors")
    trained = {n.replace(".default.", "."): p for n, p in wrapped.named_parameters() if p.requires_grad}
    assert set(trained) == set(saved)
    assert all(p.dtype == torch.float32 and torch.equal(p, saved[n].float()) for n, p in trained.items())
    with pytest.raises(AdapterError, match="111111111111"):
        continue_adapter(tiny_whisper(), folder, weights_hash="1" * 64)


def test_every_target_is_adapted(folder: Path) -> None:
    """Query, key, value, out and both MLP layers of every block have their two matrices."""
    names = load_file(folder / "adapter_model.safetensors")
    assert len(names) == 2 * (3 * 6 + 2 * 10)


def test_other_base_weights_are_refused(folder: Path) -> None:
    """The error names both hashes and the model to choose."""
    with pytest.raises(AdapterError, match="000000000000.*tiny.*111111111111"):
        merge_adapter(tiny_whisper(), folder, weights_hash="1" * 64)


@pytest.mark.parametrize("name", ["card.json", "adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_damaged_folders_are_refused(folder: Path, name: str, damage: str) -> None:
    """Whatever is wrong with a file, the error names the folder in one line."""
    path = folder / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:37] if damage == "truncated" else b"\x00garbage" * 9)
    with pytest.raises(AdapterError, match="adapter") as caught:
        merge_adapter(tiny_whisper(), folder, weights_hash=HASH)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_tensors_are_refused(folder: Path) -> None:
    """peft would load an incomplete file with a warning; we do not."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(dict(list(tensors.items())[3:]), path)
    with pytest.raises(AdapterError, match="3 missing"):
        merge_adapter(tiny_whisper(), folder, weights_hash=HASH)


def test_card_round_trips(tmp_path: Path) -> None:
    """A card reads back as it was written; unknown keys are an error."""
    card = AdapterCard("tiny", HASH, data=["x (CC BY 4.0)"], results={"wer": 0.1})
    card.write(tmp_path)
    assert AdapterCard.read(tmp_path) == card
    values = {**dataclasses.asdict(card), "surprise": 1}
    (tmp_path / "card.json").write_text(json.dumps(values))
    with pytest.raises(AdapterError, match="surprise"):
        AdapterCard.read(tmp_path)
