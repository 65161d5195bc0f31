"""One stream: samples in, events out. All its state lives here; the weights are shared and never change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from whisper.model import Whisper
from whisper.tokenizer import get_tokenizer

from asr import offline
from asr.anchor import WORD_MARGIN, Anchor, anchor_in_pause, anchor_in_speech
from asr.decoder import Decoder
from asr.encoder import CausalEncoder, Chunking, EncoderState
from asr.endpoint import EndpointRules, SpeechTracker
from asr.errors import OptionError
from asr.events import SAMPLE_RATE, Event, Final, SpeechEnded, SpeechStarted, Transcript
from asr.features import LogMel
from asr.heard import HeardAudio
from asr.rules import default_rules
from asr.samples import as_samples
from asr.search import Search
from asr.segment import Segment
from asr.vad import SileroVad
from asr.window import EncoderJob, Window, run_jobs
from asr.words import Token, Vocabulary, align_tokens, token_start

LAST_POSITION_SHARE = 28 / 30  # of the encoder's positions; then the window restarts
LONG_WINDOW = 15 * SAMPLE_RATE  # a window longer than this restarts in the next pause
SETTLE = SAMPLE_RATE  # the text may still change this long after the last speech
HEARD_MARGIN = SAMPLE_RATE // 5  # audio around speech that a segment's last decoding must have heard
FINISH_SILENCE = 3 * SAMPLE_RATE // 10  # put after the last sample
DETECTION_SPEECH = 2 * SAMPLE_RATE  # heard before the language is detected
MAX_CARRIED_TOKENS = 64  # committed text that a new window gets as prompt
MAX_PROMPT_TOKENS = 64  # of the caller's prompt


@dataclass(frozen=True)
class Engine:
    """What all streams share: weights and stateless parts."""

    base_model: Whisper
    encoder: CausalEncoder
    decoder: Decoder
    log_mel: LogMel
    vad: SileroVad

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.weights.positional_embedding.device


@dataclass(frozen=True)
class StreamOptions:
    """How one stream recognises; :meth:`asr.recognizer.Recognizer.stream` checks the values."""

    chunking: Chunking
    beam_size: int = 1
    open_tokens: int = 2
    language: str | None = None
    prompt: str | None = None
    second_pass: bool = False
    rules: EndpointRules = field(default_factory=EndpointRules)
    carry_prompt: bool = True  # a new window gets the text before it as prompt


class Stream:
    """Recognises one stream of audio; made by :meth:`asr.recognizer.Recognizer.stream`."""

    def __init__(self, engine: Engine, options: StreamOptions) -> None:
        """Start with nothing heard."""
        self._engine = engine
        self._options = options
        self._window = Window(engine.encoder, engine.decoder, engine.log_mel, options.chunking)
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
        self._context: list[int] = []  # newest committed tokens, of this window and before
        self._must_detect = options.language is None and engine.base_model.is_multilingual
        self._set_language(options.language or "en")

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
            if self._speech.speaking:
                events.append(SpeechEnded(min(self._speech.ended, self._n_fed)))
            self._commit(self._search.commit(len(self._search.draft)))
            self._close(events, end=self._n_fed, spoken_until=self._n_fed)
        return events

    @property
    def transcript(self) -> Transcript:
        """Everything final, and of the running segment what is committed."""
        finals = list(self._finals)
        if self._segment.tokens:
            end = max(self._now, self._segment.start)
            finals.append(self._segment.final(self._vocabulary, end=end, now=self._now))
        return Transcript(tuple(finals), self._n_fed)

    @property
    def _now(self) -> int:
        """Samples heard when an event is made, without the silence after the last one."""
        return min(self._clock, self._n_fed)

    def _check_open(self) -> None:
        if self._finished:
            raise OptionError("the stream is finished; start another with Recognizer.stream()")

    def _set_language(self, language: str) -> None:
        """Take the tokenizer of a language and start the search afresh."""
        model, decoder, options = self._engine.base_model, self._engine.decoder, self._options
        self._tokenizer = get_tokenizer(
            model.is_multilingual, num_languages=model.num_languages, language=language, task="transcribe"
        )
        self._vocabulary = Vocabulary(self._tokenizer)
        n_vocab = decoder.weights.token_embedding.num_embeddings
        self._search = Search(
            decoder,
            default_rules(self._tokenizer, n_vocab=n_vocab, device=self._engine.device),
            self._vocabulary,
            eot=self._tokenizer.eot,
            beam_size=options.beam_size,
            open_tokens=options.open_tokens,
        )
        self._search.restart(self._prefix(0), origin=self._window.origin)

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
            self._restart_window_if_needed()
            if self._n_heard >= self._window.due:
                return self._window.next_job()

    def _hear(self, samples: np.ndarray, events: list[Event]) -> None:
        signal = torch.from_numpy(samples)[None]
        self._n_heard += len(samples)
        self._window.hear(signal.to(self._engine.device))
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
        self._window.accept(frames, state)
        begun = self._segment.begun
        if begun is not None and self._decoded < self._speech.ended + SETTLE:
            is_language_clear = not self._must_detect or self._window.end >= begun + DETECTION_SPEECH
            if is_language_clear:
                self._decode(events)
        self._close_if_heard(events)
        self._close_if_long(events)

    def _decode(self, events: list[Event]) -> None:
        if self._must_detect and self._segment.begun is not None:
            _, samples = self._audio.read(self._segment.begun - HEARD_MARGIN, self._n_heard)
            self._set_language(offline.detect_language(self._engine.base_model, samples))
            self._must_detect = False
        self._decoded = self._window.end
        self._commit(self._search.advance(self._window.cross))
        events += self._segment.show(self._search.draft, self._vocabulary, now=self._now)

    def _commit(self, tokens: Sequence[Token]) -> None:
        self._segment.tokens += tokens
        self._context = [*self._context, *(token.id for token in tokens)][-2 * MAX_CARRIED_TOKENS :]

    def _close_if_heard(self, events: list[Event]) -> None:
        """End the segment after a silence, once its last words have been decoded."""
        if self._ended_at is None or self._window.end < self._ended_at + HEARD_MARGIN:
            return
        if self._must_detect and self._segment.begun is not None:
            self._decode(events)
        self._commit(self._search.commit(len(self._search.draft)))
        self._close(events, end=self._now, spoken_until=self._ended_at + HEARD_MARGIN)
        self._ended_at = None
        self._in_pause = not self._speech.speaking

    def _close_if_long(self, events: list[Event]) -> None:
        """End the segment before it gets longer than the rules allow; its open words go to the next one."""
        begun = self._segment.begun
        if begun is None or self._window.next_end - begun < self._options.rules.max_segment:
            return
        if not self._segment.tokens:
            self._commit(self._search.commit(len(self._search.draft)))
        self._align()
        draft = self._search.draft
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
            final = segment.final(self._vocabulary, end=end, now=self._now, replacement=better)
            self._finals.append(final)
            events.append(final)
            self._segment = Segment(segment.index + 1, start=end)
        self._segment.begun = None

    def _second_pass(self, end: int) -> list[Token] | None:
        segment = self._segment
        begun = segment.start if segment.begun is None else segment.begun
        start = max(segment.start, begun - HEARD_MARGIN, end - offline.WINDOW_SAMPLES)
        origin, samples = self._audio.read(start, min(end, self._n_fed))
        return offline.retranscribe(self._engine.base_model, self._tokenizer, samples, origin=origin)

    def _align(self) -> None:
        """Find the times of the segment's words that have none yet, while their frames are there."""
        tokens = self._segment.tokens
        n_new = sum(token.span is None for token in tokens)
        if n_new == 0:
            return
        tokens[-n_new:] = align_tokens(
            tokens[-n_new:],
            self._search.attention(n_new, self._window.cross),
            start=self._unaligned_from(),
            origin=self._window.origin,
        )
        self._search.set_times(tokens[-n_new:])

    def _unaligned_from(self) -> int:
        """Sample before which no word without times was said."""
        aligned = [token.span[1] for token in self._segment.tokens if token.span]
        begun = self._segment.begun
        return max(self._segment.start, *aligned[-1:], 0 if begun is None else begun - WORD_MARGIN)

    def _restart_window_if_needed(self) -> None:
        """Move the anchor while there are positions left: in a pause if there is one, else in speech."""
        window = self._window
        last = int(window.n_ctx * LAST_POSITION_SHARE)
        if window.position + window.n_next > last or self._search.is_full:
            self._restart_in_speech()
        elif self._in_pause and window.end - window.origin > LONG_WINDOW:
            self._in_pause = False
            anchor = anchor_in_pause(
                self._speech.ended + WORD_MARGIN, end=window.next_end, chunking=self._options.chunking
            )
            self._restart(anchor, [])

    def _restart_in_speech(self) -> None:
        self._align()
        committed, draft = self._search.committed, self._search.draft
        starts = self._vocabulary.word_starts([token.id for token in committed])
        anchor = anchor_in_speech(
            [token_start(committed[i]) for i in starts],
            open_start=token_start(draft[0]) if draft else None,
            end=self._window.next_end,
            chunking=self._options.chunking,
        )
        kept = [i for i in starts if token_start(committed[i]) >= anchor.start]
        self._restart(anchor, committed[kept[0] :] if kept else [])
        self._decoded = 0

    def _restart(self, anchor: Anchor, kept: Sequence[Token]) -> None:
        self._window.restart(anchor.start // LogMel.block_size, n_frames=anchor.n_frames)
        self._search.restart(self._prefix(len(kept)), kept, origin=anchor.start)

    def _prefix(self, n_kept: int) -> list[int]:
        """Prompt and start tokens of a window whose first ``n_kept`` tokens are committed already."""
        prompt: list[int] = []
        if self._options.prompt and self._options.prompt.strip():
            prompt += self._tokenizer.encode(" " + self._options.prompt.strip())[-MAX_PROMPT_TOKENS:]
        if self._options.carry_prompt:
            before = self._context[: len(self._context) - n_kept]
            n_extra = max(0, len(before) - MAX_CARRIED_TOKENS)
            whole = [i for i in self._vocabulary.word_starts(before) if i >= n_extra]
            prompt += before[whole[0] :] if whole else []
        start = list(self._tokenizer.sot_sequence_including_notimestamps)
        return [self._tokenizer.sot_prev, *prompt, *start] if prompt else start


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
