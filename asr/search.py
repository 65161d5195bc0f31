"""Greedy and beam search over encoder frames that keep arriving (after CarelessWhisper, arXiv 2508.12301).

After every chunk the decoder continues from the committed tokens until it predicts end-of-text, which means
"nothing more has been heard yet". The newest tokens stay open and are judged again with the next chunk.

A search never calls the decoder: its methods are generators of :class:`asr.decoder.DecoderJob`, so that the
jobs of many searches can be run at once. Axis letters: B hypotheses, U tokens, A alignment heads, T encoder
frames, V vocabulary.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from asr.biasing import Biasing
from asr.chunking import FRAME_MS
from asr.decoder import Decoder, DecoderJob, DecoderResult, FrameCache, SelfCache
from asr.encoder import FRAME_SAMPLES
from asr.events import SAMPLE_RATE
from asr.rules import Context, Rule, likeliest, only
from asr.words import Token, Vocabulary

MAX_DRAFT_TOKENS = 24  # beam search commits the oldest words of a longer draft although hypotheses disagree
RIVAL_LOGPROB = 3.0  # a hypothesis counts while it is at least a twentieth as likely as the best
MAX_RETURNS = 8  # greedy search regrets no more beginnings of hotwords than this with one chunk
SINK_FRAMES = 2  # of a window, on which attention rests when it looks at nothing
PEAK_BACK = SAMPLE_RATE // 2  # attention to a word lies at most so much before that to the word before it
MAX_OPEN_TOKENS = 46  # no hypothesis goes further beyond the committed tokens
ROOM_TOKENS = MAX_OPEN_TOKENS + 2  # free text positions that a chunk may need

_T = TypeVar("_T")
Steps = Generator[DecoderJob, DecoderResult, _T]  # asks for decoder steps, is sent their results, returns a T


@dataclass(frozen=True)
class _Hypothesis:
    """One way to go on after the committed tokens."""

    tokens: tuple[Token, ...]
    score: float  # log-probability and boosts of its tokens and, once it has ended, of end-of-text
    ended: bool = False

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def mean_score(self) -> float:
        return self.score / (len(self.tokens) + 1)


@dataclass(frozen=True)
class _Next:
    """What may come after one hypothesis."""

    logprobs: Tensor  # [V] log-probabilities of what the rules allow
    scores: Tensor  # [V] the same with what the rules add


@dataclass(frozen=True)
class _Rows:
    """What may come next, at some positions."""

    logits: Tensor  # [n, V] float32
    peaks: list[int]  # [n] samples that the alignment heads look at most


class Search:
    """The text of one window: what is committed, what is still open. :meth:`advance` is all that changes it.

    Attributes:
        committed: Committed tokens of the window, oldest first.
        draft: Open tokens after them.
    """

    def __init__(
        self,
        decoder: Decoder,
        rules: Sequence[Rule],
        vocabulary: Vocabulary,
        *,
        cache: SelfCache,
        eot: int,
        beam_size: int = 1,
        open_tokens: int = 2,
        biasing: Biasing | None = None,
    ) -> None:
        """Prepare an empty search; :meth:`restart` gives it a window.

        Args:
            decoder: Whisper's decoder, for its sizes.
            rules: Applied in order before every choice.
            vocabulary: Knows where words begin.
            cache: Room for one hypothesis' text context.
            eot: The end-of-text token.
            beam_size: Hypotheses; 1 is greedy.
            open_tokens: Newest tokens that are never committed.
            biasing: Boosts terms that the caller expects.
        """
        self._n_ctx = decoder.n_ctx
        self._biasing = biasing
        # The boost comes first, so that what is forbidden stays so and the loop guard sees what would win.
        self._rules: list[Rule] = [*([biasing] if biasing else []), *rules]
        self._vocabulary = vocabulary
        self._eot = eot
        self._beam_size = beam_size
        self._open_tokens = open_tokens
        self._cache = cache
        self._beam_cache = decoder.new_self_cache(n_rows=beam_size) if beam_size > 1 else None
        self._device = decoder.weights.positional_embedding.device
        self._prefix: list[int] = []
        self._origin = 0
        self._n_in_segment = 0
        self.committed: list[Token] = []
        self.draft: tuple[Token, ...] = ()

    @property
    def is_full(self) -> bool:
        """Whether the text context may overflow with the next chunk."""
        n_tokens = len(self._prefix) + len(self.committed) + len(self.draft)
        return n_tokens + ROOM_TOKENS > self._n_ctx

    def restart(self, prefix: Sequence[int], committed: Sequence[Token] = (), *, origin: int = 0) -> None:
        """Begin a window.

        Args:
            prefix: Prompt and start tokens.
            committed: Tokens that are already committed and heard again in this window.
            origin: Sample of the window's first frame.
        """
        self._prefix = list(prefix)
        self._origin = origin
        self._cache.reset()
        self.committed = list(committed)
        self.draft = ()

    def advance(self, cross: FrameCache, *, n_in_segment: int, final_end: int) -> Steps[list[Token]]:
        """Decode with the frames heard so far.

        Args:
            cross: The window's frames, the provisional ones among them.
            n_in_segment: Committed tokens of the running segment.
            final_end: Sample from which on frames are provisional: what was heard there stays open.

        Returns:
            The tokens that are committed now.
        """
        hypotheses = yield from self._read(cross, n_in_segment)
        self.draft = hypotheses[0].tokens
        return self.commit(self._n_certain(hypotheses, final_end))

    def _read(self, cross: FrameCache, n_in_segment: int) -> Steps[Sequence[_Hypothesis]]:
        """The ways to go on after the committed tokens, best first."""
        self._n_in_segment = n_in_segment
        sequence = [*self._prefix, *(token.id for token in self.committed)]
        self._cache.truncate(min(self._cache.n_tokens, len(sequence) - 1))
        pending = sequence[self._cache.n_tokens :]
        if self._beam_size == 1:
            hypotheses = [(yield from self._greedy(pending, cross))]
        else:
            hypotheses = yield from self._beam(pending, cross)
        # Tokens that are committed now are stepped once more, with the next chunk's frames.
        self._cache.truncate(len(sequence) - 1)
        return hypotheses

    def commit(self, n_tokens: int) -> list[Token]:
        """Commit the oldest ``n_tokens`` of the draft and return them."""
        certain = list(self.draft[:n_tokens])
        self.draft = self.draft[n_tokens:]
        self.committed += certain
        return certain

    def set_times(self, aligned: Sequence[Token]) -> None:
        """Replace the window's last committed tokens by the same with spans."""
        self.committed[len(self.committed) - len(aligned) :] = aligned

    def attention(self, n_last: int, cross: FrameCache) -> Steps[Tensor]:
        """Look at the window's last committed tokens again, with all frames.

        Args:
            n_last: How many committed tokens.
            cross: The window's frames.

        Returns:
            ``[A, n_last + 1, T]``: attention of the positions that predict each token and end-of-text.
        """
        sequence = [*self._prefix, *(token.id for token in self.committed)]
        first = len(sequence) - n_last - 1
        self._cache.truncate(min(self._cache.n_tokens, first))
        pending = torch.tensor([sequence[self._cache.n_tokens :]], device=self._device)
        result = yield DecoderJob(pending, self._cache, cross, n_logits=0)
        return result.attention[0, :, -n_last - 1 :]

    def _greedy(self, pending: list[int], cross: FrameCache) -> Steps[_Hypothesis]:
        """Keep the draft while it still wins, then go on token by token."""
        drafted = [token.id for token in self.draft]
        rows = yield from self._score([*pending, *drafted], cross, n_rows=len(drafted) + 1)
        n_before = self._cache.n_tokens - len(drafted)
        hypothesis = _Hypothesis((), 0.0)
        unswayed: list[_Hypothesis] = []  # at each position, what there would be without the boost
        row = n_returns = 0
        while True:
            following = self._apply_rules(rows.logits[row], hypothesis, cross)
            winner = likeliest(following.scores)
            own = winner if self._biasing is None else likeliest(following.logprobs)
            regretted = self._regretted(hypothesis, winner, unswayed) if n_returns < MAX_RETURNS else None
            if regretted is None:
                unswayed.append(self._extend(hypothesis, own, following, peak=rows.peaks[row]))
                hypothesis = self._extend(hypothesis, winner, following, peak=rows.peaks[row])
            else:
                n_returns += 1
                hypothesis = unswayed[regretted]
                del unswayed[regretted + 1 :]
            if hypothesis.ended:
                return hypothesis
            if regretted is None and row + 1 < len(rows.peaks) and winner == drafted[row]:
                row += 1
            else:
                self._cache.truncate(n_before + len(hypothesis.tokens) - 1)
                rows, row = (yield from self._score(hypothesis.ids[-1:], cross, n_rows=1)), 0

    def _regretted(self, hypothesis: _Hypothesis, token: int, unswayed: Sequence[_Hypothesis]) -> int | None:
        """Where the boost first led to a term that ``token`` leaves half-said; None if it did not."""
        if self._biasing is None:
            return None
        ids = hypothesis.ids
        n_left = self._biasing.n_left([*(token.id for token in self.committed), *ids], token)
        swayed = [i for i, other in enumerate(unswayed) if other.ids != ids[: i + 1]]
        return next((i for i in swayed if i >= len(ids) - n_left), None)

    def _beam(self, pending: list[int], cross: FrameCache) -> Steps[list[_Hypothesis]]:
        """Search the open part with B hypotheses; the best ended ones come first."""
        assert self._beam_cache is not None
        rows = yield from self._score(pending, cross, n_rows=1)
        self._copy_prefix()
        running, ended = [_Hypothesis((), 0.0)], []
        while True:
            chosen, sources = self._expand(running, rows, cross)
            ended += [hypothesis for hypothesis in chosen if hypothesis.ended]
            ended = sorted(ended, key=lambda h: h.score, reverse=True)[: self._beam_size]
            # Probability only falls (a boost would have to come at once): what is already below B ended
            # hypotheses need not go on.
            least = ended[-1].score if len(ended) == self._beam_size else -math.inf
            pairs = zip(chosen, sources, strict=True)
            going = [(h, source) for h, source in pairs if not h.ended and h.score > least]
            if not going:
                return sorted(ended, key=lambda h: h.mean_score, reverse=True)
            running = [h for h, _ in going]
            n_idle = self._beam_size - len(going)
            if self._beam_cache.n_tokens > self._cache.n_tokens:
                self._beam_cache.reorder(
                    torch.tensor([s for _, s in going] + [0] * n_idle, device=self._device)
                )
            rows = yield from self._score_beam(
                [h.tokens[-1].id for h in running] + [self._eot] * n_idle, cross
            )

    def _expand(
        self, running: list[_Hypothesis], rows: _Rows, cross: FrameCache
    ) -> tuple[list[_Hypothesis], list[int]]:
        """The likeliest continuations, best first, until B of them go on; and the row each comes from."""
        candidates = []
        following = []
        for row, hypothesis in enumerate(running):
            following.append(self._apply_rules(rows.logits[row], hypothesis, cross))
            top = following[row].scores.topk(self._beam_size + 1)
            for score, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                if score > -math.inf:
                    candidates.append((hypothesis.score + score, row, token))
        candidates.sort(key=lambda candidate: candidate[0], reverse=True)
        chosen: list[_Hypothesis] = []
        sources: list[int] = []
        n_going = 0
        for _, row, token in candidates:
            chosen.append(self._extend(running[row], token, following[row], peak=rows.peaks[row]))
            sources.append(row)
            n_going += not chosen[-1].ended
            if n_going == self._beam_size:
                break
        return chosen, sources

    def _extend(self, hypothesis: _Hypothesis, token: int, following: _Next, *, peak: int) -> _Hypothesis:
        total = hypothesis.score + float(following.scores[token])
        if token == self._eot:
            return _Hypothesis(hypothesis.tokens, total, ended=True)
        chosen = Token(token, float(following.logprobs[token]), peak)
        return _Hypothesis((*hypothesis.tokens, chosen), total)

    def _apply_rules(self, logits: Tensor, hypothesis: _Hypothesis, cross: FrameCache) -> _Next:
        """Weigh the next token by the logits ``[V]``, which are written to."""
        if len(hypothesis.tokens) >= MAX_OPEN_TOKENS:
            only(logits, self._eot)
        tokens = [token.id for token in self.committed] + hypothesis.ids
        context = Context(
            tokens,
            heard_s=cross.n_frames * FRAME_MS / 1000,
            n_in_segment=self._n_in_segment + len(hypothesis.tokens),
            n_decided=len(tokens) if self._beam_size == 1 else len(self.committed),
        )
        plain = logits.clone() if self._biasing else logits
        for rule in self._rules:
            rule.apply(logits, context)
        if self._biasing is None:
            logprobs = logits.log_softmax(dim=-1)
            return _Next(logprobs, logprobs)
        # What the boost adds decides, but it is no probability: a word's confidence stays the model's own.
        plain.masked_fill_(logits == -math.inf, -math.inf)
        total = plain.logsumexp(dim=-1)
        return _Next(plain - total, logits - total)

    def _score(self, tokens: list[int], cross: FrameCache, *, n_rows: int) -> Steps[_Rows]:
        """Step the one hypothesis by ``tokens``; the rows are the last positions."""
        batch = torch.tensor([tokens], device=self._device)
        result = yield DecoderJob(batch, self._cache, cross, n_logits=n_rows)
        return _Rows(result.logits[0], self._peaks(result)[0][-n_rows:])

    def _score_beam(self, tokens: list[int], cross: FrameCache) -> Steps[_Rows]:
        """Step every hypothesis by one token; the rows are the hypotheses."""
        assert self._beam_cache is not None
        batch = torch.tensor(tokens, device=self._device)[:, None]
        result = yield DecoderJob(batch, self._beam_cache, cross)
        return _Rows(result.logits[:, 0], [peaks[0] for peaks in self._peaks(result)])

    def _peaks(self, result: DecoderResult) -> list[list[int]]:
        """Samples ``[B][U]`` that the alignment heads look at most."""
        first = self._first_frame(result.attention.shape[-1])
        frames = first + result.attention[..., first:].mean(dim=1).argmax(dim=-1)
        return (self._origin + frames * FRAME_SAMPLES).tolist()

    def _first_frame(self, n_frames: int) -> int:
        """Where to look for new words: attention that looks at nothing rests on a window's first frames."""
        newest = self.committed[-1].peak if self.committed else 0
        first = (newest - PEAK_BACK - self._origin) // FRAME_SAMPLES
        return min(max(first, SINK_FRAMES), n_frames - 1)

    def _copy_prefix(self) -> None:
        """Let every hypothesis start from the committed tokens."""
        assert self._beam_cache is not None
        used = slice(0, self._cache.n_tokens)
        self._beam_cache.reserve(self._cache.n_tokens)
        self._beam_cache.keys[:, :, used] = self._cache.keys[:, :, used]
        self._beam_cache.values[:, :, used] = self._cache.values[:, :, used]
        self._beam_cache.n_tokens = self._cache.n_tokens

    def _n_certain(self, hypotheses: Sequence[_Hypothesis], final_end: int) -> int:
        """How many of the best one's tokens can be committed: whole words that all likely ones share."""
        best = hypotheses[0].ids
        n_final = len(best)
        while n_final and hypotheses[0].tokens[n_final - 1].peak >= final_end:
            n_final -= 1
        rivals = [h.ids for h in hypotheses[1:] if h.score > hypotheses[0].score - RIVAL_LOGPROB]
        bounds = {*self._vocabulary.word_starts(best), len(best)}
        limit = min(len(best) - self._open_tokens, n_final)
        agreed = set(bounds)
        for ids in rivals:
            n_common = len(os.path.commonprefix([best, ids]))
            agreed &= {i for i in (*self._vocabulary.word_starts(ids), len(ids)) if i <= n_common}
        overlong = {i for i in bounds if i <= len(best) - MAX_DRAFT_TOKENS}
        return max((i for i in agreed | overlong if i <= limit), default=0)
