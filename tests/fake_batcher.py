"""A batcher without a model: every quarter second of audio is a word, every fourth word ends a segment.

What it hears depends on nothing but how much audio came, so that any way of sending gives the same finals.
``python -m tests.fake_batcher ARGS`` is the ``foresound`` command with it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Sequence

from asr.errors import AudioError, OptionError
from asr.events import SAMPLE_RATE, Event, Final, Partial, SpeechEnded, SpeechStarted, Word
from service.stream_settings import AudioFormat, Failed, Finished, Flushed, Output, Progress, StreamSettings
from service.worker_wire import Loaded

WORD = SAMPLE_RATE // 4
WORDS_PER_SEGMENT = 4
BAD_AUDIO = b"\xbd" * 4  # a feed that begins so cannot be decoded
BROKEN_MODEL = b"\xbe" * 4  # a feed that begins so breaks the model
QUIET = b"\xbf" * 4  # a feed that begins so is silence: it ends the segment, and speech begins after it

Deliver = Callable[[Sequence[Output]], None]


def expected_texts(seconds: float) -> list[str]:
    """The finals of so much audio."""
    words = [f"w{n}" for n in range(int(seconds * SAMPLE_RATE) // WORD)]
    return [" ".join(words[n : n + WORDS_PER_SEGMENT]) for n in range(0, len(words), WORDS_PER_SEGMENT)]


class FakeSlot:
    """One stream; nothing is heard before the batcher's next tick."""

    def __init__(self, batcher: FakeBatcher, audio: AudioFormat, deliver: Deliver, draft: str) -> None:
        self._batcher, self.deliver, self._draft = batcher, deliver, draft
        self._bytes_per_s = (audio.bytes_per_frame or 2) * audio.sample_rate
        self._work: list[bytes | str] = []
        self._n_bytes = self._n_words = self._segment = 0
        self._words: list[Word] = []
        self._is_speaking = self._is_voice_told = False

    @property
    def queued_s(self) -> float:
        return sum(len(each) for each in self._work if isinstance(each, bytes)) / self._bytes_per_s

    def feed(self, data: bytes) -> None:
        self._add(data)

    def flush(self) -> None:
        self._add("flush")

    def finish(self) -> None:
        self._add("finish")

    def close(self) -> None:
        self._batcher.slots.discard(self)
        self._work.clear()

    def _add(self, work: bytes | str) -> None:
        assert self in self._batcher.slots, "this slot is closed"
        self._work.append(work)
        self._batcher.wake()

    @property
    def is_busy(self) -> bool:
        return bool(self._work)

    def tick(self) -> list[Output]:
        """Does one piece of work."""
        work = self._work.pop(0)
        if isinstance(work, bytes):
            if work.startswith((BAD_AUDIO, BROKEN_MODEL)):
                return self._fail(work)
            events = self._rest(work) if work.startswith(QUIET) else self._hear(work)
            return [*events, Progress(self._now, 1)]
        if work == "flush":
            return [*self._close_segment(), Flushed(self._now), Progress(self._now, 1)]
        self.close()
        ended = [SpeechEnded(self._now)] if self._is_voice_told and not self._words else []
        return [*ended, *self._close_segment(), Finished(self._now / SAMPLE_RATE, 0.1)]

    @property
    def _now(self) -> int:
        return self._n_bytes * SAMPLE_RATE // self._bytes_per_s

    def _fail(self, work: bytes) -> list[Output]:
        self.close()
        if work.startswith(BAD_AUDIO):
            return [*self._close_segment(), Failed(AudioError("the audio cannot be decoded"))]
        return [Failed(RuntimeError("the model broke"))]

    def _hear(self, data: bytes) -> list[Output]:
        events: list[Output] = [] if self._is_speaking else [SpeechStarted(self._now)]
        self._is_voice_told = self._is_voice_told or not self._is_speaking
        self._is_speaking = True
        self._n_bytes += len(data)
        while self._now >= (self._n_words + 1) * WORD:
            start = self._n_words * WORD
            self._words.append(Word(f"w{self._n_words}", start, start + WORD, 0.9, True))
            self._n_words += 1
            committed = " ".join(word.text for word in self._words)
            events.append(Partial(self._segment, committed, self._draft, tuple(self._words), self._now))
            if len(self._words) == WORDS_PER_SEGMENT:
                events += self._close_segment()
        return events

    def _rest(self, data: bytes) -> list[Event]:
        before = self._now
        self._n_bytes += len(data)
        self._n_words = -(-self._now // WORD)
        self._is_speaking = False
        ended: list[Event] = [SpeechEnded(before)] if self._is_voice_told and not self._words else []
        self._is_voice_told = False
        return [*ended, *self._close_segment()]

    def _close_segment(self) -> list[Event]:
        if not self._words:
            return []
        words, self._words = tuple(self._words), []
        self._is_voice_told = False
        end = words[-1].end
        text = " ".join(word.text for word in words)
        final = Final(self._segment, text, words, words[0].start, end, False, self._now)
        self._segment += 1
        return [SpeechEnded(end), final]


class FakeBatcher:
    """Ticks every `tick_s` while there is something to do, unless it is held."""

    n_lanes = 1
    cpu_s = 0.0
    memory_bytes = 0

    def __init__(self, *, n_slots: int = 8, tick_s: float = 0.0, draft: str = " d") -> None:
        self.n_slots, self._tick_s, self._draft = n_slots, tick_s, draft
        self.slots: set[FakeSlot] = set()
        self.opened: deque[tuple[AudioFormat, StreamSettings]] = deque(maxlen=100)  # the newest
        self.is_held = False
        self.may_open = asyncio.Event()
        self.may_open.set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def n_used(self) -> int:
        return len(self.slots)

    @property
    def tick_age_s(self) -> float:
        return 0.0

    async def open(self, audio: AudioFormat, settings: StreamSettings, deliver: Deliver) -> FakeSlot:
        await self.may_open.wait()
        if settings.language not in (None, "en"):
            raise OptionError(f"language must be one of en for fake, not {settings.language!r}")
        assert self.n_used < self.n_slots, "more streams than slots"
        slot = FakeSlot(self, audio, deliver, self._draft)
        self.slots.add(slot)
        self.opened.append((audio, settings))
        return slot

    def hold(self) -> None:
        """Recognises nothing until :meth:`release`."""
        self.is_held = True

    def release(self) -> None:
        self.is_held = False
        self.wake()

    def wake(self) -> None:
        if self._timer is None and not self.is_held:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.is_held:
            return
        for slot in list(self.slots):
            if slot.is_busy:
                slot.deliver(slot.tick())
        if any(slot.is_busy for slot in self.slots):
            self.wake()


def main() -> int:
    """Runs the ``foresound`` command with this model, for tests that need a real process."""
    import service.main
    from clients.cli import main as foresound

    class Workers(FakeBatcher):
        loaded = Loaded("fake", ("en",))

        def __init__(self, model: object, *, n_slots: int, n_workers: int, on_tick: object) -> None:
            super().__init__(n_slots=n_slots)

        async def __aenter__(self) -> Workers:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    service.main.Workers = Workers  # type: ignore[assignment,misc]
    return foresound()


if __name__ == "__main__":
    sys.exit(main())
