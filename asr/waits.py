"""How long a stream's frames waited for the future."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from asr.events import Word
from asr.head import HEAD_FRAME_MS, HEAD_FRAME_SAMPLES


@dataclass(frozen=True)
class Waits:
    """Of a stream that a transducer reads; Whisper's decoder has no frames that wait.

    Attributes:
        lag: Samples from a word's end to the end of the frame at which its last token comes out.
        frames: For each head frame from the stream's start, the head frames that came after it until it, and
            all before it, had seen what they chose to look at.
    """

    lag: int = 0
    frames: array[int] = field(default_factory=lambda: array("H"))

    def frames_ms(self) -> list[int]:
        """How long each frame waited."""
        return [HEAD_FRAME_MS * wait for wait in self.frames]

    def words_ms(self, words: Sequence[Word]) -> list[int]:
        """How long the frames waited at which words came out.

        Args:
            words: Of the stream.

        Returns:
            One for each word; none where there are no frames.
        """
        if not self.frames:
            return []
        last = len(self.frames) - 1
        ends = [(word.end + self.lag) // HEAD_FRAME_SAMPLES - 1 for word in words]
        return [HEAD_FRAME_MS * self.frames[min(max(end, 0), last)] for end in ends]
