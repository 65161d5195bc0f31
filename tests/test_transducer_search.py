"""Streaming search: greedy and beam, alone and in batches, equal plain references."""

import itertools
import random

import pytest
import torch

from asr.biasing import Biasing, Strength, TokenTrie
from asr.transducer import Transducer
from asr.transducer_loss import anywhere, transducer_loss
from asr.transducer_search import (
    MAX_SYMBOLS,
    BeamSearch,
    Emission,
    GreedySearch,
    Hotwords,
    Hypothesis,
    SearchJob,
    SearchState,
    TransducerSearch,
)

V, D = 6, 8


def _transducer(seed: int = 0, *, scale: float = 3.0) -> Transducer:
    """Random weights that are sure of what they say, and say a token at about every third step."""
    torch.manual_seed(seed)
    transducer = Transducer(V, frame_width=D, embedding_width=8, joint_width=16).requires_grad_(False)
    transducer.out.weight *= scale
    transducer.frame_in.weight *= scale
    transducer.out.bias[V] += 0.5 * scale
    return transducer


def _frames(n_frames: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, n_frames, D, generator=torch.Generator().manual_seed(seed))


def _read(search: TransducerSearch, frames: torch.Tensor, pieces: list[int]) -> SearchState:
    state = search.init_state()
    for part in frames.split(pieces, dim=1):
        search.advance([SearchJob(part, state)])
    return state


