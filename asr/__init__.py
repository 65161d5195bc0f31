"""foresound's engine: streaming speech recognition with Whisper.

``Recognizer`` and ``Stream`` are imported when they are first used, so that whoever only needs events and
errors (a client of a server, say) starts without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asr.errors import AdapterError, AudioError, CheckpointError, ForesoundError, OptionError
from asr.events import (
    SAMPLE_RATE,
    Event,
    Final,
    Partial,
    SpeechEnded,
    SpeechStarted,
    Transcript,
    Word,
    event_to_dict,
)

if TYPE_CHECKING:
    from asr.recognizer import Recognizer
    from asr.stream import Stream

__all__ = [
    "SAMPLE_RATE",
    "AdapterError",
    "AudioError",
    "CheckpointError",
    "Event",
    "Final",
    "ForesoundError",
    "OptionError",
    "Partial",
    "Recognizer",
    "SpeechEnded",
    "SpeechStarted",
    "Stream",
    "Transcript",
    "Word",
    "event_to_dict",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use (PEP 562)."""
    if name == "Recognizer":
        from asr.recognizer import Recognizer

        return Recognizer
    if name == "Stream":
        from asr.stream import Stream

        return Stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
