"""The newest audio of a stream, for what needs samples again: the second pass and language detection."""

from __future__ import annotations

from collections import deque

import numpy as np


class HeardAudio:
    """Blocks of samples with their places in the stream."""

    def __init__(self) -> None:
        """Start empty."""
        self._blocks: deque[tuple[int, np.ndarray]] = deque()
        self._end = 0

    def append(self, samples: np.ndarray) -> None:
        """Add the stream's next samples."""
        self._blocks.append((self._end, samples))
        self._end += len(samples)

    def forget(self, before: int) -> None:
        """Drop blocks that end at or before a sample."""
        while self._blocks and self._blocks[0][0] + len(self._blocks[0][1]) <= before:
            self._blocks.popleft()

    def read(self, start: int, end: int) -> tuple[int, np.ndarray]:
        """What is still there of a range of samples, and the sample at which it starts."""
        first = max(start, self._blocks[0][0]) if self._blocks else end
        wanted = [(at, block) for at, block in self._blocks if at + len(block) > first]
        parts = [block[max(first - at, 0) : max(end - at, 0)] for at, block in wanted]
        return first, np.concatenate(parts) if parts else np.zeros(0, np.float32)
