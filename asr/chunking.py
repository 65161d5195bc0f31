"""How a stream's frames are grouped into chunks. Encoder frames are 20 ms."""

from __future__ import annotations

from dataclasses import dataclass

from asr.errors import OptionError

FRAME_MS = 20
MIN_CHUNK_MS, MAX_CHUNK_MS = 40, 1000


@dataclass(frozen=True)
class Chunking:
    """How frames are grouped; all lengths in encoder frames of 20 ms.

    Attributes:
        size: Frames per chunk.
        initial: Extra chunks that the first one is extended by (the paper uses one).
        left_context: Frames before a step's first one that its frames may attend to.
        right_context: Frames that must have been heard after a frame before it is final.
    """

    size: int
    initial: int = 1
    left_context: int = 500
    right_context: int = 0

    @classmethod
    def from_ms(
        cls, chunk_ms: int, *, initial: int = 1, left_context_s: float = 10.0, right_context_ms: int = 0
    ) -> Chunking:
        """Build from milliseconds.

        Args:
            chunk_ms: 40 to 1000, a multiple of 20.
            initial: Extra chunks in the first one.
            left_context_s: Seconds of visible past, more than 0 and at most 30.
            right_context_ms: A multiple of 20, at most 1000 together with ``chunk_ms``, which is as much as a
                shipped adapter has learned to see at once.

        Returns:
            The chunking.

        Raises:
            OptionError: A value is outside its range.
        """
        if not (MIN_CHUNK_MS <= chunk_ms <= MAX_CHUNK_MS and chunk_ms % FRAME_MS == 0):
            raise OptionError(
                f"chunk_ms must be a multiple of {FRAME_MS} from {MIN_CHUNK_MS} to {MAX_CHUNK_MS}, "
                f"not {chunk_ms}"
            )
        longest = MAX_CHUNK_MS - chunk_ms
        if not (0 <= right_context_ms <= longest and right_context_ms % FRAME_MS == 0):
            raise OptionError(
                f"right_context_ms must be a multiple of {FRAME_MS} from 0 to {longest} with chunks of "
                f"{chunk_ms} ms, not {right_context_ms}"
            )
        if not 0 < left_context_s <= 30:
            raise OptionError(f"left_context_s must be above 0 and at most 30, not {left_context_s}")
        left_context = round(left_context_s * 1000 / FRAME_MS)
        return cls(chunk_ms // FRAME_MS, initial, left_context, right_context_ms // FRAME_MS)

    @property
    def first_size(self) -> int:
        """Frames of the first chunk."""
        return self.size * (1 + self.initial)

    @property
    def ring_slots(self) -> int:
        """What a ring must hold: left context, chunk and right context."""
        return self.left_context + self.size + self.right_context

    def next_end(self, n_heard: int) -> int:
        """Frames from a window's start to the end of the step after the one that ended at ``n_heard``."""
        return n_heard + self.size if n_heard else self.first_size

    def n_final(self, n_heard: int) -> int:
        """Of the frames from a window's start to a step's end, how many are final after the step."""
        return max(0, n_heard - self.right_context)
