"""What every recogniser that is compared can do, and what it is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Given:
    """What a system is made from."""

    model: str
    """Whisper's name of the weights."""
    ct2: str
    """Their CTranslate2 folder."""
    pt: str
    """Them as openai-whisper saves them."""
    adapter: str = "auto"
    """Ours: a folder, or auto or none."""
    head: str = "none"
    """Our transducer's: a folder, or auto or none."""
    latency: str | None = None
    """How far our transducer looks ahead; None is as its head was trained."""
    step_s: float | None = None
    """Seconds of new audio that a call waits for; None is as the system's documentation has it."""


class System(Protocol):
    """A recogniser that hears one stream at a time."""

    settings: str
    step_s: float
    """Seconds of new audio that a call waits for."""
    n_streams: int
    """Streams that a call serves at once, all of the same audio."""

    def begin(self) -> None:
        """Start a new stream."""

    def hear(self, samples: np.ndarray) -> tuple[str, str]:
        """Hear float32 samples; return the stream's committed text and the draft that follows it."""

    def finish(self) -> str:
        """End the stream; return its text."""
