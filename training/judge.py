"""How far a transcript is from what the teacher hears, and whether it is wrong.

The teacher hears a window of several utterances as one text; an edit alignment tells each utterance's share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

from training.metrics import normalize

FEW_WORDS = 3  # texts shorter than this are wrong only if the teacher thinks them next to impossible


@dataclass(frozen=True)
class Limits:
    """When a transcript counts as wrong."""

    distance: float = 0.7
    """Edits per word of the longer text; above it the transcript is wrong ..."""
    confidence: float = 0.5
    """... unless the teacher finds its words this probable on average."""


@dataclass(frozen=True)
class Share:
    """What of the teacher's text belongs to one utterance."""

    heard: str
    """Normalised words."""
    distance: float
    """Edits per word of the longer text, 0 to 1."""


def share_out(references: Sequence[str], teacher: str, *, durations_s: Sequence[float]) -> list[Share]:
    """Compare utterances that follow one another with the teacher's text of them all.

    Args:
        references: Their transcripts, in order.
        teacher: What the teacher heard.
        durations_s: Lengths of the utterances; surplus words between two of them belong to the one that has
            less text for its length.

    Returns:
        One share for each utterance.
    """
    words = [normalize(reference).split() for reference in references]
    owners = [i for i, mine in enumerate(words) for _ in mine]
    flat = [word for mine in words for word in mine]
    said = normalize(teacher).split()
    density = [len(mine) / max(0.1, s) for mine, s in zip(words, durations_s, strict=True)]
    n_edits, heard = [0] * len(words), [list[str]() for _ in words]
    for chunk in jiwer.process_words(" ".join(flat), " ".join(said)).alignments[0]:
        spoken = said[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            owner = _owner(chunk.ref_start_idx, owners, density)
            n_edits[owner] += len(spoken)
            heard[owner] += spoken
            continue
        for offset, at in enumerate(range(chunk.ref_start_idx, chunk.ref_end_idx)):
            n_edits[owners[at]] += chunk.type != "equal"
            if chunk.type != "delete":
                heard[owners[at]].append(spoken[offset])
    return [
        Share(" ".join(h), min(1.0, n / max(1, len(w), len(h))))
        for n, w, h in zip(n_edits, words, heard, strict=True)
    ]


def _owner(at: int, owners: Sequence[int], density: Sequence[float]) -> int:
    """Whose the surplus words before the reference word ``at`` are."""
    if not owners:
        return min(range(len(density)), key=density.__getitem__)
    before, after = owners[max(0, at - 1)], owners[min(at, len(owners) - 1)]
    return min(range(before, after + 1), key=density.__getitem__)


def find_wrong(text: str, share: Share, *, confidence: float, limits: Limits) -> str | None:
    """Why a transcript is wrong, None if it may be right.

    Args:
        text: The transcript.
        share: What the teacher heard.
        confidence: Mean probability of the transcript's words to the teacher.
        limits: How much disagreement is too much.
    """
    n_words = len(normalize(text).split())
    tolerated = limits.confidence if n_words >= FEW_WORDS else limits.confidence / 10
    if share.distance <= limits.distance or confidence >= tolerated:
        return None
    return (
        f"the teacher hears {share.heard[:60]!r} (distance {share.distance:.2f}, confidence {confidence:.2f})"
    )
