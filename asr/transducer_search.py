"""Greedy and beam search over a transducer's frames as they come, for many streams at once.

Axis letters: G streams or hypotheses, T frames, J joint width, V tokens.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from asr.biasing import ROOT, Biasing, TokenTrie
from asr.transducer import Transducer

MAX_SYMBOLS = 4  # tokens at one frame
RIVAL_SCORE = 3.0  # a hypothesis counts while it is at least a twentieth as likely as the best
_WINDOW = 16  # frames that greedy search judges together between two tokens


@dataclass(frozen=True)
class Emission:
    """One token, and the frame at which the transducer said it."""

    token: int
    logprob: float
    frame: int


@dataclass(frozen=True)
class Hypothesis:
    """One way to hear a stream.

    Attributes:
        emissions: Its open tokens.
        context: The last tokens that the predictor sees, open ones included.
        logprob: Of its open tokens and blanks, relative to the best hypothesis.
        boost: What hotwords have added, relative to the best hypothesis.
        node: Where its text ends in the trie of hotwords.
    """

    emissions: tuple[Emission, ...]
    context: tuple[int, ...]
    logprob: float = 0.0
    boost: float = 0.0
    node: int = ROOT

    @property
    def score(self) -> float:
        """What hypotheses are compared by."""
        return self.logprob + self.boost

    @property
    def tokens(self) -> tuple[int, ...]:
        """Ids of the open tokens."""
        return tuple(emission.token for emission in self.emissions)

    def extended(self, emission: Emission, *, gain: float = 0.0, node: int = ROOT) -> Hypothesis:
        """The same with one more token, what hotwords add for it and where it ends in their trie."""
        return Hypothesis(
            (*self.emissions, emission),
            (*self.context[1:], emission.token),
            self.logprob + emission.logprob,
            self.boost + gain,
            node,
        )


@dataclass(frozen=True)
class Hotwords:
    """Terms that are preferred: what each next token gains by :mod:`asr.biasing`; blank never gains."""

    trie: TokenTrie
    biasing: Biasing

    def gains(self, hypothesis: Hypothesis, *, n_open: int) -> Tensor:
        """What every next token gains or loses ``[V]``, if the newest ``n_open`` may still be given up."""
        return self.biasing.gains(hypothesis.node, n_open=n_open)

    def step(self, hypothesis: Hypothesis, token: int) -> int:
        """Where the text ends in the trie after one more token."""
        return self.trie.step(hypothesis.node, token)


@dataclass
class SearchState:
    """What a search knows of one stream."""

    hypotheses: list[Hypothesis]  # at least one, the likeliest first
    n_frames: int = 0  # frames read
    hotwords: Hotwords | None = None  # what is preferred

    @property
    def draft(self) -> tuple[Emission, ...]:
        """Open tokens of the likeliest hypothesis."""
        return self.hypotheses[0].emissions

    def n_agreed(self) -> int:
        """Open tokens that all likely hypotheses begin with."""
        least = self.hypotheses[0].score - RIVAL_SCORE
        likely = [h.tokens for h in self.hypotheses if h.score > least]
        return len(os.path.commonprefix(likely))

    def commit(self, n_tokens: int) -> tuple[Emission, ...]:
        """Take the likeliest hypothesis' oldest open tokens for good; hypotheses without them are dropped."""
        best = self.hypotheses[0]
        kept = [h for h in self.hypotheses if h.tokens[:n_tokens] == best.tokens[:n_tokens]]
        self.hypotheses = [replace(h, emissions=h.emissions[n_tokens:]) for h in kept]
        return best.emissions[:n_tokens]


@dataclass(frozen=True)
class SearchJob:
    """One stream's next frames ``[1, T, D]``; the search advances the state."""

    frames: Tensor
    state: SearchState


class TransducerSearch(Protocol):
    """What greedy and beam search have in common."""

    def init_state(self) -> SearchState:
        """The state of a stream of which nothing has been heard."""

    def advance(self, jobs: Sequence[SearchJob]) -> None:
        """Read the next frames of some streams; their states are all that changes."""


def _first_state(transducer: Transducer) -> SearchState:
    return SearchState([Hypothesis((), transducer.first_context)])


