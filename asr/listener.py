"""What a stream has heard and understood: the encoder's window and the text that is read from it.

Both are restarted together when the window moves on (re-anchoring), with the text before as prompt and the
committed words that are heard again as forced beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from asr.anchor import Anchor, anchor_after_words, anchor_in_pause, anchor_in_speech
from asr.biasing import DEFAULT_STRENGTH, Strength
from asr.chunking import Chunking
from asr.encoder import FRAME_SAMPLES
from asr.endpoint import EndpointRules
from asr.engine import Engine
from asr.events import SAMPLE_RATE
from asr.features import LogMel
from asr.frontier import LookPolicy
from asr.search import Search, Steps
from asr.slots import Slot
from asr.transducer_reader import EmissionTiming
from asr.waits import Waits
from asr.window import Window
from asr.words import Token, Vocabulary, align_tokens, token_start

LONG_WINDOW = 15 * SAMPLE_RATE  # a window longer than this restarts in the next pause
KEPT_MARGIN = SAMPLE_RATE // 10  # a word that starts this little before an anchor is still heard
OLDEST_DRAFT = 4 * SAMPLE_RATE  # age of open words that a restarted window surely hears again
NEWEST_TOKENS = 4  # looked at to find the newest word: attention to punctuation points anywhere
NEWS_BACK = SAMPLE_RATE  # a new word was heard at most so long before it came out
MAX_CARRIED_TOKENS = 64  # committed text that a new window gets as prompt
MAX_PROMPT_TOKENS = 64  # of the caller's prompt


@dataclass(frozen=True)
class TransducerOptions:
    """How a transducer reads: how far frames look ahead, and when words are said."""

    policy: LookPolicy
    timing: EmissionTiming


@dataclass(frozen=True)
class StreamOptions:
    """How one stream recognises; :meth:`asr.recognizer.Recognizer.stream` checks the values."""

    chunking: Chunking
    beam_size: int = 1
    open_tokens: int = 2
    language: str | None = None
    prompt: str | None = None
    hotwords: tuple[str, ...] = ()
    strength: Strength = DEFAULT_STRENGTH
    second_pass: bool = False
    rules: EndpointRules = field(default_factory=EndpointRules)
    carry_prompt: bool = True  # a new window gets the text before it as prompt
    adaptive: bool = True  # skips what silence does not need
    transducer: TransducerOptions | None = None  # None: Whisper's decoder reads


class Listener:
    """Encoder window and text search of one stream.

    Attributes:
        window: The encoder's window.
        text: Tokenizer, vocabulary and rules of the language that is spoken.
        decoded: Sample up to which the text has been read.
        end_silence: Samples of silence after which the last words of a stream are read.
        waits: Empty: frames are read as soon as they are there.
        can_rest: In a silence, no frame is needed.
    """

    end_silence = 3 * SAMPLE_RATE // 10
    can_rest = True

    def __init__(self, engine: Engine, options: StreamOptions, slot: Slot) -> None:
        """Start with nothing heard, in the options' language or English; ``slot`` is fresh."""
        self._engine = engine
        self._options = options
        self._slot = slot
        self._context: list[int] = []  # newest committed tokens, of this window and before
        self._grown = 0  # sample up to which was heard when the text last got longer
        self.decoded = 0
        self.waits = Waits()
        self.window = Window(engine.log_mel, options.chunking, slot)
        self.set_language(options.language or "en")

    @property
    def vocabulary(self) -> Vocabulary:
        """Texts of tokens, and where words begin."""
        return self.text.vocabulary

    @property
    def draft(self) -> tuple[Token, ...]:
        """Open tokens."""
        return self._search.draft

    @property
    def is_full(self) -> bool:
        """Whether the window has no room for the next chunk or its text."""
        return self.window.is_full or self._search.is_full

    @property
    def is_long(self) -> bool:
        """Whether the window should restart when there is an opportunity."""
        return self.window.end - self.window.origin > LONG_WINDOW

    @property
    def has_old_draft(self) -> bool:
        """Whether the open words began so long ago that a restarted window would not hear them."""
        draft = self._search.draft
        return bool(draft) and token_start(draft[0]) < self.window.next_end - OLDEST_DRAFT

    @property
    def heard(self) -> int:
        """Sample before which every word that ended can be read."""
        return self.window.end

    @property
    def last_peak(self) -> int:
        """Sample where the newest words were heard; the window's start if there are none.

        Attention may rest elsewhere, but a word that is new was heard just now.
        """
        tokens = [*self._search.committed[-NEWEST_TOKENS:], *self._search.draft]
        peaks = [token.peak for token in tokens]
        return max(self.window.origin, self._grown - NEWS_BACK, *peaks)

    def set_language(self, language: str) -> None:
        """Take the tokenizer of a language and read the window afresh."""
        self.text = self._engine.text(language)
        hotwords = self._options.hotwords
        self._search = Search(
            self._engine.decoder,
            self.text.rules,
            self.vocabulary,
            cache=self._slot.text,
            eot=self.text.tokenizer.eot,
            beam_size=self._options.beam_size,
            open_tokens=self._options.open_tokens,
            biasing=self.text.biasing(hotwords, self._options.strength) if hotwords else None,
        )
        self._search.restart(self._prefix(0), origin=self.window.origin)

    def hear(self, samples: Tensor) -> None:
        """Add samples ``[1, S]``."""
        self.window.hear(samples)

    def accept(self, frames: Tensor) -> None:
        """Go on after the window's step; its frames are in the cache that the decoder reads."""
        del frames
        self.window.accept()

    def decode(self, *, n_in_segment: int) -> Steps[list[Token]]:
        """Read what is new; return the tokens that are committed now.

        Args:
            n_in_segment: Tokens that the running segment has already.
        """
        self.decoded = self.window.end
        n_open = len(self._search.draft)
        tokens = yield from self._search.advance(
            self.window.cross, n_in_segment=n_in_segment, final_end=self.window.final_end
        )
        if len(tokens) + len(self._search.draft) > n_open:
            self._grown = self.window.end
        return self._committed(tokens)

    def skip(self) -> Steps[None]:
        """Pass over what is new: nobody speaks."""
        yield from ()

    def before_flush(self) -> Steps[list[Token]]:
        """What is accepted from now on until :meth:`flush` is silence."""
        yield from ()
        return []

    def flush(self, *, n_in_segment: int) -> Steps[list[Token]]:
        """Read and commit everything; the silence is forgotten next, and what was before it read again.

        Args:
            n_in_segment: Tokens that the running segment has already.
        """
        tokens = yield from self.decode(n_in_segment=n_in_segment)
        self.decoded = 0
        return [*tokens, *self.commit_draft()]

    def finish(self) -> Steps[list[Token]]:
        """Commit everything: the stream has ended."""
        yield from ()
        return self.commit_draft()

    def commit_draft(self) -> list[Token]:
        """Commit what is open, and return it."""
        return self._committed(self._search.commit(len(self._search.draft)))

    def forget_final_mark(self) -> None:
        """Go on as if the committed text had not ended with a full stop: the speech has not ended there."""
        committed = self._search.committed
        if committed and self.vocabulary.is_mark(committed[-1].id):
            committed.pop()
            self._context.pop()

    def align(self, tokens: Sequence[Token], *, start: int) -> Steps[list[Token]]:
        """Find the times of the window's last committed tokens.

        Args:
            tokens: Those tokens, all said in this window.
            start: Sample before which none of them was said.

        Returns:
            The same tokens with spans.
        """
        weights = yield from self._search.attention(len(tokens), self.window.cross)
        aligned = align_tokens(tokens, weights, start=start, origin=self.window.origin)
        self._search.set_times(aligned)
        return aligned

    def restart_in_speech(self) -> None:
        """Move on to a few seconds ago; what is open will be read again."""
        starts = self._word_starts()
        draft = self._search.draft
        anchor = anchor_in_speech(
            list(starts.values()),
            open_start=token_start(draft[0]) if draft else None,
            end=self.window.next_end,
            chunking=self._options.chunking,
        )
        self._restart(anchor, starts)

    def restart_after(self, last_word: int) -> None:
        """Read what follows a sample in the newest word once more, in a fresh window."""
        anchor = anchor_after_words(last_word, end=self.window.end, chunking=self._options.chunking)
        self._restart(anchor, {})

    def restart_in_pause(self, silent_since: int) -> None:
        """Move on into the silence that began at a sample."""
        chunking = self._options.chunking
        self._restart(anchor_in_pause(silent_since, end=self.window.next_end, chunking=chunking), {})

    def rest(self, silent_since: int) -> None:
        """Pass over the next chunk without encoding it; what comes after it is heard from the silence on.

        Args:
            silent_since: Sample from which on nobody speaks.
        """
        chunking = self._options.chunking
        end = self.window.next_end + chunking.size * FRAME_SAMPLES
        self._restart(anchor_in_pause(silent_since, end=end, chunking=chunking), {})

    def _committed(self, tokens: list[Token]) -> list[Token]:
        self._context = [*self._context, *(token.id for token in tokens)][-2 * MAX_CARRIED_TOKENS :]
        return tokens

    def _word_starts(self) -> dict[int, int]:
        """First token of each committed word of the window -> where the word starts."""
        committed = self._search.committed
        firsts = self.vocabulary.word_starts([token.id for token in committed])
        return {first: token_start(committed[first]) for first in firsts}

    def _restart(self, anchor: Anchor, word_starts: dict[int, int]) -> None:
        heard_again = [i for i, start in word_starts.items() if start >= anchor.start - KEPT_MARGIN]
        kept = self._search.committed[heard_again[0] :] if heard_again else []
        self.window.restart(anchor.start // LogMel.block_size, n_frames=anchor.n_frames)
        self.decoded = 0
        self._search.restart(self._prefix(len(kept)), kept, origin=anchor.start)

    def _prefix(self, n_kept: int) -> list[int]:
        """Prompt and start tokens of a window whose first ``n_kept`` tokens are committed already."""
        prompt: list[int] = []
        if self._options.prompt and self._options.prompt.strip():
            prompt += self.text.encode(" " + self._options.prompt.strip())[-MAX_PROMPT_TOKENS:]
        if self._options.carry_prompt:
            before = self._context[: len(self._context) - n_kept]
            n_extra = max(0, len(before) - MAX_CARRIED_TOKENS)
            whole = [i for i in self.vocabulary.word_starts(before) if i >= n_extra]
            prompt += before[whole[0] :] if whole else []
        start = list(self.text.tokenizer.sot_sequence_including_notimestamps)
        return [self.text.tokenizer.sot_prev, *prompt, *start] if prompt else start
