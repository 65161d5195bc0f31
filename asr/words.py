"""From tokens to words: where words begin, when they were said, how sure the model is.

Axis letters: A alignment heads, U tokens, T encoder frames.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.tokenizer import Tokenizer

from asr.events import Word

SPACELESS_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
FRAME_SAMPLES = 320
BIAS_FRAMES = 4  # cross-attention moves to a word this much after a forced alignment's boundary (median)
LEAD_SAMPLES = 10 * FRAME_SAMPLES  # a live word starts this much before its first token's attention peak ...
TAIL_SAMPLES = 2 * FRAME_SAMPLES  # ... and ends this much after its last token's
MIN_WORD_SAMPLES = FRAME_SAMPLES
_MEDIAN_WIDTH = 7


@dataclass(frozen=True)
class Token:
    """One text token in its place.

    Attributes:
        id: Vocabulary index.
        logprob: Log-probability after the decoding rules.
        peak: Sample where the alignment heads looked when it was predicted.
        span: Start and end in samples, once it has been aligned.
    """

    id: int
    logprob: float
    peak: int
    span: tuple[int, int] | None = None


class Vocabulary:
    """Texts of tokens, and where words begin in a sequence of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap Whisper's tokenizer; its language decides whether words are separated by blanks."""
        self._tokenizer = tokenizer
        self._spaced = tokenizer.language not in SPACELESS_LANGUAGES

    def text(self, tokens: Iterable[int]) -> str:
        """The tokens' text; a character that is not complete yet is left out."""
        return self._tokenizer.encoding.decode_bytes(list(tokens)).decode("utf-8", errors="ignore")

    def word_starts(self, tokens: Sequence[int]) -> list[int]:
        """Indices of the tokens that begin a word; the first token always does.

        Punctuation belongs to the word before it. In a language without blanks, every complete character
        that is not punctuation counts as a word.
        """
        if self._spaced:
            return [i for i, token in enumerate(tokens) if i == 0 or self._bytes(token).startswith(b" ")]
        return self._unit_starts(tokens)

    def begins_word(self, token: int) -> bool:
        """Whether a text may begin with this token: not a blank, not a mark, not a word's ending."""
        bare = self._bytes(token)
        if self._spaced and not bare.startswith(b" "):
            return False
        return bool(bare.strip()) and not self.is_mark(token)

    def n_spoken(self, tokens: Sequence[int]) -> int:
        """How many of a word's tokens are left without its trailing punctuation; at least one."""
        n_tokens = len(tokens)
        while n_tokens > 1 and self.is_mark(tokens[n_tokens - 1]):
            n_tokens -= 1
        return n_tokens

    def _unit_starts(self, tokens: Sequence[int]) -> list[int]:
        """Indices of the tokens that begin complete characters, punctuation left out."""
        starts, first, unit = [], 0, b""
        for i, token in enumerate(tokens):
            unit += self._bytes(token)
            try:
                is_mark = _is_punctuation(unit.decode("utf-8"))
            except UnicodeDecodeError:
                continue
            if first == 0 or not is_mark:
                starts.append(first)
            first, unit = i + 1, b""
        return [*starts, first] if unit else starts

    def _bytes(self, token: int) -> bytes:
        return self._tokenizer.encoding.decode_single_token_bytes(token)

    def is_mark(self, token: int) -> bool:
        """Whether a token is punctuation alone."""
        return _is_punctuation(self._bytes(token).decode("utf-8", errors="replace"))


def _is_punctuation(text: str) -> bool:
    bare = text.strip()
    return bool(bare) and all(unicodedata.category(c).startswith("P") for c in bare)


