"""Transducer heads on disk: weights as safetensors, and a card that says what they fit and how they do.

A head fits one base model with one causal adapter: it reads that encoder's frames. Both are named by hashes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from asr.dial import Dial
from asr.errors import AdapterError, OptionError
from asr.frontier import ADAPTIVE, LookPolicy, WaitPolicy
from asr.head import HeadConfig, TransducerHead
from asr.weights import hash_weights

NO_ADAPTER = "none"
_MODELS = Path(__file__).parent / "models"
_WEIGHTS_FILE = "head.safetensors"


@dataclass(frozen=True)
class HeadCard:
    """What a head says of itself.

    Attributes:
        base_model: Name of the base weights.
        base_weights_hash: Hash of the base weights, as in :class:`asr.checkpoint.Checkpoint`.
        adapter_hash: Hash of the adapter merged into them, from :func:`adapter_hash`.
        config: Sizes, as :class:`asr.head.HeadConfig`.
        dial: Points of :class:`asr.dial.Dial`; empty means the dial has not been measured.
        wait_dials: The same for a head that waits in the encoder, by chunk size in ms; its blocks do not look
            ahead then.
        lead_ms: How long before a word's first token comes out the word begins, measured.
        lag_ms: How long before its last token comes out it ends.
        license: Licence of the head's own weights.
        data: What it was trained on, with licences.
        training: Steps, hours, settings.
        results: Measured error rates and latencies.
    """

    base_model: str
    base_weights_hash: str
    adapter_hash: str
    config: dict[str, Any]
    dial: list[dict[str, float]] = field(default_factory=list)
    wait_dials: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    lead_ms: float = 300.0
    lag_ms: float = 0.0
    license: str = ""
    data: list[str] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> HeadCard:
        """Read ``card.json``.

        Raises:
            AdapterError: It is missing, not JSON or lacks what is needed.
        """
        path = folder / "card.json"
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise AdapterError(f"{folder}: no card.json, which names the weights a head fits") from None
        except (OSError, ValueError, TypeError) as error:
            raise AdapterError(f"{path}: not a head's card ({error})") from error

    def write(self, folder: Path) -> None:
        """Write ``card.json``."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / "card.json").write_text(text + "\n", encoding="utf-8")

    @property
    def waits(self) -> bool:
        """Whether frames wait in the encoder, instead of looking ahead in the blocks."""
        return bool(self.config.get("max_future"))

    def trained_policy(self) -> LookPolicy:
        """How far frames looked in training: as their schedulers say, or in a reference always as far."""
        if self.waits:
            return self._waiting(WaitPolicy())
        fixed = self.training.get("fixed_look")
        return LookPolicy(fixed=tuple(fixed)) if fixed else ADAPTIVE

    def policy(
        self, *, latency: str | float | None = None, fixed_look: int | None = None, chunk_ms: int = 80
    ) -> LookPolicy:
        """How far frames look.

        Args:
            latency: A position of the dial or the wanted mean delay in ms; None is as trained.
            fixed_look: Head frames that every block always looks ahead instead; where frames wait in the
                encoder, those of future that each always waits for.
            chunk_ms: The stream's.

        Returns:
            The policy.

        Raises:
            OptionError: A value is outside its range, both are given, or there is no dial.
        """
        if fixed_look is not None:
            if latency is not None:
                raise OptionError("latency and fixed_look exclude each other")
            farthest = self.config["max_future"] if self.waits else self.config["max_look"]
            if not 0 <= fixed_look <= farthest:
                raise OptionError(f"fixed_look must be from 0 to {farthest}, not {fixed_look}")
            if self.waits:
                return self._waiting(WaitPolicy(future=fixed_look))
            return LookPolicy(fixed=(fixed_look,) * self.config["n_blocks"])
        if latency is None:
            return self.trained_policy()
        dial = self.read_dial(chunk_ms=chunk_ms)
        if dial is None:
            raise OptionError(f"latency {latency!r} needs a dial, and this head's has not been measured")
        bias = dial.bias(latency)
        return self._waiting(WaitPolicy(bias)) if self.waits else LookPolicy(bias)

    def read_dial(self, *, chunk_ms: int = 80) -> Dial | None:
        """The measured dial, if it was; where frames wait in the encoder, that of the nearest chunk size."""
        if not self.waits:
            return Dial.from_json(self.dial) if self.dial else None
        nearest = min(self.wait_dials, key=lambda size: abs(int(size) - chunk_ms), default=None)
        return None if nearest is None else Dial.from_json(self.wait_dials[nearest])

    def _waiting(self, wait: WaitPolicy) -> LookPolicy:
        return LookPolicy(fixed=(0,) * self.config["n_blocks"], wait=wait)


def shipped_head(name: str) -> Path | None:
    """Folder of the head that ships for base weights called ``name``, if there is one."""
    folder = _MODELS / f"{name}-transducer"
    return folder if folder.is_dir() else None


def adapter_hash(folder: Path | None) -> str:
    """Identifies an adapter's weights.

    Args:
        folder: A peft folder; None is no adapter.

    Returns:
        A hash that stays the same when the files are written anew.

    Raises:
        AdapterError: The folder holds no readable adapter.
    """
    if folder is None:
        return NO_ADAPTER
    path = folder / "adapter_model.safetensors"
    try:
        return hash_weights(load_file(path))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: not a readable adapter ({error})") from error


def save_head(head: TransducerHead, folder: Path, card: HeadCard) -> None:
    """Write a head in half precision, with its card."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().half().contiguous() for name, value in head.state_dict().items()}
    save_file(weights, folder / _WEIGHTS_FILE)
    card.write(folder)


def load_head(folder: Path, *, weights_hash: str, adapter_hash: str) -> tuple[TransducerHead, HeadCard]:
    """Read a head.

    Args:
        folder: Where :func:`save_head` wrote it.
        weights_hash: Hash of the base weights in use.
        adapter_hash: Hash of the adapter in use.

    Returns:
        The head in eval mode, in float32, without gradients; and its card.

    Raises:
        AdapterError: The folder cannot be read or the head was made for other weights.
    """
    if not folder.is_dir():
        raise AdapterError(f"{folder}: no such head folder")
    card = HeadCard.read(folder)
    for what, wanted, found in (
        ("base weights", card.base_weights_hash, weights_hash),
        ("the adapter", card.adapter_hash, adapter_hash),
    ):
        if wanted != found:
            raise AdapterError(
                f"{folder}: made for {what} {wanted[:12]} ({card.base_model}), but {found[:12]} is loaded; "
                "choose the matching model and adapter, or train a head for them"
            )
    try:
        head = TransducerHead(HeadConfig(**card.config))
        head.load_state_dict(
            {name: value.float() for name, value in load_file(folder / _WEIGHTS_FILE).items()}
        )
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise AdapterError(f"{folder}: not a readable head ({error})") from error
    return head.eval().requires_grad_(False), card
