"""Decoding rules: each looks at the text so far and forbids or favours tokens (as Whisper's logit filters).

Axis letter: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from whisper.tokenizer import Tokenizer

from asr.words import Vocabulary

MAX_TOKENS_PER_S = 12.0  # twice the fastest speech
EXTRA_TOKENS = 6  # allowed before the first second is over
_SHORT_TOKENS, _SHORT_TIMES = 2, 5  # a phrase of up to 2 tokens is a loop when it comes for the 5th time ...
_LONG_TOKENS, _LONG_TIMES = 8, 3  # ... and one of up to 8 tokens for the 3rd
_LOOP_CONTEXT = _LONG_TOKENS * _LONG_TIMES  # tokens that the guard looks back on


@dataclass(frozen=True)
class Context:
    """What a rule may look at.

    Attributes:
        tokens: Text tokens of the window so far, without prompt and special tokens.
        heard_s: Seconds of audio in the window.
        n_in_segment: How many of the last tokens belong to the running segment.
        n_decided: How many of the first tokens the search will not give up for others any more.
    """

    tokens: Sequence[int]
    heard_s: float
    n_in_segment: int
    n_decided: int = 0


class Rule(Protocol):
    """One decoding rule."""

    def apply(self, logits: Tensor, context: Context) -> None:
        """Change the logits ``[V]`` in place: -inf forbids a token, anything else moves its score."""


class SuppressTokens:
    """Forbids non-speech symbols, timestamps and every special token except end-of-text."""

    def __init__(self, tokenizer: Tokenizer, *, n_vocab: int, device: torch.device | str = "cpu") -> None:
        """List them once."""
        symbols = sorted(token for token in tokenizer.non_speech_tokens if token < n_vocab)
        self._symbols = torch.tensor(symbols, dtype=torch.int64, device=device)
        self._first_special = tokenizer.eot + 1

    def apply(self, logits: Tensor, context: Context) -> None:
        """Forbid them everywhere."""
        logits.index_fill_(0, self._symbols, -torch.inf)
        logits[self._first_special :] = -torch.inf


class StartWithAWord:
    """Lets a segment begin with a word: no blank, no mark, no ending of the word before."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        *,
        n_vocab: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build the mask once."""
        banned = [not vocabulary.begins_word(token) for token in range(tokenizer.eot)]
        self._banned = torch.zeros(n_vocab, dtype=torch.bool, device=device)
        self._banned[: len(banned)] = torch.tensor(banned, device=device)

    def apply(self, logits: Tensor, context: Context) -> None:
        """Forbid the others at a segment's start."""
        if context.n_in_segment == 0:
            logits.masked_fill_(self._banned, -torch.inf)


class RateCap:
    """Ends the text when it holds more tokens than anybody can speak in the time heard."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Remember end-of-text."""
        self._eot = tokenizer.eot

    def apply(self, logits: Tensor, context: Context) -> None:
        """Allow end-of-text only once the cap is reached."""
        if len(context.tokens) >= EXTRA_TOKENS + MAX_TOKENS_PER_S * context.heard_s:
            only(logits, self._eot)


class LoopGuard:
    """Forbids going round in circles.

    A phrase of 3 to 8 tokens may be said twice in a row, one of 1 or 2 tokens four times.
    """

    def apply(self, logits: Tensor, context: Context) -> None:
        """Forbid every token that would repeat a phrase once more."""
        tail = context.tokens[-_LOOP_CONTEXT:]
        for size in range(1, _LONG_TOKENS + 1):
            times = _SHORT_TIMES if size <= _SHORT_TOKENS else _LONG_TIMES
            # Only the token that was said a phrase ago can go on with the phrase.
            if len(tail) >= size and _repeats([*tail, tail[-size]], size, times=times):
                logits[tail[-size]] = -torch.inf


def default_rules(tokenizer: Tokenizer, *, n_vocab: int, device: torch.device | str = "cpu") -> list[Rule]:
    """The rules of speech recognition, in order."""
    return [
        SuppressTokens(tokenizer, n_vocab=n_vocab, device=device),
        StartWithAWord(tokenizer, Vocabulary(tokenizer), n_vocab=n_vocab, device=device),
        RateCap(tokenizer),
        LoopGuard(),
    ]


def likeliest(scores: Tensor) -> int:
    """Index of the largest of ``[V]``."""
    # torch's own argmax takes 20 times as long on a processor.
    return int(scores.numpy().argmax() if scores.device.type == "cpu" else scores.argmax())


def only(logits: Tensor, token: int) -> None:
    """Forbid everything but ``token``, in place."""
    kept = logits[token].clone()
    logits.fill_(-torch.inf)
    logits[token] = kept


def _repeats(tokens: Sequence[int], size: int, *, times: int) -> bool:
    """Whether ``tokens`` ends with a phrase of ``size`` tokens said ``times`` times."""
    tail = tokens[-size * times :]
    return len(tail) == size * times and all(tail[i] == tail[i + size] for i in range(len(tail) - size))
