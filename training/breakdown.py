"""Where errors are: by set, by speaker, by word; and what confidences are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jiwer
import numpy as np

from asr import Word
from training.metrics import NO_EDITS, normalize, word_parts
from training.report import EvaluatedUtterance, JudgedWord

N_BINS = 10  # of confidences
HISTOGRAM_MS = 40  # width of a latency histogram's bars


def judge_words(words: Sequence[Word], *, reference: str) -> tuple[JudgedWord, ...]:
    """Say of each recognised word whether the reference has it at this place.

    Args:
        words: Of a finished stream.
        reference: What was said.

    Returns:
        The words whose normalised form is not empty; one of several parts is right if all are.
    """
    parts = [(part, i) for i, word in enumerate(words) for part in word_parts(word.text)]
    wrong: set[int] = set()
    output = jiwer.process_words(normalize(reference), " ".join(part for part, _ in parts))
    for chunk in output.alignments[0]:
        if chunk.type != "equal":
            wrong.update(owner for _, owner in parts[chunk.hyp_start_idx : chunk.hyp_end_idx])
    spoken = sorted({owner for _, owner in parts})
    return tuple(
        JudgedWord(words[i].text, round(words[i].confidence, 4), is_right=i not in wrong) for i in spoken
    )


def break_down(results: Sequence[EvaluatedUtterance], *, index: int) -> dict[str, Any]:
    """Everything that a report shows of one chunk size beyond its totals.

    Args:
        results: All utterances.
        index: Of the chunk size.

    Returns:
        Plain values: WER by set and by speaker, top errors, calibration, latencies.
    """
    good = [result for result in results if not result.error]
    streamed = [result.streamed[index] for result in good]
    words = [word for each in streamed for word in each.words]
    return {
        "sets": group_wer(good, index=index, of=lambda result: result.utterance.set),
        "speakers": group_wer(good, index=index, of=lambda result: result.utterance.speaker or "(unknown)"),
        "errors": top_errors((result.utterance.text or "", result.streamed[index].text) for result in good),
        "calibration": calibrate(words),
        "latency_histogram": histogram([ms for each in streamed for ms in each.latencies.emission_ms]),
    }


def group_wer(
    results: Sequence[EvaluatedUtterance], *, index: int, of: Callable[[EvaluatedUtterance], str]
) -> list[dict[str, Any]]:
    """Word errors of groups, that with the most words first.

    Args:
        results: Without errors.
        index: Of the chunk size.
        of: Tells an utterance's group.
    """
    groups: dict[str, list[EvaluatedUtterance]] = {}
    for result in results:
        groups.setdefault(of(result), []).append(result)
    rows = []
    for name, members in groups.items():
        edits = sum((member.streamed[index].edits for member in members), NO_EDITS)
        offline = sum((m.offline_edits for m in members if m.offline_text is not None), NO_EDITS)
        rows.append(
            {
                "name": name,
                "n_utterances": len(members),
                "n_words": edits.n_words,
                "wer": edits.wer if edits.n_words else None,
                "offline_wer": offline.wer if offline.n_words else None,
            }
        )
    return sorted(rows, key=lambda row: -row["n_words"])


def top_errors(pairs: Iterable[tuple[str, str]], *, n: int = 25) -> dict[str, list[dict[str, Any]]]:
    """The commonest substitutions, deletions and insertions.

    Args:
        pairs: Reference and hypothesis of each utterance.
        n: How many of each kind.

    Returns:
        Rows with ``said``, ``heard`` and ``count``; runs of equal length are taken word by word, longer ones
        as a whole.
    """
    counts: dict[str, Counter[tuple[str, str]]] = {
        kind: Counter() for kind in ("substitutions", "deletions", "insertions")
    }
    for reference, hypothesis in pairs:
        said, heard = normalize(reference).split(), normalize(hypothesis).split()
        for chunk in jiwer.process_words(" ".join(said), " ".join(heard)).alignments[0]:
            if chunk.type == "equal":
                continue
            theirs = said[chunk.ref_start_idx : chunk.ref_end_idx]
            ours = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "substitute":
                counts["substitutions"].update(zip(theirs, ours, strict=True))
            elif chunk.type == "delete":
                counts["deletions"].update((word, "") for word in theirs)
            else:
                counts["insertions"].update(("", word) for word in ours)
    return {
        kind: [{"said": said, "heard": heard, "count": k} for (said, heard), k in counter.most_common(n)]
        for kind, counter in counts.items()
    }


def calibrate(words: Sequence[JudgedWord]) -> dict[str, Any]:
    """Compare confidences with how often words are right.

    Args:
        words: Recognised words.

    Returns:
        ``bins`` with their mean ``confidence``, the share of words that are ``right``, and ``count``; and
        ``error``, the expected calibration error: the mean distance of both over all words, None without any.
    """
    confidences = np.array([word.confidence for word in words])
    right = np.array([word.is_right for word in words], dtype=float)
    bin_of = np.minimum((confidences * N_BINS).astype(int), N_BINS - 1) if len(words) else np.zeros(0, int)
    bins = []
    for i in range(N_BINS):
        inside = bin_of == i
        if inside.any():
            bins.append(
                {
                    "confidence": round(float(confidences[inside].mean()), 4),
                    "right": round(float(right[inside].mean()), 4),
                    "count": int(inside.sum()),
                }
            )
    error = sum(b["count"] * abs(b["confidence"] - b["right"]) for b in bins) / max(1, len(words))
    return {"bins": bins, "error": round(error, 4) if words else None}


def histogram(values_ms: Sequence[float]) -> dict[str, list[float]]:
    """Counts in bars of 40 ms: ``from_ms`` and ``count`` of each."""
    if not values_ms:
        return {"from_ms": [], "count": []}
    low = HISTOGRAM_MS * int(np.floor(min(values_ms) / HISTOGRAM_MS))
    edges = np.arange(low, max(values_ms) + HISTOGRAM_MS, HISTOGRAM_MS)
    edges = np.append(edges, edges[-1] + HISTOGRAM_MS)
    counts, _ = np.histogram(values_ms, bins=edges)
    return {"from_ms": edges[:-1].tolist(), "count": counts.tolist()}
