"""Heads on disk: what is read is what was written, and a head that fits other weights is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asr.adapters import AdapterCard, add_adapter, save_adapter
from asr.dial import Dial, DialPoint
from asr.errors import AdapterError
from asr.head_files import NO_ADAPTER, HeadCard, adapter_hash, load_head, save_head
from tests.heads import TINY_HEAD, tiny_head
from tests.tiny import tiny_whisper

CARD = HeadCard("tiny", "b" * 64, "a" * 64, TINY_HEAD.to_json(), dial=[vars(DialPoint(1.0, 80.0, 200.0))])


def test_a_head_comes_back(tmp_path: Path) -> None:
    """Weights in half precision, sizes, dial and card."""
    head = tiny_head()
    save_head(head, tmp_path, CARD)
    again, card = load_head(tmp_path, weights_hash="b" * 64, adapter_hash="a" * 64)
    assert card == CARD
    assert card.read_dial() == Dial((DialPoint(1.0, 80.0, 200.0),))
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, head.state_dict()[name].half().float())
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize(("field", "what"), [("weights_hash", "base weights"), ("adapter_hash", "adapter")])
def test_other_weights_are_refused(tmp_path: Path, field: str, what: str) -> None:
    """The message says what the head was made for and what is loaded."""
    save_head(tiny_head(), tmp_path, CARD)
    hashes = {"weights_hash": "b" * 64, "adapter_hash": "a" * 64, field: "c" * 64}
    with pytest.raises(AdapterError, match=rf"made for .*{what}.* but cccccccccccc is loaded"):
        load_head(tmp_path, **hashes)


@pytest.mark.parametrize("damage", ["folder", "card", "json", "config", "weights", "missing", "truncated"])
def test_damaged_folders_are_refused(tmp_path: Path, damage: str) -> None:
    """Every kind of damage is an AdapterError that names the folder."""
    folder = tmp_path / "head"
    if damage != "folder":
        save_head(tiny_head(), folder, CARD)
    weights = folder / "head.safetensors"
    match damage:
        case "card":
            (folder / "card.json").unlink()
        case "json":
            (folder / "card.json").write_text("{")
        case "config":
            card = json.loads((folder / "card.json").read_text())
            card["config"]["n_heads"] = 3
            (folder / "card.json").write_text(json.dumps(card))
        case "weights":
            weights.write_bytes(b"broken")
        case "missing":
            weights.unlink()
        case "truncated":
            kept = load_file(weights)
            kept.popitem()
            save_file(kept, weights)
    with pytest.raises(AdapterError, match=str(folder)):
        load_head(folder, weights_hash="b" * 64, adapter_hash="a" * 64)


def test_an_adapters_hash_is_of_its_weights(tmp_path: Path) -> None:
    """Writing the same adapter again keeps the hash; another adapter has another; none has a name."""
    hashes = []
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        torch.manual_seed(seed)
        wrapped = add_adapter(tiny_whisper(), encoder_rank=2, decoder_rank=2)
        save_adapter(wrapped, tmp_path / name, AdapterCard("tiny", "b" * 64))
        hashes.append(adapter_hash(tmp_path / name))
    assert hashes[0] == hashes[1] != hashes[2]
    assert adapter_hash(None) == NO_ADAPTER
    with pytest.raises(AdapterError, match="not a readable adapter"):
        adapter_hash(tmp_path)
