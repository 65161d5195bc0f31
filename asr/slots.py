"""Preallocated state: all that is large in a stream, made once and used by one stream after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asr.anchor import MAX_BACK
from asr.decoder import CrossCache, Decoder, SelfCache
from asr.encoder import FRAME_MS, FRAME_SAMPLES, MAX_CHUNK_MS, CausalEncoder, EncoderState
from asr.features import LogMel
from asr.head import HeadState, TransducerHead

HISTORY_FRAMES = 1000  # mel frames that can be encoded again


@dataclass
class Slot:
    """The state of one stream. Nothing is read that it has not written, so a used slot needs no cleaning."""

    encoder: EncoderState
    cross: CrossCache  # [L, 1, T_max, D] the window's frames as the decoder sees them
    text: SelfCache  # [L, 1, U_max, D] the window's text
    mel: Tensor  # [1, M, 2 HISTORY_FRAMES] newest raw mel frames
    head: HeadState | None = None  # for the transducer, where there is one

    def reset(self) -> None:
        """Make it ready for another stream."""
        self.encoder.position = 0
        self.cross.n_frames = 0
        self.text.truncate(0)

    @property
    def n_bytes(self) -> int:
        """Memory of all its tensors."""
        tensors = (
            self.encoder.keys,
            self.encoder.values,
            self.cross.keys,
            self.cross.values,
            self.text.keys,
            self.text.values,
            self.mel,
        )
        return sum(tensor.nbytes for tensor in tensors) + (self.head.n_bytes if self.head else 0)


def new_slot(
    encoder: CausalEncoder,
    decoder: Decoder,
    log_mel: LogMel,
    *,
    left_context: int,
    head: TransducerHead | None = None,
) -> Slot:
    """Allocate one slot.

    Args:
        encoder: Decides widths and layers, as do the next two.
        decoder: Whisper's decoder.
        log_mel: The features.
        left_context: Encoder frames that the stream's chunks may look back at most.
        head: The transducer head, if there is one.

    Returns:
        The slot.
    """
    device = encoder.weights.positional_embedding.device
    # A step in mid-window is one chunk; a window's first re-encodes up to MAX_BACK of audio from nothing.
    ring_slots = max(left_context + MAX_CHUNK_MS // FRAME_MS, MAX_BACK // FRAME_SAMPLES)
    return Slot(
        encoder.init_state(ring_slots=ring_slots),
        decoder.new_cross_cache(max_frames=encoder.n_ctx),
        decoder.new_self_cache(),
        torch.empty(1, log_mel.n_mels, 2 * HISTORY_FRAMES, device=device),
        head.init_state() if head else None,
    )


class SlotPool:
    """A fixed number of slots.

    Attributes:
        n_slots: How many there are.
    """

    def __init__(self, slots: list[Slot]) -> None:
        """Own the slots."""
        self.n_slots = len(slots)
        self._free = list(slots)

    @property
    def n_free(self) -> int:
        """Slots that nobody uses."""
        return len(self._free)

    def take(self) -> Slot | None:
        """A slot for a new stream, None when all are used."""
        if not self._free:
            return None
        slot = self._free.pop()
        slot.reset()
        return slot

    def give_back(self, slot: Slot) -> None:
        """Take back a slot whose stream is over and will not be touched again."""
        self._free.append(slot)
