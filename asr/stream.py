"""One stream: samples in, events out. All its state lives here; the weights are shared and never change.

A stream never calls the model: it is advanced as a task of :class:`asr.engine.Engine`, which takes the steps
of many streams together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from asr import offline
from asr.anchor import WORD_MARGIN
from asr.endpoint import SpeechTracker
from asr.engine import Engine, Task
from asr.errors import OptionError
from asr.events import SAMPLE_RATE, Event, Final, SpeechEnded, SpeechStarted, Transcript
from asr.heard import HeardAudio
from asr.listener import StreamOptions
from asr.samples import as_samples
from asr.second_pass import PendingFinal
from asr.segment import Segment
from asr.slots import Slot
from asr.transducer_listener import open_listener
from asr.vad import VadResult
from asr.waits import Waits
from asr.window import Window
from asr.words import token_start

SETTLE = SAMPLE_RATE  # the text may still change this long after the last speech
HEARD_MARGIN = SAMPLE_RATE // 5  # audio around speech that a segment's last decoding must have heard
REST = 2 * SAMPLE_RATE  # silence after which nothing is encoded until somebody speaks
STALL = 2 * SAMPLE_RATE  # so much speech without a word: the decoder has lost its place
STALL_AT_END = SAMPLE_RATE  # the same before a segment ends
DETECTION_SPEECH = 2 * SAMPLE_RATE  # heard before the language is detected

Outcome = Event | PendingFinal  # a PendingFinal is a Final whose second pass is still to be run
Then = Literal["listen", "flush", "finish"]
NO_SAMPLES = np.zeros(0, np.float32)


class Stream:
    """Recognises one stream of audio; made by :meth:`asr.recognizer.Recognizer.stream`."""

    def __init__(self, engine: Engine, options: StreamOptions, slot: Slot) -> None:
        """Start with nothing heard; ``slot`` is fresh."""
        self._engine = engine
        self._options = options
        self._listener = open_listener(engine, options, slot)
        self._speech = SpeechTracker(engine.vad, options.rules)
        self._audio = HeardAudio()
        self._pending = np.zeros(0, np.float32)  # fed but not heard yet
        self._n_fed = 0
        self._n_heard = 0  # with the silence after the last sample
        self._clock = 0  # samples heard when what happens now could be known, whatever the blocks
        self._ended_at: int | None = None  # end of speech whose segment waits for the last words' chunk
        self._is_unsettled = True  # the last reading changed the text
        self._in_pause = False  # the window may restart in the silence
        self._finished = False
        self._finals: list[Final] = []
        self._segment = Segment(0, start=0)
        self._must_detect = (
            options.language is None and options.transducer is None and engine.base_model.is_multilingual
        )
        self._flushed = 0  # samples fed when everything was made final
        self._rescued = 0  # speech up to here has been read again because no words came

    def feed(self, samples: np.ndarray) -> list[Event]:
        """Hear the next samples.

        Args:
            samples: Mono audio at 16 kHz: float32 in [-1, 1] or int16, of any length.

        Returns:
            What they changed, in order.

        Raises:
            AudioError: The samples are unusable; the stream is as before.
            OptionError: The stream is finished.
        """
        return self._alone(samples, "listen")

    def flush(self) -> list[Event]:
        """Make everything said so far final; the stream goes on.

        Returns:
            The events of what was still open.

        Raises:
            OptionError: The stream is finished.
        """
        return self._alone(NO_SAMPLES, "flush")

    def finish(self) -> list[Event]:
        """End the stream: everything said so far becomes final.

        Returns:
            The last events.

        Raises:
            OptionError: The stream is finished already.
        """
        return self._alone(NO_SAMPLES, "finish")

    @property
    def n_due(self) -> int:
        """Samples that are missing until the next chunk is full."""
        return self._window.due - self._n_heard

    @property
    def transcript(self) -> Transcript:
        """Everything final, and of the running segment what is committed."""
        finals = list(self._finals)
        if self._segment.tokens:
            end = max(self._now, self._segment.start)
            finals.append(self._segment.final(self._listener.vocabulary, end=end, now=self._now))
        return Transcript(tuple(finals), self._n_fed)

    @property
    def waits(self) -> Waits:
        """How long the transducer's frames waited; empty for Whisper's decoder."""
        return self._listener.waits

    @property
    def _window(self) -> Window:
        return self._listener.window

    @property
    def _now(self) -> int:
        """Samples heard when an event is made, without the silence after the last one."""
        return min(self._clock, self._n_fed)

    def check(self, samples: np.ndarray) -> np.ndarray:
        """The samples as float32, if the stream can hear them.

        Raises:
            AudioError: They are unusable.
            OptionError: The stream is finished.
        """
        if self._finished:
            raise OptionError("the stream is finished; start another with Recognizer.stream()")
        return as_samples(samples, heard=self._n_fed)

    def advance(self, samples: np.ndarray, then: Then) -> Task[list[Outcome]]:
        """The task that hears checked samples and does what is to be done after them.

        The stream is finished if the task fails.
        """
        events: list[Outcome] = []
        self._pending = np.concatenate([self._pending, samples])
        self._n_fed += len(samples)
        try:
            yield from self._hear_pending(events)
            if then == "flush":
                yield from self._flush(events)
            elif then == "finish":
                yield from self._finish(events)
        except Exception:
            self._finished = True
            raise
        return events

    def resolve(self, outcomes: Sequence[Outcome]) -> list[Event]:
        """Run second passes at once."""
        return [self._resolve(each) if isinstance(each, PendingFinal) else each for each in outcomes]

    def _resolve(self, pending: PendingFinal) -> Final:
        final = pending.run()
        self._finals[final.segment] = final
        return final

    def _alone(self, samples: np.ndarray, then: Then) -> list[Event]:
        outcome = self._engine.run([self.advance(self.check(samples), then)])[0]
        if isinstance(outcome, Exception):
            raise outcome
        return self.resolve(outcome)

    def _hear_pending(self, events: list[Outcome]) -> Task[None]:
        """Go on chunk by chunk until no full chunk is left."""
        while True:
            n_missing = self._window.due - self._n_heard
            if n_missing > 0 and len(self._pending):
                samples, self._pending = self._pending[:n_missing], self._pending[n_missing:]
                yield from self._hear(samples, events)
            if self._n_heard < self._window.due:
                return
            if self._is_resting:
                self._listener.rest(self._speech.ended + WORD_MARGIN)
            elif self._listener.is_full:
                yield from self._restart_in_speech()
            elif self._in_pause and self._listener.is_long:
                self._listener.restart_in_pause(self._speech.ended + WORD_MARGIN)
                self._in_pause = False
            if self._n_heard >= self._window.due:
                yield from self._encode()
                yield from self._take(events)

    @property
    def _is_resting(self) -> bool:
        """Whether nobody speaks, nothing is open, and the silence is long enough that it needs no frames."""
        is_open = self._segment.begun is not None or self._segment.tokens or self._ended_at is not None
        may_rest = self._options.adaptive and self._listener.can_rest and not is_open
        return may_rest and self._speech.silent_for(REST)

    def _encode(self) -> Task[None]:
        frames = yield self._window.next_job()
        assert isinstance(frames, Tensor), "the answer to a window's job is frames"
        self._listener.accept(frames)

    def _finish(self, events: list[Outcome]) -> Task[None]:
        self._finished = True
        while self._window.end < self._n_fed + self._listener.end_silence:
            if self._is_resting and self._n_heard >= self._n_fed:
                break
            self._pending = np.zeros(self._window.due - self._n_heard, np.float32)
            yield from self._hear_pending(events)
        yield from self._decode_undetected(events)
        if (yield from self._restart_if_stalled(STALL_AT_END)):
            yield from self._hear_pending(events)
        if self._speech.speaking:
            events.append(SpeechEnded(min(self._speech.ended, self._n_fed)))
        tokens = yield from self._listener.finish()
        if self._segment.begun is not None:
            self._segment.tokens += tokens
        yield from self._close(events, end=self._n_fed, spoken_until=self._n_fed)

    def _flush(self, events: list[Outcome]) -> Task[None]:
        """Read what has been heard as if silence followed, make it final, and take the silence back."""
        if self._n_fed == self._flushed or (self._segment.begun is None and not self._segment.tokens):
            return
        self._flushed = self._n_fed
        if self._must_detect:
            self._detect_language()
        self._segment.tokens += yield from self._listener.before_flush()
        if self._listener.is_full:
            yield from self._restart_in_speech()
        mark, n_heard = self._window.mark(), self._n_heard
        end = self._n_fed + self._listener.end_silence
        while self._window.end < end and not self._listener.is_full:
            silence = torch.zeros(1, max(0, self._window.due - n_heard))
            self._listener.hear(silence)
            n_heard += silence.shape[1]
            yield from self._encode()
        self._segment.tokens += yield from self._listener.flush(n_in_segment=len(self._segment.tokens))
        yield from self._close(events, end=self._n_fed, spoken_until=self._n_fed)
        if self._segment.start == self._n_fed and self._segment.begun is not None:
            self._segment.begun = self._n_fed  # the speech before is final now
            self._listener.forget_final_mark()
        self._window.go_back(mark)

    def _restart_in_speech(self) -> Task[None]:
        """Move the window on to a few seconds ago; what is open will be read again."""
        if self._listener.has_old_draft:
            self._segment.tokens += self._listener.commit_draft()
        yield from self._align()
        self._listener.restart_in_speech()

    def _hear(self, samples: np.ndarray, events: list[Outcome]) -> Task[None]:
        signal = torch.from_numpy(samples)[None]
        self._n_heard += len(samples)
        self._listener.hear(signal)
        if self._options.second_pass or self._must_detect:
            self._audio.append(samples)
        job = self._speech.hear(signal)
        if job is not None:
            result = yield job
            assert isinstance(result, VadResult), "the answer to a detector's job is its result"
            yield from self._follow(result, events)
        self._clock = self._n_heard
        begun = self._segment.begun
        self._audio.forget((self._n_heard - SAMPLE_RATE if begun is None else begun) - HEARD_MARGIN)

    def _follow(self, result: VadResult, events: list[Outcome]) -> Task[None]:
        """Notice where speech starts and ends."""
        for change in self._speech.judge(result):
            self._clock = change.noticed
            if change.is_start:
                events.append(SpeechStarted(min(change.time, self._n_fed)))
                self._in_pause = False
                if self._segment.begun is None:
                    self._segment.begun = change.time
            else:
                events.append(SpeechEnded(min(change.time, self._n_fed)))
                self._ended_at = change.time
                yield from self._close_if_heard(events)

    def _take(self, events: list[Outcome]) -> Task[None]:
        """Look at a new chunk: decode if there may be news, and end the segment where it is due."""
        begun = self._segment.begun
        if begun is None:
            yield from self._listener.skip()
        elif self._may_hear_news:
            if self._must_detect and self._window.end >= begun + DETECTION_SPEECH:
                self._detect_language()
            if not self._must_detect:
                yield from self._decode(events)
                yield from self._restart_if_stalled(STALL)
        yield from self._close_if_heard(events)
        yield from self._close_if_long(events)

    @property
    def _may_hear_news(self) -> bool:
        """Whether frames may change the text: of speech not read yet, or after a reading that changed it."""
        decoded, ended = self._listener.decoded, self._speech.ended
        if self._options.adaptive and not self._is_unsettled and decoded >= ended + HEARD_MARGIN:
            return False
        return decoded < ended + SETTLE

    def _detect_language(self) -> None:
        assert self._segment.begun is not None
        _, samples = self._audio.read(self._segment.begun - HEARD_MARGIN, self._n_heard)
        self._listener.set_language(offline.detect_language(self._engine.base_model, samples))
        self._must_detect = False

    def _decode(self, events: list[Outcome]) -> Task[None]:
        before = [token.id for token in self._listener.draft]
        tokens = yield from self._listener.decode(n_in_segment=len(self._segment.tokens))
        self._segment.tokens += tokens
        self._is_unsettled = [token.id for token in (*tokens, *self._listener.draft)] != before
        events += self._segment.show(self._listener.draft, self._listener.vocabulary, now=self._now)

    def _decode_undetected(self, events: list[Outcome]) -> Task[None]:
        """At the end of speech too short for it, find the language all the same and read."""
        if self._must_detect and self._segment.begun is not None:
            self._detect_language()
            yield from self._decode(events)

    def _restart_if_stalled(self, n_samples: int) -> Task[bool]:
        """Read the newest speech again if ``n_samples`` of it gave no word; once for each stretch of it."""
        begun = self._segment.begun
        last = max(self._listener.last_peak, self._rescued, 0 if begun is None else begun)
        if self._must_detect or begun is None or self._speech.ended - last < n_samples:
            return False
        self._segment.tokens += self._listener.commit_draft()
        yield from self._align()
        self._listener.restart_after(last)
        self._rescued = self._speech.ended
        return True

    def _close_if_heard(self, events: list[Outcome]) -> Task[None]:
        """End the segment after a silence, once its last words have been decoded."""
        if self._ended_at is None or self._listener.heard < self._ended_at + HEARD_MARGIN:
            return
        yield from self._decode_undetected(events)
        if (yield from self._restart_if_stalled(STALL_AT_END)):
            return
        self._segment.tokens += self._listener.commit_draft()
        yield from self._close(events, end=self._now, spoken_until=self._ended_at + HEARD_MARGIN)
        self._ended_at = None
        self._in_pause = not self._speech.speaking

    def _close_if_long(self, events: list[Outcome]) -> Task[None]:
        """End the segment before it gets longer than the rules allow; its open words go to the next one."""
        begun = self._segment.begun
        if begun is None or self._window.next_end - begun < self._options.rules.max_segment:
            return
        if not self._segment.tokens:
            self._segment.tokens += self._listener.commit_draft()
        yield from self._align()
        draft = self._listener.draft
        boundary = min(self._now, token_start(draft[0])) if draft else self._now
        boundary = max([boundary, *(token.span[1] for token in self._segment.tokens[-1:] if token.span)])
        yield from self._close(events, end=boundary, spoken_until=boundary)
        self._segment.begun = boundary

    def _close(self, events: list[Outcome], *, end: int, spoken_until: int) -> Task[None]:
        """Make the committed words final."""
        segment = self._segment
        if segment.tokens:
            yield from self._align()
            final = segment.final(self._listener.vocabulary, end=end, now=self._now)
            self._finals.append(final)
            events.append(self._second_pass(final, spoken_until) if self._options.second_pass else final)
            self._segment = Segment(segment.index + 1, start=end)
        self._segment.begun = self._speech.started if self._speech.speaking else None

    def _second_pass(self, final: Final, end: int) -> PendingFinal:
        begun = final.start if self._segment.begun is None else self._segment.begun
        start = max(final.start, begun - HEARD_MARGIN, end - offline.WINDOW_SAMPLES)
        origin, samples = self._audio.read(start, min(end, self._n_fed))
        return PendingFinal(final, samples, origin, self._engine.base_model, self._listener.text)

    def _align(self) -> Task[None]:
        """Find the times of the segment's words that have none yet, while their frames are there."""
        tokens = self._segment.tokens
        n_new = sum(token.span is None for token in tokens)
        if n_new == 0:
            return
        tokens[-n_new:] = yield from self._listener.align(tokens[-n_new:], start=self._unaligned_from())

    def _unaligned_from(self) -> int:
        """Sample before which no word without times was said."""
        aligned = [token.span[1] for token in self._segment.tokens if token.span]
        begun = self._segment.begun
        return max(self._segment.start, *aligned[-1:], 0 if begun is None else begun - WORD_MARGIN)
