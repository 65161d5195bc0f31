"""Transcripts without case or punctuation, in the spelling of the teacher's own transcription."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def spell_like_teacher(reference: str, teacher: str) -> str:
    """Give ``reference`` the teacher's case and punctuation wherever their words agree.

    A reference that is not plain is returned as it is. Words are compared in
    lower case without punctuation; a word that the teacher heard differently is kept, in lower case.
    """
    if not is_plain(reference):
        return reference
    ours = reference.lower().split()
    theirs = teacher.split()
    heard = [bare(word) for word in theirs]
    spelled = list(ours)
    for i, j in matching_pairs([word.strip("'") for word in ours], heard):
        spelled[i] = theirs[j].strip('"“”()[]')
    text = " ".join(word for word in spelled if word)
    text = text.replace(" i ", " I ").replace(" i'", " I'")
    return text[:1].upper() + text[1:]


def is_plain(text: str) -> bool:
    """Whether a text is all in capitals, or all in small letters without punctuation marks."""
    return text == text.upper() or (text == text.lower() and not set(text) & set(".,;:?!"))


def bare(word: str) -> str:
    """A word in lower case without marks."""
    return "".join(c for c in word.lower() if c.isalnum() or c == "'").strip("'")


def matching_pairs(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Index pairs of equal items on a minimum edit path from ``a`` to ``b``."""
    cost = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int32)
    cost[:, 0] = np.arange(len(a) + 1)
    cost[0] = np.arange(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            cost[i, j] = min(cost[i - 1, j - 1] + (x != y), cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1] and cost[i, j] == cost[i - 1, j - 1]:
            yield i - 1, j - 1
            i, j = i - 1, j - 1
        elif cost[i, j] == cost[i - 1, j - 1] + 1:
            i, j = i - 1, j - 1
        elif cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1


def spell_utterances(references: Sequence[str], teacher: str) -> list[str]:
    """Give texts that the teacher heard as one its case and punctuation, as :func:`spell_like_teacher` does.

    Args:
        references: The texts, in order.
        teacher: What the teacher heard of all of them.
    """
    if not any(map(is_plain, references)):
        return list(references)
    spelled = spell_like_teacher(" ".join(references).upper(), teacher).split()
    texts, cursor = [], 0
    for reference in references:
        n_words = len(reference.split())
        text = " ".join(spelled[cursor : cursor + n_words])
        cursor += n_words
        texts.append(text[:1].upper() + text[1:] if is_plain(reference) else reference)
    return texts