def _pad(transducer: Transducer, jobs: Sequence[SearchJob]) -> Tensor:
    """The joiner's view ``[G, T, J]`` of the jobs' frames."""
    lengths = [job.frames.shape[1] for job in jobs]
    rows = transducer.transcribe(torch.cat([job.frames for job in jobs], dim=1))[0].split(lengths)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _predict(transducer: Transducer, hypotheses: Sequence[Hypothesis], *, like: Tensor) -> Tensor:
    """The joiner's view ``[G, J]`` of what may follow hypotheses."""
    contexts = torch.tensor([h.context for h in hypotheses], device=like.device)
    predicted: Tensor = transducer.predictor(contexts)
    return predicted[:, 0]


class GreedySearch:
    """Takes the likeliest symbol at every step.

    Between two tokens nothing changes but the frame, so a run of frames is judged at once.
    """

    def __init__(self, transducer: Transducer) -> None:
        """Wrap a transducer."""
        self._transducer = transducer

    def init_state(self) -> SearchState:
        """The state of a stream of which nothing has been heard."""
        return _first_state(self._transducer)

    def advance(self, jobs: Sequence[SearchJob]) -> None:
        """Read the next frames of some streams.

        Args:
            jobs: Of different streams; frames may be none.
        """
        streams = [_Row(job) for job in jobs if job.frames.shape[1]]
        if not streams:
            return
        encoded = _pad(self._transducer, [stream.job for stream in streams])
        rows = list(range(len(streams)))
        while rows:
            cursors = torch.tensor([streams[row].cursor for row in rows], device=encoded.device)
            at = cursors[:, None] + torch.arange(_WINDOW, device=encoded.device)
            window = encoded[
                torch.tensor(rows, device=encoded.device)[:, None], at.clamp(max=encoded.shape[1] - 1)
            ]
            best = _predict(self._transducer, [streams[row].hypothesis for row in rows], like=encoded)
            log_probs = self._transducer.join(window, best[:, None]).log_softmax(dim=-1)
            scores = self._preferred(log_probs, [streams[row] for row in rows])
            winners = scores.argmax(dim=-1)  # [G, _WINDOW]
            logprobs = log_probs.gather(-1, winners[..., None])[..., 0]
            for row, values, symbols in zip(rows, logprobs.tolist(), winners.tolist(), strict=True):
                streams[row].take(values, symbols, blank=self._transducer.blank)
            rows = [row for row in rows if streams[row].cursor < streams[row].n_frames]
        for stream in streams:
            stream.job.state.hypotheses = [replace(stream.hypothesis, logprob=0.0)]
            stream.job.state.n_frames += stream.n_frames

    def _preferred(self, log_probs: Tensor, streams: Sequence[_Row]) -> Tensor:
        """Log-probabilities ``[G, T, V + 1]`` with what hotwords add; a decision made is never paid for."""
        if not any(stream.job.state.hotwords for stream in streams):
            return log_probs
        scores = log_probs.clone()
        for row, stream in zip(scores, streams, strict=True):
            if hotwords := stream.job.state.hotwords:
                row[:, : self._transducer.blank] += hotwords.gains(stream.hypothesis, n_open=0)
        return scores


@dataclass
class _Row:
    """One stream while greedy search reads its frames."""

    job: SearchJob
    cursor: int = 0  # next of its new frames
    n_here: int = 0  # tokens said at that frame

    def __post_init__(self) -> None:
        self.hypothesis = self.job.state.hypotheses[0]
        self.n_frames = self.job.frames.shape[1]

    def take(self, logprobs: list[float], winners: list[int], *, blank: int) -> None:
        """Go to the first token among the winners of the next frames, and take it."""
        for logprob, winner in zip(logprobs, winners, strict=True):
            if self.cursor == self.n_frames:
                return
            if winner != blank and self.n_here < MAX_SYMBOLS:
                frame = self.job.state.n_frames + self.cursor
                hotwords = self.job.state.hotwords
                node = hotwords.step(self.hypothesis, winner) if hotwords else ROOT
                self.hypothesis = self.hypothesis.extended(Emission(winner, logprob, frame), node=node)
                self.n_here += 1
                return
            self.cursor += 1
            self.n_here = 0


