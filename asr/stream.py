"""One stream: samples in, events out. All its state lives here; the weights are shared and never change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from asr import offline
from asr.anchor import WORD_MARGIN
from asr.encoder import EncoderState
from asr.endpoint import SpeechTracker
from asr.errors import OptionError
from asr.events import SAMPLE_RATE, Event, Final, SpeechEnded, SpeechStarted, Transcript
from asr.heard import HeardAudio
from asr.listener import Engine, Listener, StreamOptions
from asr.samples import as_samples
from asr.segment import Segment
from asr.window import EncoderJob, Window, run_jobs
from asr.words import Token, token_start

SETTLE = SAMPLE_RATE  # the text may still change this long after the last speech
HEARD_MARGIN = SAMPLE_RATE // 5  # audio around speech that a segment's last decoding must have heard
STALL = 2 * SAMPLE_RATE  # so much speech without a word: the decoder has lost its place
STALL_AT_END = SAMPLE_RATE  # the same before a segment ends
FINISH_SILENCE = 3 * SAMPLE_RATE // 10  # put after the last sample
DETECTION_SPEECH = 2 * SAMPLE_RATE  # heard before the language is detected


class Stream:
    """Recognises one stream of audio; made by :meth:`asr.recognizer.Recognizer.stream`."""

    def __init__(self, engine: Engine, options: StreamOptions) -> None:
        """Start with nothing heard."""
        self._engine = engine
        self._options = options
        self._listener = Listener(engine, options)
        self._speech = SpeechTracker(engine.vad, options.rules)
        self._audio = HeardAudio()
        self._pending = np.zeros(0, np.float32)  # fed but not heard yet
        self._n_fed = 0
        self._n_heard = 0  # with the silence after the last sample
        self._clock = 0  # samples heard when what happens now could be known, whatever the blocks
        self._decoded = 0  # sample up to which the decoder has heard
        self._ended_at: int | None = None  # end of speech whose segment waits for the last words' chunk
        self._in_pause = False  # the window may restart in the silence
        self._finished = False
        self._finals: list[Final] = []
        self._segment = Segment(0, start=0)
        self._must_detect = options.language is None and engine.base_model.is_multilingual
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
        return step_batch(self._engine, [(self, samples)])[0]

    def finish(self) -> list[Event]:
        """End the stream: everything said so far becomes final.

        Returns:
            The last events.

        Raises:
            OptionError: The stream is finished already.
        """
        self._check_open()
        self._finished = True
        events: list[Event] = []
        with torch.inference_mode():
            while self._window.end < self._n_fed + FINISH_SILENCE:
                self._pending = np.zeros(self._window.due - self._n_heard, np.float32)
                _run(self._engine, [self], [events])
            if self._must_detect and self._segment.begun is not None:
                self._decode(events)
            if self._restart_if_stalled(STALL_AT_END):
                _run(self._engine, [self], [events])
            if self._speech.speaking:
                events.append(SpeechEnded(min(self._speech.ended, self._n_fed)))
            self._segment.tokens += self._listener.commit_draft()
            self._close(events, end=self._n_fed, spoken_until=self._n_fed)
        return events

    @property
    def transcript(self) -> Transcript:
        """Everything final, and of the running segment what is committed."""
        finals = list(self._finals)
        if self._segment.tokens:
            end = max(self._now, self._segment.start)
            finals.append(self._segment.final(self._listener.vocabulary, end=end, now=self._now))
        return Transcript(tuple(finals), self._n_fed)

    @property
    def _window(self) -> Window:
        return self._listener.window

    @property
    def _now(self) -> int:
        """Samples heard when an event is made, without the silence after the last one."""
        return min(self._clock, self._n_fed)

    def _check_open(self) -> None:
        if self._finished:
            raise OptionError("the stream is finished; start another with Recognizer.stream()")

    def _put(self, samples: np.ndarray) -> None:
        """Queue samples that :func:`as_samples` has checked."""
        self._pending = np.concatenate([self._pending, samples])
        self._n_fed += len(samples)

    def _next_job(self, events: list[Event]) -> EncoderJob | None:
        """Hear pending samples until the next chunk is full; None when they run out."""
        while True:
            n_missing = self._window.due - self._n_heard
            if n_missing > 0 and len(self._pending):
                self._hear(self._pending[:n_missing], events)
                self._pending = self._pending[n_missing:]
            if self._n_heard < self._window.due:
                return None
            if self._listener.is_full:
                if self._listener.has_old_draft:
                    self._segment.tokens += self._listener.commit_draft()
                self._align()
                self._listener.restart_in_speech()
                self._decoded = 0
            elif self._in_pause and self._listener.is_long:
                self._listener.restart_in_pause(self._speech.ended + WORD_MARGIN)
                self._in_pause = False
            if self._n_heard >= self._window.due:
                return self._listener.next_job()

    def _hear(self, samples: np.ndarray, events: list[Event]) -> None:
        signal = torch.from_numpy(samples)[None]
        self._n_heard += len(samples)
        self._listener.hear(signal)
        if self._options.second_pass or self._must_detect:
            self._audio.append(samples)
        for change in self._speech.hear(signal):
            self._clock = change.noticed
            if change.is_start:
                events.append(SpeechStarted(min(change.time, self._n_fed)))
                self._in_pause = False
                if self._segment.begun is None:
                    self._segment.begun = change.time
            else:
                events.append(SpeechEnded(min(change.time, self._n_fed)))
                self._ended_at = change.time
                self._close_if_heard(events)
        self._clock = self._n_heard
        begun = self._segment.begun
        self._audio.forget((self._n_heard - SAMPLE_RATE if begun is None else begun) - HEARD_MARGIN)

    def _take(self, frames: Tensor, state: EncoderState, events: list[Event]) -> None:
        """Take an encoded chunk: decode if there may be news, and end the segment where it is due."""
        self._listener.accept(frames, state)
        begun = self._segment.begun
        if begun is not None and self._decoded < self._speech.ended + SETTLE:
            is_language_clear = not self._must_detect or self._window.end >= begun + DETECTION_SPEECH
            if is_language_clear:
                self._decode(events)
                self._restart_if_stalled(STALL)
        self._close_if_heard(events)
        self._close_if_long(events)

    def _decode(self, events: list[Event]) -> None:
        if self._must_detect and self._segment.begun is not None:
            _, samples = self._audio.read(self._segment.begun - HEARD_MARGIN, self._n_heard)
            self._listener.set_language(offline.detect_language(self._engine.base_model, samples))
            self._must_detect = False
        self._decoded = self._window.end
        self._segment.tokens += self._listener.decode(n_in_segment=len(self._segment.tokens))
        events += self._segment.show(self._listener.draft, self._listener.vocabulary, now=self._now)

    def _restart_if_stalled(self, n_samples: int) -> bool:
        """Read the newest speech again if ``n_samples`` of it gave no word; once for each stretch of it."""
        begun = self._segment.begun
        last = max(self._listener.last_peak, self._rescued, 0 if begun is None else begun)
        if self._must_detect or begun is None or self._speech.ended - last < n_samples:
            return False
        self._segment.tokens += self._listener.commit_draft()
        self._align()
        self._listener.restart_after(last)
        self._rescued = self._speech.ended
        self._decoded = 0
        return True

    def _close_if_heard(self, events: list[Event]) -> None:
        """End the segment after a silence, once its last words have been decoded."""
        if self._ended_at is None or self._window.end < self._ended_at + HEARD_MARGIN:
            return
        if self._must_detect and self._segment.begun is not None:
            self._decode(events)
        if self._restart_if_stalled(STALL_AT_END):
            return
        self._segment.tokens += self._listener.commit_draft()
        self._close(events, end=self._now, spoken_until=self._ended_at + HEARD_MARGIN)
        self._ended_at = None
        self._in_pause = not self._speech.speaking

    def _close_if_long(self, events: list[Event]) -> None:
        """End the segment before it gets longer than the rules allow; its open words go to the next one."""
        begun = self._segment.begun
        if begun is None or self._window.next_end - begun < self._options.rules.max_segment:
            return
        if not self._segment.tokens:
            self._segment.tokens += self._listener.commit_draft()
        self._align()
        draft = self._listener.draft
        boundary = min(self._now, token_start(draft[0])) if draft else self._now
        boundary = max([boundary, *(token.span[1] for token in self._segment.tokens[-1:] if token.span)])
        self._close(events, end=boundary, spoken_until=boundary)
        self._segment.begun = boundary

    def _close(self, events: list[Event], *, end: int, spoken_until: int) -> None:
        """Make the committed words final."""
        segment = self._segment
        if segment.tokens:
            self._align()
            better = self._second_pass(spoken_until) if self._options.second_pass else None
            final = segment.final(self._listener.vocabulary, end=end, now=self._now, replacement=better)
            self._finals.append(final)
            events.append(final)
            self._segment = Segment(segment.index + 1, start=end)
        self._segment.begun = self._speech.started if self._speech.speaking else None

    def _second_pass(self, end: int) -> list[Token] | None:
        segment = self._segment
        begun = segment.start if segment.begun is None else segment.begun
        start = max(segment.start, begun - HEARD_MARGIN, end - offline.WINDOW_SAMPLES)
        origin, samples = self._audio.read(start, min(end, self._n_fed))
        return offline.retranscribe(self._engine.base_model, self._listener.tokenizer, samples, origin=origin)

    def _align(self) -> None:
        """Find the times of the segment's words that have none yet, while their frames are there."""
        tokens = self._segment.tokens
        n_new = sum(token.span is None for token in tokens)
        if n_new == 0:
            return
        tokens[-n_new:] = self._listener.align(tokens[-n_new:], start=self._unaligned_from())

    def _unaligned_from(self) -> int:
        """Sample before which no word without times was said."""
        aligned = [token.span[1] for token in self._segment.tokens if token.span]
        begun = self._segment.begun
        return max(self._segment.start, *aligned[-1:], 0 if begun is None else begun - WORD_MARGIN)