def build_words(
    tokens: Sequence[Token], vocabulary: Vocabulary, *, n_committed: int, start: int, end: int
) -> tuple[Word, ...]:
    """The words of a segment.

    Args:
        tokens: The segment's tokens, committed ones first.
        vocabulary: Knows where words begin.
        n_committed: How many tokens are committed.
        start: No word starts before this sample.
        end: No word ends after this sample.

    Returns:
        Words in order, none of which overlaps the next; each lasts a little where there is room at all.
    """
    ids = [token.id for token in tokens]
    bounds = [*vocabulary.word_starts(ids), len(tokens)]
    pieces = list(zip(bounds[:-1], bounds[1:], strict=True))
    # Every word that follows keeps a little room, however late the times of those before it are.
    room = min(MIN_WORD_SAMPLES, max(0, end - start) // max(1, len(pieces)))
    words: list[Word] = []
    cursor = start
    for i, (first, last) in enumerate(pieces):
        text = vocabulary.text(ids[first:last]).strip()
        if not text:
            continue
        latest_end = max(end, start) - (len(pieces) - i - 1) * room
        word_start, word_end = _span(tokens[first : first + vocabulary.n_spoken(ids[first:last])])
        if last < len(tokens):
            word_end = min(word_end, token_start(tokens[last]))
        word_start = min(max(word_start, cursor), latest_end - room)
        word_end = min(max(word_end, word_start + room), latest_end)
        cursor = word_end
        confidence = math.exp(sum(token.logprob for token in tokens[first:last]) / (last - first))
        words.append(Word(text, word_start, word_end, confidence, last <= n_committed))
    return tuple(words)


def token_start(token: Token) -> int:
    """Where a token begins: aligned, or else estimated from its attention peak."""
    return token.span[0] if token.span else token.peak - LEAD_SAMPLES


def _span(tokens: Sequence[Token]) -> tuple[int, int]:
    """Start and end of a word's spoken tokens: aligned, or else around the attention peaks."""
    first, last = tokens[0], tokens[-1]
    end = last.span[1] if last.span else max(token.peak for token in tokens) + TAIL_SAMPLES
    return token_start(first), end


def align_tokens(tokens: Sequence[Token], weights: Tensor, *, start: int, origin: int) -> list[Token]:
    """Give tokens their spans by dynamic time warping.

    Args:
        tokens: U tokens in order.
        weights: ``[A, U + 1, T]`` attention of the positions that predict them and end-of-text.
        start: Sample before which nothing was said.
        origin: Sample of frame 0.

    Returns:
        The same tokens with spans.
    """
    first = min(max(0, (start - origin) // FRAME_SAMPLES), weights.shape[-1] - 1)
    frames = first + token_starts(weights[..., first:])
    times = (origin + np.maximum(frames - BIAS_FRAMES, first) * FRAME_SAMPLES).tolist()
    return [replace(token, span=(times[i], times[i + 1])) for i, token in enumerate(tokens)]


def token_starts(weights: Tensor) -> np.ndarray:
    """Dynamic time warping of the alignment heads' attention, as whisper.timing does it.

    Args:
        weights: ``[A, U, T]`` cross-attention; row u belongs to the position that predicts token u.

    Returns:
        ``[U]`` int64, the frame at which the path moves to each token; never decreasing.
    """
    deviation, mean = torch.std_mean(weights.float(), dim=-2, keepdim=True, unbiased=False)
    # One token alone has no deviation, neither has a frame that no head looks at.
    scaled = (weights - mean) / deviation.clamp(min=1e-9)
    return monotone_path(_median_filter(scaled).mean(dim=0).double().cpu().numpy())


def _median_filter(x: Tensor) -> Tensor:
    """Median of every ``_MEDIAN_WIDTH`` neighbours along the last axis of ``[A, U, T]``."""
    reach = _MEDIAN_WIDTH // 2
    if x.shape[-1] <= reach:
        return x
    return F.pad(x, (reach, reach), mode="reflect").unfold(-1, _MEDIAN_WIDTH, 1).median(dim=-1).values


def monotone_path(score: np.ndarray) -> np.ndarray:
    """Column at which the best monotone path through ``score`` ``[U, T]`` enters each row.

    The path goes from the first corner to the last by steps right, down or both. A row's best cost is a
    running minimum over entry columns, so whole rows are computed at once.
    """
    n_rows, n_columns = score.shape
    entries = np.zeros((n_rows, n_columns), dtype=np.int64)  # where the path to (row, column) entered the row
    from_above = np.zeros((n_rows, n_columns), dtype=bool)  # whether it came straight down, not diagonally
    cost = -np.cumsum(score[0])
    for row in range(1, n_rows):
        diagonal = np.concatenate([[np.inf], cost[:-1]])
        from_above[row] = cost < diagonal
        total = -np.cumsum(score[row])
        entry_cost = np.minimum(cost, diagonal) - np.concatenate([[0.0], total[:-1]])
        best = np.minimum.accumulate(entry_cost)
        is_new = np.concatenate([[True], entry_cost[1:] < best[:-1]])
        entries[row] = np.maximum.accumulate(np.where(is_new, np.arange(n_columns), 0))
        cost = total + best
    starts = np.zeros(n_rows, dtype=np.int64)
    column = n_columns - 1
    for row in range(n_rows - 1, 0, -1):
        starts[row] = entries[row, column]
        column = starts[row] - (0 if from_above[row, starts[row]] else 1)
    return starts
