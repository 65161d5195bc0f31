"""Where speech starts and ends in a stream, from the voice activity detector's probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.errors import OptionError
from asr.events import SAMPLE_RATE
from asr.vad import WINDOW_SAMPLES, SileroVad, VadJob, VadResult

ONSET = 0.35  # probability from which on a window is speech: lenient, so that soft speech is not lost
OFFSET = 0.2  # probability below which speech has ended
STEP_SAMPLES = (
    3 * WINDOW_SAMPLES
)  # the detector always runs on this grid: cheaper, and the same for any blocks


@dataclass(frozen=True)
class EndpointRules:
    """When a segment ends.

    Attributes:
        silence_ms: Silence after speech that ends it.
        max_segment_s: Longest segment, from its first speech on; at most Whisper's 30 s.
    """

    silence_ms: int = 800
    max_segment_s: float = 30.0

    def __post_init__(self) -> None:
        if self.silence_ms < 100:
            raise OptionError(f"silence_ms must be at least 100, not {self.silence_ms}")
        if not 5 <= self.max_segment_s <= 30:
            raise OptionError(f"max_segment_s must be from 5 to 30, not {self.max_segment_s}")

    @property
    def silence(self) -> int:
        """Samples of silence that end a segment."""
        return self.silence_ms * SAMPLE_RATE // 1000

    @property
    def max_segment(self) -> int:
        """Samples of the longest segment."""
        return int(self.max_segment_s * SAMPLE_RATE)


@dataclass(frozen=True)
class SpeechChange:
    """Speech that starts or ends at ``time``, noticed at ``noticed``; both in samples."""

    is_start: bool
    time: int
    noticed: int


class SpeechTracker:
    """Follows one stream: is somebody speaking, since when, until when. Times are samples.

    Attributes:
        n_samples: Samples judged so far.
        started: Start of the running or last stretch of speech, None before any.
        ended: Its end so far: end of the last window with speech.
        speaking: Speech goes on, or its silence is still shorter than the rules want.
    """

    def __init__(self, vad: SileroVad, rules: EndpointRules) -> None:
        """Start a stream."""
        self._rules = rules
        self._state = vad.init_state()
        self._tail = torch.zeros(1, 0)
        self._in_speech = False
        self.n_samples = 0
        self.started: int | None = None
        self.ended = 0
        self.speaking = False

    def hear(self, samples: Tensor) -> VadJob | None:
        """Take the next samples.

        Args:
            samples: ``[1, S]`` float32 on the CPU.

        Returns:
            What the detector has to do before :meth:`judge`; None if there is too little yet.
        """
        signal = torch.cat([self._tail, samples], dim=-1)
        n_due = signal.shape[-1] // STEP_SAMPLES * STEP_SAMPLES
        self._tail = signal[:, n_due:]
        return VadJob(signal[:, :n_due], self._state) if n_due else None

    def judge(self, result: VadResult) -> Iterator[SpeechChange]:
        """Follow what the detector says.

        Args:
            result: Of the job.

        Yields:
            What happened, in order; the attributes are those of that moment. An end is noticed when its
            silence has lasted long enough.
        """
        self._state = result.state
        for probability in result.probabilities[0].tolist():
            yield from self._judge(probability)

    def silent_for(self, n_samples: int) -> bool:
        """Whether no speech was heard in the last ``n_samples`` samples."""
        return self.n_samples - self.ended >= n_samples

    def _judge(self, probability: float) -> Iterator[SpeechChange]:
        start, self.n_samples = self.n_samples, self.n_samples + WINDOW_SAMPLES
        self._in_speech = probability >= (OFFSET if self._in_speech else ONSET)
        if self._in_speech:
            self.ended = self.n_samples
            if not self.speaking:
                self.speaking, self.started = True, start
                yield SpeechChange(True, start, self.n_samples)
        elif self.speaking and self.silent_for(self._rules.silence):
            self.speaking = False
            yield SpeechChange(False, self.ended, self.n_samples)
