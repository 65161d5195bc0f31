"""What a stream has heard and understood with the transducer; the counterpart of :mod:`asr.listener`.

The window moves on as it does for Whisper's decoder, but the reader does not: its frames are counted from
the stream's start, its positions are relative, and what a restarted window encodes again has been read. Steps
of the model are asked for by generators, which are sent the results.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from asr.anchor import Anchor, anchor_after_words, anchor_in_pause, anchor_in_speech
from asr.encoder import FRAME_SAMPLES, MEL_PER_FRAME
from asr.engine import Engine, Text
from asr.events import SAMPLE_RATE
from asr.features import LogMel
from asr.listener import LONG_WINDOW, Listener, StreamOptions
from asr.slots import Slot
from asr.transducer_reader import Reading, ReadJob, Then, TransducerReader
from asr.waits import Waits
from asr.window import Window
from asr.words import Token, Vocabulary

LAST_SILENCE = 3 * SAMPLE_RATE // 5  # in final frames, after which the last words of a stream are out
LATE = 2 * SAMPLE_RATE // 5  # a word's tokens come out this long after its end at the latest, as trained
EARLY_SPEECH = SAMPLE_RATE  # tokens may come out this long before speech is noticed; older ones were noise

_T = TypeVar("_T")
Steps = Generator[ReadJob, Reading, _T]  # asks for reader steps, is sent their results, returns a T


class TransducerListener:
    """Encoder window and reader of one stream.

    Attributes:
        window: The encoder's window.
        text: Tokenizer, vocabulary and rules of the language that is spoken.
        end_silence: Samples of silence after which the last words of a stream are read.
        waits: How long each final frame read so far waited for later ones.
        can_rest: Every frame is read, in silence too.
    """

    can_rest = False
    has_old_draft = False  # a restarted window need not hear open words again

    def __init__(
        self, window: Window, reader: TransducerReader, *, texts: Callable[[str], Text], language: str
    ) -> None:
        """Start with nothing heard.

        Args:
            window: Fresh.
            reader: Fresh.
            texts: Gives what a language needs, such as :meth:`asr.engine.Engine.text`.
            language: Code of the language that is spoken.
        """
        self.window = window
        self.end_silence = LAST_SILENCE + window.chunking.right_context * FRAME_SAMPLES
        self.waits = Waits(reader.timing.lag)
        self._texts = texts
        self.set_language(language)
        self._reader = reader
        self._unread: list[Tensor] = []  # [1, F, E] final encoder frames in order
        self._provisional = reader.no_frames  # [1, F, E] those after them, from this one on:
        self._first_provisional = 0
        self._n_ahead = 0  # provisional frames when the last flush began
        self._first_unread = 0  # index of the first of them from the stream's start
        self._early: list[Token] = []  # committed in silence, perhaps just before speech is noticed

    @property
    def vocabulary(self) -> Vocabulary:
        """Texts of tokens, and where words begin."""
        return self.text.vocabulary

    @property
    def draft(self) -> tuple[Token, ...]:
        """Open tokens."""
        return self._reader.draft

    @property
    def is_full(self) -> bool:
        """Whether the window has no room for the next chunk."""
        return self.window.is_full

    @property
    def is_long(self) -> bool:
        """Whether the window should restart when there is an opportunity."""
        return self.window.end - self.window.origin > LONG_WINDOW

    @property
    def heard(self) -> int:
        """Sample before which every word that ended has come out."""
        return self._reader.end - LATE

    @property
    def decoded(self) -> int:
        """Sample up to which the text has been read: everything until the last words have come out."""
        return self.heard

    @property
    def last_peak(self) -> int:
        """A transducer never loses its place, so its newest word was heard just now."""
        return self.window.end

    def set_language(self, language: str) -> None:
        """Change what the second pass and the words' boundaries go by; what comes out stays the head's."""
        self.text = self._texts(language)

    def hear(self, samples: Tensor) -> None:
        """Add samples ``[1, S]``."""
        self.window.hear(samples)

    def accept(self, frames: Tensor) -> None:
        """Take the frames ``[1, F, E]`` of the window's step, and go on after it."""
        assert self.window.anchor % MEL_PER_FRAME == 0, "windows begin on the grid of encoder frames"
        first = self.window.anchor // MEL_PER_FRAME + self.window.position
        if not self._unread:
            self._first_unread = first
        n_known = self._first_unread + sum(part.shape[1] for part in self._unread) - first
        n_final = self.window.n_next_final
        self._unread.append(frames[:, n_known if self._unread else 0 : n_final])
        self._provisional, self._first_provisional = frames[:, n_final:], first + n_final
        self.window.accept()

    def decode(self, *, n_in_segment: int) -> Steps[list[Token]]:
        """Read what is new; return the tokens that are committed now.

        Args:
            n_in_segment: Not needed; what comes out does not depend on segments.
        """
        del n_in_segment
        tokens = [*self._early, *(yield from self._read("listen"))]
        self._early = []
        if self._n_encoded > self._reader.n_heard:
            yield ReadJob(self._reader, self._provisional, self._first_provisional, "peek")
        return tokens

    def skip(self) -> Steps[None]:
        """Read what is new while nobody speaks; what comes out is forgotten unless speech follows at once."""
        self._early += yield from self._read("listen")
        oldest = self._reader.end - EARLY_SPEECH
        self._early = [token for token in self._early if token.peak > oldest]
        if self.draft and self.draft[-1].peak <= oldest:
            self._reader.commit_draft()

    def before_flush(self) -> Steps[list[Token]]:
        """Read all that is final; what is accepted until :meth:`flush` is the rest and silence."""
        n_encoded = self._n_encoded
        tokens = yield from self._read("listen")
        self._n_ahead = max(0, n_encoded - self._reader.n_heard)
        return tokens

    def flush(self, *, n_in_segment: int) -> Steps[list[Token]]:
        """Read and commit everything heard as if only the silence followed, and forget the silence.

        Args:
            n_in_segment: Not needed.
        """
        del n_in_segment
        return (yield from self._read("flush"))

    def finish(self) -> Steps[list[Token]]:
        """Read everything: the stream has ended."""
        tokens = yield from self._read("finish")
        return [*tokens, *self._reader.commit_draft()]

    def commit_draft(self) -> list[Token]:
        """Commit what is open, and return it."""
        return self._reader.commit_draft()

    def forget_final_mark(self) -> None:
        """Go on as if the committed text had not ended with a full stop: the speech has not ended there."""
        self._reader.forget_final_mark()

    def align(self, tokens: Sequence[Token], *, start: int) -> Steps[list[Token]]:
        """Nothing is to be done: tokens come with their times.

        Args:
            tokens: Any.
            start: Not needed.

        Returns:
            The same tokens.
        """
        del start
        yield from ()
        return list(tokens)

    def restart_in_speech(self) -> None:
        """Move the window on to a few seconds ago."""
        chunking = self.window.chunking
        self._restart(anchor_in_speech([], open_start=None, end=self.window.next_end, chunking=chunking))

    def restart_after(self, last_word: int) -> None:
        """Move the window on to a sample in the newest word."""
        chunking = self.window.chunking
        self._restart(anchor_after_words(last_word, end=self.window.end, chunking=chunking))

    def restart_in_pause(self, silent_since: int) -> None:
        """Move the window on into the silence that began at a sample."""
        chunking = self.window.chunking
        self._restart(anchor_in_pause(silent_since, end=self.window.next_end, chunking=chunking))

    def rest(self, silent_since: int) -> None:
        """Never called: see ``can_rest``.

        Args:
            silent_since: Not needed.
        """
        raise AssertionError(f"a transducer reads every frame, also those of the silence from {silent_since}")

    @property
    def _n_encoded(self) -> int:
        """Encoder frames from the stream's start, the provisional ones included."""
        return self.window.anchor // MEL_PER_FRAME + self.window.n_heard

    def _restart(self, anchor: Anchor) -> None:
        self.window.restart(anchor.start // LogMel.block_size, n_frames=anchor.n_frames)

    def _read(self, then: Then) -> Steps[list[Token]]:
        if not self._unread:
            if then == "listen":
                return []
            self._unread = [self._reader.no_frames]
            self._first_unread = self._reader.n_heard
        provisional = self._provisional if then == "listen" and self._reader.policy.wait else None
        frames = torch.cat(self._unread if provisional is None else [*self._unread, provisional], dim=1)
        self._unread = []
        reading = yield ReadJob(
            self._reader,
            frames,
            self._first_unread,
            then,
            n_provisional=0 if provisional is None else provisional.shape[1],
            n_encoded=self._n_encoded,
            n_ahead=self._n_ahead if then == "flush" else 0,
        )
        self.waits.frames.extend(reading.waits)
        return list(reading.tokens)


def open_listener(engine: Engine, options: StreamOptions, slot: Slot) -> Listener | TransducerListener:
    """What reads a stream.

    Args:
        engine: The recogniser's parts; with a head where the options ask for the transducer.
        options: The stream's.
        slot: Fresh.

    Returns:
        A fresh listener.
    """
    if options.transducer is None:
        return Listener(engine, options, slot)
    assert engine.head, "the transducer needs a head"
    language = options.language or "en"
    text, n_tokens = engine.text(language), engine.head.config.n_tokens
    if slot.head is None:
        slot.head = engine.head.init_state()
    reader = TransducerReader(
        engine.head,
        text.vocabulary,
        policy=options.transducer.policy,
        timing=options.transducer.timing,
        beam_size=options.beam_size,
        hotwords=text.hotwords(options.hotwords, options.strength, n_tokens=n_tokens),
        state=slot.head,
    )
    window = Window(engine.log_mel, options.chunking, slot, fills_cross=False)
    return TransducerListener(window, reader, texts=engine.text, language=language)
