"""The stretch of a stream that its next Final will cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asr.events import Final, Partial
from asr.words import Token, Vocabulary, build_words


@dataclass
class Segment:
    """A running segment.

    Attributes:
        index: Its number in the stream.
        start: Sample where the Final before it ended.
        tokens: Its committed tokens.
        begun: Sample of its first speech since the last silence, None as long as nobody speaks.
        shown: Committed and draft text of its last Partial.
    """

    index: int
    start: int
    tokens: list[Token] = field(default_factory=list)
    begun: int | None = None
    shown: tuple[str, str] = ("", "")

    def show(self, draft: Sequence[Token], vocabulary: Vocabulary, *, now: int) -> list[Partial]:
        """Tell the text if it changed.

        Args:
            draft: Open tokens after the committed ones.
            vocabulary: Knows texts and words.
            now: Samples heard.

        Returns:
            One event, or none.
        """
        tokens = [*self.tokens, *draft]
        committed = vocabulary.text(token.id for token in self.tokens).lstrip()
        rest = vocabulary.text(token.id for token in tokens).lstrip()[len(committed) :]
        if (committed, rest) == self.shown:
            return []
        self.shown = (committed, rest)
        words = build_words(tokens, vocabulary, n_committed=len(self.tokens), start=self.start, end=now)
        return [Partial(self.index, committed, rest, words, now)]

    def final(self, vocabulary: Vocabulary, *, end: int, now: int) -> Final:
        """The segment as it stands.

        Args:
            vocabulary: Knows texts and words.
            end: Sample where it ends.
            now: Samples heard.

        Returns:
            The event.
        """
        tokens = self.tokens
        words = build_words(tokens, vocabulary, n_committed=len(tokens), start=self.start, end=end)
        text = vocabulary.text(token.id for token in tokens).strip()
        return Final(self.index, text, words, self.start, end, False, now)