def _reference(transducer: Transducer, frames: torch.Tensor) -> list[tuple[int, int]]:
    """(token, frame) of greedy search, one step after the other."""
    context, said = list(transducer.first_context), []
    for t in range(frames.shape[1]):
        for _ in range(MAX_SYMBOLS):
            predicted = transducer.predictor(torch.tensor([context]))[0, 0]
            winner = int(transducer.join(transducer.transcribe(frames)[0, t], predicted).argmax())
            if winner == transducer.blank:
                break
            said.append((winner, t))
            context = [*context[1:], winner]
    return said


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_the_plain_loop(seed: int) -> None:
    """Judging runs of frames at once says the same tokens at the same frames, however the frames come."""
    transducer, frames = _transducer(seed), _frames(100, seed=seed)
    expected = _reference(transducer, frames)
    assert len(expected) > 10
    for pieces in ([100], [1] * 100, [7] * 14 + [2]):
        state = _read(GreedySearch(transducer), frames, pieces)
        assert [(e.token, e.frame) for e in state.draft] == expected
        assert state.n_frames == 100
        assert state.hypotheses[0].context == tuple(token for token, _ in expected)[-2:]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_batched_equals_alone(beam_size: int) -> None:
    """Streams that come in pieces of different sizes, or not at all in a tick, do not see one another."""
    transducer = _transducer(5)
    search: TransducerSearch = (
        GreedySearch(transducer) if beam_size == 1 else BeamSearch(transducer, beam_size=beam_size)
    )
    streams = [_frames(n, seed=n) for n in (30, 41, 17)]
    states = [search.init_state() for _ in streams]
    generator = random.Random(0)
    at = [0, 0, 0]
    while any(start < frames.shape[1] for start, frames in zip(at, streams, strict=True)):
        jobs = []
        for i, frames in enumerate(streams):
            size = generator.choice([0, 1, 4, 9])
            jobs.append(SearchJob(frames[:, at[i] : at[i] + size], states[i]))
            at[i] += size
        search.advance(jobs)
    for frames, state in zip(streams, states, strict=True):
        alone = _read(search, frames, [frames.shape[1]])
        assert [h.tokens for h in state.hypotheses] == [h.tokens for h in alone.hypotheses]
        assert [e.frame for e in state.draft] == [e.frame for e in alone.draft]
        assert [e.logprob for e in state.draft] == pytest.approx([e.logprob for e in alone.draft], abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_likeliest_texts(seed: int) -> None:
    """Against all texts of up to three tokens, scored by the loss, which sums over every path."""
    transducer, frames = _transducer(seed, scale=1.0), _frames(3, seed=seed)
    texts = [text for n in range(4) for text in itertools.product(range(V), repeat=n)]
    logprobs = {
        text: -float(
            transducer_loss(
                transducer,
                frames,
                torch.tensor([3]),
                anywhere(torch.tensor([text], dtype=torch.int64), torch.tensor([len(text)]), n_frames=3),
            )
        )
        for text in texts
    }
    found = _read(BeamSearch(transducer, beam_size=400), frames, [3]).hypotheses
    best = max(logprobs.values())
    for hypothesis in found[:12]:
        if len(hypothesis.tokens) < 4:
            assert hypothesis.logprob + best == pytest.approx(logprobs[hypothesis.tokens], abs=0.02)
    likeliest = sorted(logprobs, key=lambda text: logprobs[text], reverse=True)[:3]
    assert [h.tokens for h in found if len(h.tokens) < 4][:3] == likeliest


def test_paths_to_one_text_are_one_hypothesis() -> None:
    """No text is there twice, and here a wider beam finds a likelier text, summed over all its paths."""
    transducer, frames = _transducer(2, scale=1.5), _frames(25, seed=1)
    scores = []
    for beam_size in (1, 2, 8):
        hypotheses = _read(BeamSearch(transducer, beam_size=beam_size), frames, [25]).hypotheses
        assert len({h.tokens for h in hypotheses}) == len(hypotheses) <= beam_size
        assert [h.logprob for h in hypotheses] == sorted((h.logprob for h in hypotheses), reverse=True)
        tokens = torch.tensor([hypotheses[0].tokens], dtype=torch.int64)
        text = anywhere(tokens, torch.tensor([tokens.shape[1]]), n_frames=25)
        scores.append(-float(transducer_loss(transducer, frames, torch.tensor([25]), text)))
    assert scores[0] <= scores[1] + 1e-3 <= scores[2] + 2e-3


def test_sure_of_blank_nothing_is_said() -> None:
    """Silence, to a transducer that knows it."""
    transducer = _transducer()
    transducer.out.bias[V] = 50.0
    for search in (GreedySearch(transducer), BeamSearch(transducer, beam_size=4)):
        assert _read(search, _frames(50), [50]).draft == ()


def test_sure_of_tokens_they_stop() -> None:
    """A broken transducer says a few tokens per frame and goes on."""
    transducer = _transducer()
    transducer.out.bias[V] = -50.0
    assert len(_read(GreedySearch(transducer), _frames(5), [5]).draft) == 5 * MAX_SYMBOLS
    assert len(_read(BeamSearch(transducer, beam_size=4), _frames(5), [5]).draft) <= 5 * MAX_SYMBOLS


def test_confidence_is_the_probability() -> None:
    """A token's logprob is that of the joiner among all symbols at its frame."""
    transducer, frames = _transducer(1), _frames(20, seed=1)
    first = _read(GreedySearch(transducer), frames, [20]).draft[0]
    predicted = transducer.predict(torch.zeros(1, 0, dtype=torch.int64))[0, 0]
    log_probs = transducer.join(transducer.transcribe(frames)[0, first.frame], predicted).log_softmax(-1)
    assert first.logprob == pytest.approx(float(log_probs[first.token]), abs=1e-5)


def test_only_what_likely_hypotheses_share_is_agreed() -> None:
    """Committing drops hypotheses that say something else; unlikely ones have no vote."""

    def hypothesis(text: str, logprob: float) -> Hypothesis:
        return Hypothesis(tuple(Emission(ord(c), -0.1, i) for i, c in enumerate(text)), (0, 0), logprob)

    state = SearchState([hypothesis("abc", 0.0), hypothesis("abd", -1.0), hypothesis("xbc", -9.0)])
    assert state.n_agreed() == 2
    assert [e.token for e in state.commit(2)] == [ord("a"), ord("b")]
    assert [h.tokens for h in state.hypotheses] == [(ord("c"),), (ord("d"),)]
    assert SearchState([hypothesis("ab", 0.0)]).n_agreed() == 2


def _hotwords(*terms: list[int], begin: float = 4.0, go_on: float = 6.0) -> Hotwords:
    trie = TokenTrie([[term] for term in terms])
    return Hotwords(trie, Biasing(trie, Strength(begin, go_on), n_vocab=V))


def _tokens(search: TransducerSearch, frames: torch.Tensor, hotwords: Hotwords | None) -> list[int]:
    state = search.init_state()
    state.hotwords = hotwords
    search.advance([SearchJob(frames, state)])
    return [emission.token for emission in state.draft]


def _count(tokens: list[int], term: list[int]) -> int:
    return sum(tokens[i : i + len(term)] == term for i in range(len(tokens)))


@pytest.mark.parametrize("beam_size", [1, 4])
def test_hotwords_are_heard_more_often(beam_size: int) -> None:
    """Over some random transducers; without strength nothing changes."""
    term, plain, boosted = [2, 4], 0, 0
    for seed in range(6):
        transducer = _transducer(seed)
        search = GreedySearch(transducer) if beam_size == 1 else BeamSearch(transducer, beam_size=beam_size)
        frames = _frames(30, seed=seed)
        alone = _tokens(search, frames, None)
        assert _tokens(search, frames, _hotwords(term, begin=0.0, go_on=0.0)) == alone
        plain += _count(alone, term)
        boosted += _count(_tokens(search, frames, _hotwords(term)), term)
    assert boosted > plain + 4


def test_a_term_left_half_said_keeps_no_boost() -> None:
    """Beam search adds up what complete terms have gained, and what the newest open tokens may yet keep."""
    hotwords = _hotwords([2, 4], begin=4.0, go_on=6.0)
    search = BeamSearch(_transducer(1), beam_size=4)
    state = search.init_state()
    state.hotwords = hotwords
    search.advance([SearchJob(_frames(25, seed=1), state)])
    expected = []
    for hypothesis in state.hypotheses:
        tokens = list(hypothesis.tokens)
        n_complete = _count(tokens, [2, 4])
        expected.append(10.0 * n_complete + 4.0 * (tokens[-1:] == [2]))
    boosts = [hypothesis.boost for hypothesis in state.hypotheses]
    assert max(expected) >= 10.0
    assert boosts == pytest.approx([value - expected[0] for value in expected])
    assert [h.score for h in state.hypotheses] == sorted((h.score for h in state.hypotheses), reverse=True)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_hotwords_of_one_stream_are_its_own(beam_size: int) -> None:
    """In a batch each stream prefers its own terms, in any pieces; confidences are without the boost."""
    transducer = _transducer(2)
    search = GreedySearch(transducer) if beam_size == 1 else BeamSearch(transducer, beam_size=beam_size)
    terms = [_hotwords([2, 4]), None, _hotwords([5, 1, 0])]
    frames = [_frames(24, seed=seed) for seed in range(3)]
    states = [search.init_state() for _ in terms]
    for state, each in zip(states, terms, strict=True):
        state.hotwords = each
    for first in range(0, 24, 7):
        search.advance([SearchJob(f[:, first : first + 7], s) for f, s in zip(frames, states, strict=True)])
    for state, each, clip in zip(states, terms, frames, strict=True):
        assert [emission.token for emission in state.draft] == _tokens(search, clip, each)
        assert all(emission.logprob <= 0 for emission in state.draft)