def step_batch(engine: Engine, pairs: Sequence[tuple[Stream, np.ndarray]]) -> list[list[Event]]:
    """Feed many streams; every chunk they complete is encoded in one call per shape.

    Args:
        engine: The streams' recogniser.
        pairs: Streams, each at most once, and their next samples as in :meth:`Stream.feed`.

    Returns:
        Each stream's events, exactly as if it were alone.

    Raises:
        AudioError: Samples of one stream are unusable; no stream has heard anything.
        OptionError: A stream is finished or given twice.
    """
    streams = [stream for stream, _ in pairs]
    if len(set(map(id, streams))) < len(streams):
        raise OptionError("a stream is given twice in one batch; join its samples")
    for stream in streams:
        stream._check_open()
    checked = [as_samples(samples, heard=stream._n_fed) for stream, samples in pairs]
    events: list[list[Event]] = [[] for _ in streams]
    for stream, samples in zip(streams, checked, strict=True):
        stream._put(samples)
    with torch.inference_mode():
        _run(engine, streams, events)
    return events


def _run(engine: Engine, streams: Sequence[Stream], events: Sequence[list[Event]]) -> None:
    """Advance streams chunk by chunk until none has a full chunk left."""
    active = list(range(len(streams)))
    while active:
        jobs = [(i, job) for i in active if (job := streams[i]._next_job(events[i]))]
        results = run_jobs(engine.encoder, [job for _, job in jobs])
        for (i, _), (frames, state) in zip(jobs, results, strict=True):
            streams[i]._take(frames, state, events[i])
        active = [i for i, _ in jobs]
