"""The stretch of a stream that its next Final will cover."""

from __future__ import annotations

from dataclasses import dataclass, field

from asr.words import Token


@dataclass
class Segment:
    """A running segment.

    Attributes:
        index: Its number in the stream.
        start: Sample where the Final before it ended.
        tokens: Its committed tokens.
        begun: Sample of its first speech since the last silence, None as long as nobody speaks.
    """

    index: int
    start: int
    tokens: list[Token] = field(default_factory=list)
    begun: int | None = None
