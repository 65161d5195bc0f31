"""Low-rank adapters that make Whisper causal, kept as plain peft folders with a card.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` as peft writes them, and
``card.json``: which base weights it fits, how it was trained and how well it does. The base model is never
changed: :func:`merge_adapter` returns a merged copy, so switching the adapter off is using the base model.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from whisper.model import Whisper

from asr.errors import AdapterError

_ATTENTION = r"(attn|cross_attn)\.(query|key|value|out)"
TARGET_MODULES = rf"(encoder|decoder)\.blocks\.\d+\.({_ATTENTION}|mlp\.[02])"
_MODELS = Path(__file__).parent / "models"
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


@dataclass(frozen=True)
class AdapterCard:
    """What an adapter says of itself.

    Attributes:
        base_model: Name of the base weights.
        base_weights_hash: Hash of the base weights it fits, as in :class:`asr.checkpoint.Checkpoint`.
        initial_chunks: Extra chunks in a window's first chunk, as trained.
        left_context_s: Seconds of visible past, as trained.
        language: Code of the language it was trained on, None where that is the base weights' only one.
        license: Licence of the adapter's own weights.
        data: What it was trained on, with licences.
        training: Steps, hours, settings.
        results: Measured error rates and latencies.
    """

    base_model: str
    base_weights_hash: str
    initial_chunks: int = 1
    left_context_s: float = 10.0
    language: str | None = None
    license: str = ""
    data: list[str] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> AdapterCard:
        """Read ``card.json``.

        Raises:
            AdapterError: It is missing, not JSON or lacks the base weights' hash.
        """
        path = folder / "card.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**values)
        except FileNotFoundError:
            raise AdapterError(
                f"{folder}: no card.json, which names the base weights an adapter fits"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise AdapterError(f"{path}: not an adapter card ({error})") from error

    def write(self, folder: Path) -> None:
        """Write ``card.json``."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / "card.json").write_text(text + "\n", encoding="utf-8")


def shipped_adapter(name: str) -> Path | None:
    """Folder of the adapter that ships for base weights called ``name``, if there is one."""
    folder = _MODELS / f"{name}-causal"
    return folder if folder.is_dir() else None


def add_adapter(
    model: Whisper, *, encoder_rank: int, decoder_rank: int, target_modules: str = TARGET_MODULES
) -> PeftModel:
    """Put fresh LoRA layers into ``model`` in place, frozen but for them.

    Args:
        model: The base model; peft wraps its linear layers.
        encoder_rank: Rank in the encoder's blocks.
        decoder_rank: Rank in the decoder's blocks.
        target_modules: Regular expression of the layers' whole names.

    Returns:
        peft's wrapper, needed to save the adapter.
    """
    config = LoraConfig(
        r=decoder_rank,
        lora_alpha=2 * decoder_rank,
        target_modules=target_modules,
        rank_pattern={r"encoder\..*": encoder_rank},
        alpha_pattern={r"encoder\..*": 2 * encoder_rank},
    )
    return get_peft_model(model, config)


def continue_adapter(model: Whisper, folder: Path, *, weights_hash: str) -> PeftModel:
    """Put an existing adapter's layers into ``model`` in place, to be trained further.

    Args:
        model: The base model; peft wraps its linear layers.
        folder: An adapter folder.
        weights_hash: Hash of the base model's weights.

    Returns:
        peft's wrapper, with float32 layers.

    Raises:
        AdapterError: The folder cannot be read or fits other base weights.
    """
    _read_card(folder, weights_hash=weights_hash)
    return _load(model, folder, trainable=True)


def save_adapter(wrapped: PeftModel, folder: Path, card: AdapterCard) -> None:
    """Write a peft folder in half precision, with its card."""
    folder.mkdir(parents=True, exist_ok=True)
    wrapped.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    weights = load_file(folder / WEIGHTS_FILE)
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    card.write(folder)


def merge_adapter(model: Whisper, folder: Path, *, weights_hash: str) -> tuple[Whisper, AdapterCard]:
    """A copy of ``model`` with the adapter merged into its weights.

    Args:
        model: The base model; not changed.
        folder: An adapter folder.
        weights_hash: Hash of the base model's weights.

    Returns:
        The merged copy in eval mode, and the adapter's card.

    Raises:
        AdapterError: The folder cannot be read or fits other base weights.
    """
    card = _read_card(folder, weights_hash=weights_hash)
    merged = _load(copy.deepcopy(model), folder, trainable=False).merge_and_unload()
    assert isinstance(merged, Whisper)
    return merged.eval().requires_grad_(False), card


def _read_card(folder: Path, *, weights_hash: str) -> AdapterCard:
    """The card of an adapter that fits the weights."""
    if not folder.is_dir():
        raise AdapterError(f"{folder}: no such adapter folder")
    card = AdapterCard.read(folder)
    if card.base_weights_hash != weights_hash:
        raise AdapterError(
            f"{folder}: made for base weights {card.base_weights_hash[:12]}… ({card.base_model}), "
            f"but the loaded ones are {weights_hash[:12]}…; choose the matching --model"
        )
    return card


def _load(model: Whisper, folder: Path, *, trainable: bool) -> PeftModel:
    """Put the folder's layers into ``model`` in place."""
    try:
        saved = load_file(folder / WEIGHTS_FILE)  # first: without this file peft would look for a pickled one
        wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        _check_complete(wrapped, saved)
    except AdapterError:
        raise
    except Exception as error:  # peft and safetensors raise many kinds for damaged files
        raise AdapterError(f"{folder}: not a readable peft adapter ({error})") from error
    return wrapped


def _check_complete(wrapped: PeftModel, saved: Mapping[str, torch.Tensor]) -> None:
    """Compare the file's tensors with the layers that the config made; peft only warns."""
    wanted = {name.replace(".default.", ".") for name, _ in wrapped.named_parameters() if ".lora_" in name}
    if wanted != set(saved):
        missing, foreign = sorted(wanted - set(saved)), sorted(set(saved) - wanted)
        raise AdapterError(
            f"the adapter's tensors do not fit its config: {len(missing)} missing {missing[:2]}, "
            f"{len(foreign)} unexpected {foreign[:2]}"
        )
