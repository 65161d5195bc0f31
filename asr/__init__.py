"""foresound's engine: streaming speech recognition with Whisper."""

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
