"""Words that the model keeps finding improbable count less; rare right ones do not for long."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asr.errors import OptionError
from training.alignment import AlignedUtterance
from training.config import RobustConfig
from training.dataset import Example
from training.manifest import WordTime
from training.robust import WordBeliefs, observations


def _utterance(id: str, confidences: list[float]) -> AlignedUtterance:
    words = tuple(WordTime(f"w{i}", i, i + 0.5, c) for i, c in enumerate(confidences))
    return AlignedUtterance(id, " ".join(word.word for word in words), words)


def _example(id: str, n_words: int, tokens_per_word: int = 2) -> Example:
    word_of = tuple(i for i in range(n_words) for _ in range(tokens_per_word))
    words = tuple((id, i) for i in range(n_words))
    tokens = tuple(range(300, 300 + len(word_of)))
    return Example(np.zeros(0), np.zeros(0), (1,), tokens, np.zeros(len(tokens)), words, word_of)


def _beliefs(config: RobustConfig | None = None) -> WordBeliefs:
    good, wrong, name = [0.9] * 8, [0.05] * 8, [0.9] * 8
    name[4] = 0.1
    aligned = {id: _utterance(id, c) for id, c in (("good", good), ("wrong", wrong), ("name", name))}
    return WordBeliefs(config or RobustConfig(method="downweight"), aligned)


def test_wrong_transcripts_count_little_and_rare_names_much() -> None:
    """A word is weighed with its neighbours; the end of a stream as its words on average."""
    beliefs = _beliefs()
    assert beliefs.weights(_example("good", 8)).tolist() == [1.0] * 17
    wrong = beliefs.weights(_example("wrong", 8))
    assert wrong.max() < 0.05
    name = beliefs.weights(_example("name", 8))
    assert 0.4 < name[8] == name[9] < 0.6
    assert (np.delete(name, [8, 9, 16]) == 1.0).all()
    assert name[16] == pytest.approx(name[:16].mean())


def test_a_word_that_is_learned_counts_fully() -> None:
    """Observations move the average; a word that stays improbable stays doubtful."""
    beliefs = _beliefs()
    for _ in range(5):
        beliefs.observe([("name", 4, 0.6), ("wrong", 4, 0.02)])
    assert beliefs.weights(_example("name", 8))[8] == 1.0
    doubtful = beliefs.find_doubtful()
    assert {id for id, _, _ in doubtful} == {"wrong"}
    assert doubtful[0][1] == 4


def test_what_a_stream_predicts_is_gathered_by_word() -> None:
    """Tokens that were not asked for do not count; a word without any is not observed."""
    example = _example("good", 3)
    values = np.array([0.2, 0.4, np.nan, 0.8, np.nan, np.nan])
    assert observations([example], [values]) == [
        ("good", 0, pytest.approx(0.3)),
        ("good", 1, pytest.approx(0.8)),
    ]


def test_beliefs_are_kept_and_taken_up_again() -> None:
    """A resumed run doubts what it doubted."""
    beliefs, again = _beliefs(), _beliefs()
    beliefs.observe([("good", 2, 0.0)] * 9)
    state = {**beliefs.state(), "gone": torch.zeros(3)}
    again.load(state)
    assert again.weights(_example("good", 8)).tolist() == beliefs.weights(_example("good", 8)).tolist()


def test_protection_can_be_switched_off_and_is_checked() -> None:
    """Without it everything counts; other methods are refused."""
    assert _beliefs(RobustConfig(method="none")).weights(_example("wrong", 8)).min() == 1.0
    for bad in (RobustConfig(method="hope"), RobustConfig(trust=0.0), RobustConfig(momentum=1.0)):
        with pytest.raises(OptionError, match="robust"):
            WordBeliefs(bad, {})
