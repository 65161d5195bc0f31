"""What an evaluation found: its records, its JSON object and its table.

What the numbers mean is defined in :mod:`training.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training.manifest import Utterance
from training.metrics import NO_EDITS, Latencies, WerResult, corpus_wer, percentiles, spread


@dataclass(frozen=True)
class JudgedWord:
    """A recognised word."""

    text: str
    confidence: float
    is_right: bool
    """Whether it stands in the reference at this place."""


@dataclass(frozen=True)
class StreamedUtterance:
    """One utterance streamed at one chunk size."""

    chunk_ms: int
    text: str
    edits: WerResult
    compute_s: float
    """Measured seconds inside ``feed`` and ``finish``."""
    latencies: Latencies
    words: tuple[JudgedWord, ...] = ()
    """The words that were recognised, with confidences and whether they are right."""
    frame_waits_ms: tuple[int, ...] = ()
    """Lookahead of every frame of a transducer's; of the whole stream."""
    word_waits_ms: tuple[int, ...] = ()
    """Lookahead of every word."""
    second_pass_text: str | None = None
    second_pass_edits: WerResult = NO_EDITS


@dataclass(frozen=True)
class EvaluatedUtterance:
    """All that was measured on one utterance; with ``error`` set there is nothing else."""

    utterance: Utterance
    error: str | None = None
    duration_s: float = 0.0
    """Seconds of audio in the file."""
    reference_times: str = "none"
    """Source of the word times: ``forced``, ``weak`` or ``none``."""
    offline_text: str | None = None
    offline_edits: WerResult = NO_EDITS
    streamed: tuple[StreamedUtterance, ...] = ()


def record(result: EvaluatedUtterance) -> dict[str, Any]:
    """Return an utterance's line of the output file."""
    return {
        "id": result.utterance.id,
        "reference": result.utterance.text,
        "duration": result.duration_s,
        "reference_times": result.reference_times,
        "offline_text": result.offline_text,
        "streamed": [asdict(item) for item in result.streamed],
    }


def summarize(results: Sequence[EvaluatedUtterance], *, chunk_ms: Sequence[int]) -> dict[str, Any]:
    """Return the JSON object of an evaluation.

    Args:
        results: All utterances, failed ones included.
        chunk_ms: The chunk sizes at which they were streamed.

    Returns:
        The first chunk size's numbers, those of all chunk sizes under ``runs``, and what they rest on.
        A number that could not be measured is None.
    """
    good = [result for result in results if not result.error]
    duration_s = sum(result.duration_s for result in good)
    offline = [result.offline_edits for result in good if result.offline_text is not None]
    offline_wer = corpus_wer(offline)
    runs = []
    for index, size_ms in enumerate(chunk_ms):
        numbers = summarize_streams([result.streamed[index] for result in good], duration_s=duration_s)
        ratio = numbers["wer"] / offline_wer if offline_wer and numbers["wer"] is not None else None
        runs.append({"chunk_ms": size_ms, **numbers, "offline_wer": offline_wer, "wer_ratio": ratio})
    sources = [result.reference_times for result in good]
    return {
        **runs[0],
        "n_utterances": len(good),
        "n_failed": len(results) - len(good),
        "hours": duration_s / 3600,
        "reference_times": {source: sources.count(source) for source in ("forced", "weak", "none")},
        "runs": runs,
    }


def summarize_streams(streamed: Sequence[StreamedUtterance], *, duration_s: float) -> dict[str, Any]:
    """Return the numbers of a corpus streamed at one chunk size.

    Args:
        streamed: Its utterances.
        duration_s: Seconds of audio in all of them.

    Returns:
        Plain values for JSON; a number that could not be measured is None. ``rtf`` is the seconds of
        computing per second of audio.
    """
    edits = sum((item.edits for item in streamed), NO_EDITS)
    frame_waits_ms = [ms for item in streamed for ms in item.frame_waits_ms]
    word_waits_ms = [ms for item in streamed for ms in item.word_waits_ms]
    second = [item.second_pass_edits for item in streamed if item.second_pass_text is not None]
    latencies = [item.latencies for item in streamed]
    emission_ms = [ms for item in latencies for ms in item.emission_ms]
    return {
        "wer": corpus_wer([edits]),
        "n_words": edits.n_words,
        "substitutions": edits.substitutions,
        "deletions": edits.deletions,
        "insertions": edits.insertions,
        "second_pass_wer": corpus_wer(second),
        "latency_ms": percentiles(emission_ms),
        "latency_compute_aware_ms": percentiles(
            [ms for x in latencies for ms in x.emission_compute_aware_ms]
        ),
        "commit_latency_ms": percentiles([ms for item in latencies for ms in item.commit_ms]),
        "n_latency_words": len(emission_ms),
        "lookahead_ms": {"word": spread(word_waits_ms), "frame": spread(frame_waits_ms)}
        if frame_waits_ms
        else None,
        "rtf": sum(item.compute_s for item in streamed) / duration_s if streamed else None,
    }


def format_table(runs: Sequence[dict[str, Any]]) -> str:
    """Return the runs of reports as a table, one row per model and chunk size.

    Args:
        runs: From reports of :func:`summarize`, each with its ``model`` where there are several.
    """
    rows = table_cells(runs)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def table_cells(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of :func:`format_table`, titles first; columns without numbers are left out."""
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("chunk ms", lambda run: f"{run['chunk_ms']}"),
        ("WER %", lambda run: f"{100 * run['wer']:.2f}"),
        ("S/D/I", lambda run: f"{run['substitutions']}/{run['deletions']}/{run['insertions']}"),
        ("offline WER %", lambda run: f"{100 * run['offline_wer']:.2f}"),
        ("ratio", lambda run: f"{run['wer_ratio']:.2f}"),
        ("2nd pass WER %", lambda run: f"{100 * run['second_pass_wer']:.2f}"),
        ("latency ms p50/p95", lambda run: "{p50:.0f}/{p95:.0f}".format(**run["latency_ms"])),
        ("compute-aware", lambda run: "{p50:.0f}/{p95:.0f}".format(**run["latency_compute_aware_ms"])),
        ("commit ms p50/p95", lambda run: "{p50:.0f}/{p95:.0f}".format(**run["commit_latency_ms"])),
        (
            "lookahead ms mean/p95",
            lambda run: "{mean:.0f}/{p95:.0f}".format(**run["lookahead_ms"]["frame"]),
        ),
        ("RTF", lambda run: f"{run['rtf']:.3f}"),
    ]
    if len({run.get("model") for run in runs}) > 1:
        columns.insert(0, ("model", lambda run: str(run["model"])))
    for key, title in (("second_pass_wer", "2nd pass"), ("lookahead_ms", "lookahead")):
        if all(run[key] is None for run in runs):
            columns = [column for column in columns if title not in column[0]]
    rows = [[title for title, _ in columns]]
    for run in runs:
        row = []
        for _, cell in columns:
            try:
                row.append(cell(run))
            except TypeError:  # a number that could not be measured is None
                row.append("-")
        rows.append(row)
    return rows
