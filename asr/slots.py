"""Preallocated state: all that is large in a stream, made once and used by one stream after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asr.chunking import FRAME_MS, MAX_CHUNK_MS
from asr.decoder import Decoder, FrameCache, SelfCache
from asr.encoder import CausalEncoder, EncoderState
from asr.features import LogMel
from asr.head import HeadState

LAST_POSITION_SHARE = 28 / 30  # of the encoder's positions; then the window restarts
HISTORY_FRAMES = 1000  # mel frames that can be encoded again
HISTORY_ROOM = HISTORY_FRAMES + 250  # more than these, so that moving them to the front is rare


@dataclass
class Slot:
    """The state of one stream. Nothing is read that it has not written, so a used slot needs no cleaning."""

    encoder: EncoderState
    cross: FrameCache  # [1, T_max, D] the window's frames
    text: SelfCache  # [L, 1, U_room, D] the window's text
    mel: Tensor  # [1, M, HISTORY_ROOM] newest raw mel frames
    head: HeadState | None = None  # the transducer's, made for the first stream that it reads

    def reset(self) -> None:
        """Make it ready for another stream."""
        self.encoder.position = 0
        self.cross.n_frames = 0
        self.text.reset()

    @property
    def n_bytes(self) -> int:
        """Memory of all its tensors."""
        tensors = (
            self.encoder.keys,
            self.encoder.values,
            self.mel,
        )
        caches = self.cross.n_bytes + self.text.n_bytes + (self.head.n_bytes if self.head else 0)
        return sum(tensor.nbytes for tensor in tensors) + caches


def new_slot(
    encoder: CausalEncoder,
    decoder: Decoder,
    log_mel: LogMel,
    *,
    left_context: int,
) -> Slot:
    """Allocate one slot.

    Args:
        encoder: Decides widths and layers, as do the next two.
        decoder: Whisper's decoder.
        log_mel: The features.
        left_context: Encoder frames that the stream's chunks may look back at most.

    Returns:
        The slot.
    """
    device = encoder.weights.positional_embedding.device
    return Slot(
        encoder.init_state(ring_slots=left_context + MAX_CHUNK_MS // FRAME_MS),
        decoder.new_frame_cache(max_frames=int(encoder.n_ctx * LAST_POSITION_SHARE)),
        decoder.new_self_cache(),
        torch.empty(1, log_mel.n_mels, HISTORY_ROOM, device=device),
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
        try:
            slot = self._free.pop()  # at once: threads may share a pool
        except IndexError:
            return None
        slot.reset()
        return slot

    def give_back(self, slot: Slot) -> None:
        """Take back a slot whose stream is over and will not be touched again."""
        self._free.append(slot)
