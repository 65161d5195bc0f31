"""Segments that have no final yet: should the model fail, what was committed of them becomes their final."""

from __future__ import annotations

from asr.events import Final, Partial


class UnfinishedSegments:
    """The newest partial of every segment without a final; a second pass may leave several."""

    def __init__(self) -> None:
        """Start with none."""
        self._newest: dict[int, Partial] = {}
        self._covered = 0  # samples up to which finals reach

    def show(self, partial: Partial) -> None:
        """Take a segment's newest partial.

        Args:
            partial: Replaces the one before.
        """
        self._newest[partial.segment] = partial

    def close(self, final: Final) -> None:
        """Take a segment's final.

        Args:
            final: Of a segment that is finished with it.
        """
        self._newest.pop(final.segment, None)
        self._covered = final.end

    def committed(self) -> list[Final]:
        """Finish every segment.

        Returns:
            A final for each that has committed text, in order.
        """
        finals = []
        for segment, partial in sorted(self._newest.items()):
            if text := partial.committed.strip():
                words = tuple(word for word in partial.words if word.stable)
                end = max([self._covered, *(word.end for word in words[-1:])])
                finals.append(Final(segment, text, words, self._covered, end, False, partial.time))
                self._covered = end
        self._newest.clear()
        return finals
