from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.timing import median_filter
from whisper.tokenizer import get_tokenizer

from asr.words import (
    FRAME_SAMPLES,
    Token,
    Vocabulary,
    align_tokens,
    build_words,
    monotone_path,
    token_starts,
)

ENGLISH = Vocabulary(get_tokenizer(False))
CHINESE = Vocabulary(get_tokenizer(True, language="zh", task="transcribe"))


def encode(text: str, *, language: str = "en") -> list[int]:
    """Token ids of a text."""
    return get_tokenizer(language != "en", language=language, task="transcribe").encode(text)


def best_path(score: np.ndarray) -> float:
    """Score of the best monotone path, by the plain recursion."""
    n_rows, n_columns = score.shape
    best = np.full((n_rows + 1, n_columns + 1), -np.inf)
    best[0, 0] = 0.0
    for i in range(n_rows):
        for j in range(n_columns):
            best[i + 1, j + 1] = score[i, j] + max(best[i, j], best[i, j + 1], best[i + 1, j])
    return float(best[-1, -1])


def path_score(score: np.ndarray, starts: np.ndarray) -> float:
    """Best score of a path that enters each row at ``starts``; a step may go straight down or diagonally."""
    total, n_rows = 0.0, len(starts)
    for row in range(n_rows):
        end = score.shape[1] - 1 if row == n_rows - 1 else starts[row + 1]
        total += score[row, starts[row] : end + 1].sum()
        if row < n_rows - 1 and end > starts[row] and score[row, end] < 0:
            total -= score[row, end]  # diagonally: the row is left one frame earlier
    return total


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 20), st.integers(0, 10_000))
def test_monotone_path_is_the_best(n_rows: int, n_columns: int, seed: int) -> None:
    """Whole rows at once find the path that the plain recursion finds."""
    score = np.random.default_rng(seed).normal(size=(n_rows, n_columns))
    starts = monotone_path(score)
    assert starts[0] == 0 and (np.diff(starts) >= 0).all()
    assert path_score(score, starts) == pytest.approx(best_path(score))


def test_token_starts_follow_whispers_recipe() -> None:
    """Scaling and smoothing are those of whisper.timing."""
    weights = torch.rand(3, 6, 50, generator=torch.Generator().manual_seed(1)).softmax(-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    expected = median_filter((weights - mean) / deviation, 7).mean(dim=0).double().numpy()
    np.testing.assert_array_equal(token_starts(weights), monotone_path(expected))


def test_token_starts_find_a_staircase() -> None:
    """Tokens that look at their own stretch of frames start there."""
    weights = torch.full((2, 4, 80), 1e-4)
    for row in range(4):
        weights[:, row, 20 * row : 20 * (row + 1)] = 1.0
    assert np.abs(token_starts(weights) - [0, 20, 40, 60]).max() <= 3


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 2, 1), (2, 5, 3)])
def test_token_starts_of_very_little(shape: tuple[int, ...]) -> None:
    """Fewer frames than the filter is wide, one token, one frame: no NaN, no crash."""
    starts = token_starts(torch.rand(shape))
    assert len(starts) == shape[1] and starts.max() < shape[2]


def test_english_words_start_at_blanks() -> None:
    """Punctuation and word pieces belong to the word before them."""
    tokens = encode(" Hello, world! It's fore-sound.")
    starts = ENGLISH.word_starts(tokens)
    bounds = [*starts, len(tokens)]
    texts = [ENGLISH.text(tokens[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    assert texts == [" Hello,", " world!", " It's", " fore-sound."]


def test_chinese_characters_are_words() -> None:
    """Without blanks a complete character is a word, and punctuation joins the one before."""
    tokens = encode("你好，世界。", language="zh")
    bounds = [*CHINESE.word_starts(tokens), len(tokens)]
    texts = [CHINESE.text(tokens[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    assert "".join(texts) == "你好，世界。"
    assert all(text[0] not in "，。" for text in texts) and len(texts) >= 2


def test_incomplete_character_is_left_out() -> None:
    """A draft that ends inside a character shows only what is complete."""
    tokens = encode(" 🦉 owl", language="zh")
    texts = [CHINESE.text(tokens[:n]) for n in range(len(tokens) + 1)]
    assert not any("\ufffd" in text for text in texts)
    assert all(b.startswith(a) for a, b in zip(texts[:-1], texts[1:], strict=True))


def test_words_have_ordered_times_and_confidence() -> None:
    """Words never overlap, stay inside the segment and say what is committed."""
    ids = encode(" one two three")
    peaks = [16000, 12000, 90000]  # the second looks back, the third beyond what was heard
    tokens = [Token(i, -0.5, peak) for i, peak in zip(ids, peaks, strict=True)]
    words = build_words(tokens, ENGLISH, n_committed=2, start=8000, end=32000)
    assert [word.text for word in words] == ["one", "two", "three"]
    assert [word.stable for word in words] == [True, True, False]
    assert all(8000 <= word.start < word.end <= 32000 for word in words)
    assert all(a.end <= b.start for a, b in zip(words[:-1], words[1:], strict=True))
    assert words[0].confidence == pytest.approx(np.exp(-0.5))


def test_trailing_marks_do_not_stretch_a_word() -> None:
    """A word ends where its speech ends, not where its full stop was decided."""
    stop, go = encode(" stop."), encode(" go")
    spans = [(1000, 5000), (5000, 30000), (30000, 34000)]
    tokens = [Token(i, 0.0, 0, span) for i, span in zip([*stop, *go], spans, strict=True)]
    words = build_words(tokens, ENGLISH, n_committed=3, start=0, end=40000)
    assert [(word.text, word.start, word.end) for word in words] == [
        ("stop.", 1000, 5000),
        ("go", 30000, 34000),
    ]


def test_aligned_tokens_follow_one_another() -> None:
    """Each token's span ends where the next one's starts; nothing starts before the segment."""
    tokens = [Token(i, 0.0, 0) for i in encode(" one two three")]
    weights = torch.rand(2, 4, 100, generator=torch.Generator().manual_seed(0))
    aligned = align_tokens(tokens, weights, start=40 * FRAME_SAMPLES + 1600, origin=1600)
    spans = [token.span for token in aligned]
    assert all(span is not None and span[0] <= span[1] for span in spans)
    assert all(a[1] == b[0] for a, b in zip(spans[:-1], spans[1:], strict=True) if a and b)
    assert spans[0] and spans[0][0] >= 40 * FRAME_SAMPLES + 1600
