"""One stream: samples in, events out. All its state lives here; the weights are shared and never change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer, get_tokenizer

from asr.anchor import WORD_MARGIN, Anchor, anchor_in_pause, anchor_in_speech
from asr.decoder import Decoder
from asr.encoder import CausalEncoder, Chunking, EncoderState
from asr.endpoint import EndpointRules, SpeechTracker
from asr.errors import OptionError
from asr.events import SAMPLE_RATE, Event, Final, Partial, SpeechEnded, SpeechStarted, Transcript
from asr.features import LogMel
from asr.rules import default_rules
from asr.samples import as_samples
from asr.search import Search
from asr.segment import Segment
from asr.vad import SileroVad
from asr.window import EncoderJob, Window, run_jobs
from asr.words import LEAD_SAMPLES, Token, Vocabulary, align_tokens, build_words, token_start

LAST_POSITION_SHARE = 28 / 30  # of the encoder's positions; then the window restarts
LONG_WINDOW = 15 * SAMPLE_RATE  # a window longer than this restarts in the next pause
SETTLE = SAMPLE_RATE  # the text may still change this long after the last speech
HEARD_MARGIN = SAMPLE_RATE // 5  # audio after speech that a segment's last decoding must have heard
FINISH_SILENCE = 3 * SAMPLE_RATE // 10  # put after the last sample
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
    """How one stream recognises; validated by :meth:`asr.recognizer.Recognizer.stream`."""

    chunking: Chunking
    beam_size: int = 1
    open_tokens: int = 2
    language: str | None = None
    prompt: str | None = None
    second_pass: bool = False
    rules: EndpointRules = field(default_factory=EndpointRules)
    carry_prompt: bool = True  # give a new window the text before it as prompt


class Stream:
    """Recognises one stream of audio; made by :meth:`asr.recognizer.Recognizer.stream`."""

    def __init__(self, engine: Engine, options: StreamOptions) -> None:
        """Start with nothing heard."""
        self._engine = engine
        self._options = options
        self._tokenizer = _tokenizer(engine.base_model, options.language)
        self._vocabulary = Vocabulary(self._tokenizer)
        self._window = Window(engine.encoder, engine.decoder, engine.log_mel, options.chunking)
        n_vocab = engine.decoder.weights.token_embedding.num_embeddings
        self._search = Search(
            engine.decoder,
            default_rules(self._tokenizer, n_vocab=n_vocab, device=engine.device),
            self._vocabulary,
            eot=self._tokenizer.eot,
            beam_size=options.beam_size,
            open_tokens=options.open_tokens,
        )
        self._speech = SpeechTracker(engine.vad, options.rules)
        self._pending = np.zeros(0, np.float32)  # fed but not heard yet
        self._n_fed = 0
        self._n_heard = 0  # with the silence after the last sample
        self._decoded = 0  # sample up to which the decoder has heard
        self._ended_at: int | None = None  # end of speech whose segment waits for the last words' chunk
        self._in_pause = False  # the window may restart in the silence
        self._finished = False
        self._finals: list[Final] = []
        self._segment = Segment(0, start=0)
        self._shown = ("", "")
        self._context: list[int] = []  # newest committed tokens, of this window and before
        self._search.restart(self._prefix(0))

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
        events: list[Event] = []
        with torch.inference_mode():
            while self._window.end < self._n_fed + FINISH_SILENCE:
                self._pending = np.zeros(self._window.due - self._n_heard, np.float32)
                _run(self._engine, [self], [events])
            if self._speech.speaking:
                events.append(SpeechEnded(min(self._speech.ended, self._n_fed)))
            self._commit(self._search.commit(len(self._search.draft)))
            self._close(self._n_fed, events)
        self._finished = True
        return events

    @property
    def transcript(self) -> Transcript:
        """Everything final, and of the running segment what is committed."""
        finals = list(self._finals)
        if self._segment.tokens:
            finals.append(self._final(end=max(self._now, self._segment.start)))
        return Transcript(tuple(finals), self._n_fed)

    @property
    def _now(self) -> int:
        """Samples heard, without the silence after the last one."""
        return min(self._n_heard, self._n_fed)

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
            self._restart_window_if_needed()
            if self._n_heard >= self._window.due:
                return self._window.next_job()

    def _hear(self, samples: np.ndarray, events: list[Event]) -> None:
        signal = torch.from_numpy(samples)[None]
        self._n_heard += len(samples)
        self._window.hear(signal.to(self._engine.device))
        for kind, time in self._speech.hear(signal):
            if kind == "start":
                events.append(SpeechStarted(time))
                if self._segment.begun is None:
                    self._segment.begun = time
            else:
                events.append(SpeechEnded(min(time, self._n_fed)))
                self._ended_at = time
                self._close_if_heard(events)

    def _take(self, frames: Tensor, state: EncoderState, events: list[Event]) -> None:
        """Take an encoded chunk: decode, and end the segment where it is due."""
        self._window.accept(frames, state)
        if self._segment.begun is not None and self._decoded < self._speech.ended + SETTLE:
            self._decoded = self._window.end
            self._commit(self._search.advance(self._window.cross))
            self._show(events)
        self._close_if_heard(events)
        self._close_if_long(events)

    def _commit(self, tokens: Sequence[Token]) -> None:
        self._segment.tokens += tokens
        self._context = [*self._context, *(token.id for token in tokens)][-2 * MAX_CARRIED_TOKENS :]

    def _show(self, events: list[Event]) -> None:
        """Tell the running segment's text if it changed."""
        tokens = [*self._segment.tokens, *self._search.draft]
        n_committed = len(self._segment.tokens)
        committed = self._vocabulary.text(token.id for token in tokens[:n_committed]).lstrip()
        draft = self._vocabulary.text(token.id for token in tokens).lstrip()[len(committed) :]
        if (committed, draft) == self._shown:
            return
        self._shown = (committed, draft)
        words = build_words(
            tokens, self._vocabulary, n_committed=n_committed, start=self._segment.start, end=self._now
        )
        events.append(Partial(self._segment.index, committed, draft, words, self._now))

    def _close_if_heard(self, events: list[Event]) -> None:
        """End the segment after a silence, once its last words have been decoded."""
        if self._ended_at is None or self._window.end < self._ended_at + HEARD_MARGIN:
            return
        self._ended_at = None
        self._in_pause = True
        self._commit(self._search.commit(len(self._search.draft)))
        self._close(self._now, events)

    def _close_if_long(self, events: list[Event]) -> None:
        """End the segment before it gets longer than the rules allow; its open words go to the next one."""
        begun = self._segment.begun
        if begun is None or self._window.next_end - begun < self._options.rules.max_segment:
            return
        if not self._segment.tokens:
            self._commit(self._search.commit(len(self._search.draft)))
        draft = self._search.draft
        boundary = min(self._now, draft[0].peak - LEAD_SAMPLES) if draft else self._now
        self._close(max(boundary, self._segment.start + 1), events)
        self._segment.begun = self._segment.start

    def _close(self, end: int, events: list[Event]) -> None:
        """Make the committed words final."""
        if self._segment.tokens:
            self._align()
            final = self._final(end)
            self._finals.append(final)
            events.append(final)
            self._segment = Segment(self._segment.index + 1, start=final.end)
            self._shown = ("", "")
        self._segment.begun = None

    def _final(self, end: int) -> Final:
        tokens = self._segment.tokens
        words = build_words(
            tokens, self._vocabulary, n_committed=len(tokens), start=self._segment.start, end=end
        )
        text = self._vocabulary.text(token.id for token in tokens).strip()
        return Final(self._segment.index, text, words, self._segment.start, end, False, self._now)

    def _align(self) -> None:
        """Find the times of the segment's words that have none yet, before their frames are gone."""
        tokens = self._segment.tokens
        n_new = sum(token.span is None for token in tokens)
        if n_new == 0:
            return
        start = max([self._segment.start, *(token.span[1] for token in tokens if token.span)])
        aligned = align_tokens(
            tokens[-n_new:],
            self._search.attention(n_new, self._window.cross),
            start=start,
            origin=self._window.origin,
        )
        tokens[-n_new:] = aligned
        self._search.set_times(aligned)

    def _restart_window_if_needed(self) -> None:
        """Move the anchor while there are positions left: in a pause if there is one, else in speech."""
        window = self._window
        last = int(window.n_ctx * LAST_POSITION_SHARE)
        if window.position + window.n_next > last or self._search.is_full:
            self._restart_in_speech()
        elif self._in_pause and window.end - window.origin > LONG_WINDOW:
            self._restart_in_pause()

    def _restart_in_speech(self) -> None:
        self._align()
        committed = self._search.committed
        starts = self._vocabulary.word_starts([token.id for token in committed])
        times = np.maximum.accumulate([token_start(committed[i]) for i in starts] or [0])[: len(starts)]
        draft = self._search.draft
        anchor = anchor_in_speech(
            times.tolist(),
            open_start=token_start(draft[0]) if draft else None,
            end=self._window.next_end,
            chunking=self._options.chunking,
        )
        kept = committed[starts[anchor.first_word] :] if anchor.first_word < len(starts) else []
        self._restart(anchor, kept)
        self._decoded = 0

    def _restart_in_pause(self) -> None:
        anchor = anchor_in_pause(
            len(self._search.committed),
            silent_since=self._speech.ended + WORD_MARGIN,
            end=self._window.next_end,
            chunking=self._options.chunking,
        )
        if not self._speech.speaking:
            self._restart(anchor, [])
        self._in_pause = False

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
            fitting = [
                i for i in self._vocabulary.word_starts(before) if i >= len(before) - MAX_CARRIED_TOKENS
            ]
            prompt += before[fitting[0] :] if fitting else []
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


def _tokenizer(model: Whisper, language: str | None) -> Tokenizer:
    return get_tokenizer(
        model.is_multilingual,
        num_languages=model.num_languages,
        language=language or "en",
        task="transcribe",
    )
