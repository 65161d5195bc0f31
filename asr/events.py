"""What a stream tells its listener: frozen events with times in samples.

Inside foresound a time is an integer count of 16 kHz samples since the start of the stream;
the ``*_s`` properties and :func:`event_to_dict` convert to seconds at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Word:
    """One recognised word with its punctuation and no surrounding blanks."""

    text: str
    start: int
    end: int
    confidence: float
    stable: bool

    @property
    def start_s(self) -> float:
        """Start in seconds from the stream's start."""
        return self.start / SAMPLE_RATE

    @property
    def end_s(self) -> float:
        """End in seconds from the stream's start."""
        return self.end / SAMPLE_RATE


@dataclass(frozen=True)
class Partial:
    """The current segment so far: ``committed`` only grows, ``draft`` may change.

    ``time`` is the number of samples heard when the event was made.
    """

    segment: int
    committed: str
    draft: str
    words: tuple[Word, ...]
    time: int

    @property
    def text(self) -> str:
        """Committed and draft text together."""
        return self.committed + self.draft

    @property
    def time_s(self) -> float:
        """Seconds of audio heard when the event was made."""
        return self.time / SAMPLE_RATE


@dataclass(frozen=True)
class Final:
    """A finished segment. Finals never change, never overlap and together cover the stream.

    ``second_pass`` tells that the text is offline Whisper's and replaces what was committed.
    """

    segment: int
    text: str
    words: tuple[Word, ...]
    start: int
    end: int
    second_pass: bool
    time: int

    @property
    def start_s(self) -> float:
        """Start in seconds from the stream's start."""
        return self.start / SAMPLE_RATE

    @property
    def end_s(self) -> float:
        """End in seconds from the stream's start."""
        return self.end / SAMPLE_RATE

    @property
    def time_s(self) -> float:
        """Seconds of audio heard when the event was made."""
        return self.time / SAMPLE_RATE


@dataclass(frozen=True)
class SpeechStarted:
    """Speech began at ``time``, in samples."""

    time: int

    @property
    def time_s(self) -> float:
        """Seconds from the stream's start."""
        return self.time / SAMPLE_RATE


@dataclass(frozen=True)
class SpeechEnded:
    """Speech ended at ``time``, in samples."""

    time: int

    @property
    def time_s(self) -> float:
        """Seconds from the stream's start."""
        return self.time / SAMPLE_RATE


Event = Partial | Final | SpeechStarted | SpeechEnded


@dataclass(frozen=True)
class Transcript:
    """All segments of a stream in order; ``duration`` is in samples."""

    segments: tuple[Final, ...]
    duration: int

    @property
    def text(self) -> str:
        """The segments' texts joined by blanks."""
        return " ".join(segment.text for segment in self.segments if segment.text)

    @property
    def words(self) -> tuple[Word, ...]:
        """The segments' words in order."""
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def duration_s(self) -> float:
        """Seconds of audio heard."""
        return self.duration / SAMPLE_RATE


def _word_to_dict(word: Word) -> dict[str, Any]:
    return {
        "text": word.text,
        "start": round(word.start_s, 3),
        "end": round(word.end_s, 3),
        "confidence": round(word.confidence, 4),
        "stable": word.stable,
    }


def event_to_dict(event: Event) -> dict[str, Any]:
    """Return the JSON form of an event, with times in seconds.

    Args:
        event: Any event of a stream.

    Returns:
        A dict of plain values whose ``type`` is ``partial``, ``final``, ``speech_started`` or
        ``speech_ended``.
    """
    match event:
        case Partial():
            return {
                "type": "partial",
                "segment": event.segment,
                "committed": event.committed,
                "draft": event.draft,
                "words": [_word_to_dict(word) for word in event.words],
                "time": round(event.time_s, 3),
            }
        case Final():
            return {
                "type": "final",
                "segment": event.segment,
                "text": event.text,
                "words": [_word_to_dict(word) for word in event.words],
                "start": round(event.start_s, 3),
                "end": round(event.end_s, 3),
                "second_pass": event.second_pass,
                "time": round(event.time_s, 3),
            }
        case SpeechStarted():
            return {"type": "speech_started", "time": round(event.time_s, 3)}
        case SpeechEnded():
            return {"type": "speech_ended", "time": round(event.time_s, 3)}
