"""Many clips through one recogniser in this process, so many at a time, chunk by chunk: no network, no clock.

What benchmarks of cost share: processor time of the whole work, and the texts that came out of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr import SAMPLE_RATE, Recognizer
from asr.batch import Step
from asr.slots import Slot
from asr.stream import Stream


@dataclass(frozen=True)
class Played:
    """What came out of some clips, and what it cost.

    Attributes:
        texts: Of the clips, in their order.
        audio_s: Seconds of audio in all of them.
        cpu_s: Processor time of all threads.
        state_bytes: The largest state that a stream had at its end.
    """

    texts: list[str]
    audio_s: float
    cpu_s: float
    state_bytes: int

    @property
    def cpu_per_s(self) -> float:
        """Processor seconds per second of one stream's audio."""
        return self.cpu_s / self.audio_s


@dataclass
class _Playing:
    """A clip on its way."""

    index: int
    stream: Stream
    slot: Slot
    clip: np.ndarray
    n_fed: int = 0


def play_together(
    recognizer: Recognizer, clips: Sequence[np.ndarray], *, n_streams: int, chunk_ms: int, **options: Any
) -> Played:
    """Stream clips, ``n_streams`` of them at any time, a chunk of each per tick.

    Args:
        recognizer: The recogniser under test.
        clips: float32 at 16 kHz; the next one begins in the tick after one has ended.
        n_streams: Streams that are open at a time.
        chunk_ms: Chunk size, of the model and of each tick.
        **options: Of :meth:`asr.recognizer.Recognizer.stream`.

    Returns:
        Texts and processor time.

    Raises:
        Exception: Whatever befell a stream.
    """
    chunk = SAMPLE_RATE * chunk_ms // 1000
    pool = recognizer.slots(n_streams, left_context_s=options.get("left_context_s"))
    waiting = deque(enumerate(clips))
    playing: list[_Playing] = []
    texts = [""] * len(clips)
    state_bytes = 0
    started = time.process_time()
    while waiting or playing:
        while waiting and (slot := pool.take()) is not None:
            index, clip = waiting.popleft()
            stream = recognizer.stream(chunk_ms=chunk_ms, slot=slot, **options)
            playing.append(_Playing(index, stream, slot, clip))
        steps = []
        for each in playing:
            samples = each.clip[each.n_fed : each.n_fed + chunk]
            each.n_fed += len(samples)
            steps.append(Step(each.stream, samples, "finish" if each.n_fed == len(each.clip) else "listen"))
        for outcome in recognizer.advance(steps):
            if isinstance(outcome, Exception):
                raise outcome
        for each in [each for each in playing if each.n_fed == len(each.clip)]:
            texts[each.index] = each.stream.transcript.text
            state_bytes = max(state_bytes, each.slot.n_bytes)
            playing.remove(each)
            pool.give_back(each.slot)
    cpu_s = time.process_time() - started
    return Played(texts, sum(map(len, clips)) / SAMPLE_RATE, cpu_s, state_bytes)