class BeamSearch:
    """Keeps the likeliest texts; paths to the same text are one hypothesis (Graves, arXiv 1211.3711)."""

    def __init__(self, transducer: Transducer, *, beam_size: int) -> None:
        """Wrap a transducer.

        Args:
            transducer: Predictor and joiner.
            beam_size: Hypotheses kept after each frame.
        """
        self._transducer = transducer
        self._beam_size = beam_size

    def init_state(self) -> SearchState:
        """The state of a stream of which nothing has been heard."""
        return _first_state(self._transducer)

    def advance(self, jobs: Sequence[SearchJob]) -> None:
        """Read the next frames of some streams.

        Args:
            jobs: Of different streams; frames may be none.
        """
        going = [job for job in jobs if job.frames.shape[1]]
        if not going:
            return
        encoded = _pad(self._transducer, going)
        for t in range(encoded.shape[1]):
            rows = [row for row, job in enumerate(going) if t < job.frames.shape[1]]
            self._read_frame([going[row].state for row in rows], encoded[rows, t])

    def _read_frame(self, states: Sequence[SearchState], frames: Tensor) -> None:
        """Read one frame ``[G, J]`` of each stream."""
        running = [list(state.hypotheses) for state in states]
        done: list[dict[tuple[int, ...], Hypothesis]] = [{} for _ in states]
        for n_said in range(MAX_SYMBOLS + 1):
            log_probs = self._score(running, frames)
            expanded = []
            for row, state in enumerate(states):
                for hypothesis, scores in zip(running[row], log_probs[row], strict=True):
                    blank = float(scores[self._transducer.blank])
                    _merge(done[row], replace(hypothesis, logprob=hypothesis.logprob + blank))
                can_go_on = n_said < MAX_SYMBOLS
                least = self._least(done[row])
                new = self._expand(running[row], log_probs[row], state) if can_go_on else []
                # Probability only falls: what is already below the beam need not go on, though at the same
                # frame hotwords might have lifted it again.
                expanded.append([h for h in new if h.score > least])
            running = expanded
            if not any(running):
                break
        for state, found in zip(states, done, strict=True):
            best = sorted(found.values(), key=lambda h: h.score, reverse=True)[: self._beam_size]
            state.hypotheses = [
                replace(h, logprob=h.logprob - best[0].logprob, boost=h.boost - best[0].boost) for h in best
            ]
            state.n_frames += 1

    def _score(self, running: Sequence[Sequence[Hypothesis]], frames: Tensor) -> list[Tensor]:
        """Log-probabilities ``[G', V + 1]`` of what may come next, for each stream's G' hypotheses."""
        counts = [len(hypotheses) for hypotheses in running]
        predicted = _predict(self._transducer, [h for row in running for h in row], like=frames)
        repeated = frames.repeat_interleave(torch.tensor(counts, device=frames.device), dim=0)
        log_probs = self._transducer.join(repeated, predicted).log_softmax(dim=-1).cpu()
        return list(log_probs.split(counts))

    def _expand(
        self, running: Sequence[Hypothesis], log_probs: Tensor, state: SearchState
    ) -> list[Hypothesis]:
        """The best hypotheses with one more token."""
        if not running:
            return []
        totals = torch.tensor([h.score for h in running])
        gains = torch.zeros(len(running), self._transducer.blank)
        if hotwords := state.hotwords:
            gains = torch.stack([hotwords.gains(h, n_open=len(h.emissions)).cpu() for h in running])
        scores = totals[:, None] + log_probs[:, : self._transducer.blank] + gains
        top = scores.flatten().topk(min(self._beam_size, scores.numel())).indices.tolist()
        new = []
        for row, token in [divmod(index, scores.shape[1]) for index in top]:
            emission = Emission(token, float(log_probs[row, token]), state.n_frames)
            node = hotwords.step(running[row], token) if hotwords else ROOT
            new.append(running[row].extended(emission, gain=float(gains[row, token]), node=node))
        return new

    def _least(self, done: dict[tuple[int, ...], Hypothesis]) -> float:
        """Score of the last hypothesis that fits the beam."""
        values = sorted((h.score for h in done.values()), reverse=True)
        return values[self._beam_size - 1] if len(values) >= self._beam_size else -math.inf


def _merge(done: dict[tuple[int, ...], Hypothesis], hypothesis: Hypothesis) -> None:
    """Add a hypothesis to those with other texts; the likelier path to the same text gives its times."""
    other = done.get(hypothesis.tokens)
    if other is None:
        done[hypothesis.tokens] = hypothesis
        return
    likelier = max(hypothesis, other, key=lambda h: h.logprob)
    gap = -abs(hypothesis.logprob - other.logprob)
    done[hypothesis.tokens] = replace(likelier, logprob=likelier.logprob + math.log1p(math.exp(gap)))
