"""The plot of :mod:`benchmarks.lookahead`: word errors against lookahead and against word latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

INK, GREY = "#22303c", "#8a97a3"
COLOURS = ("#0b6e99", "#d1495b", "#e3a008", "#3c8d5a", "#7b5ea7", "#59636e", "#c2703d")
_MARKERS = ("o", "s", "^", "D")


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw rows; those of one name and chunk size are a line.

    Args:
        results: The rows' numbers.
        path: The picture; its ending is the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(each["name"] for each in results))
    chunks_ms = list(dict.fromkeys(each["chunk_ms"] for each in results))
    for name in names:
        for chunk_ms in chunks_ms:
            rows = [each for each in results if (each["name"], each["chunk_ms"]) == (name, chunk_ms)]
            label = f"{name}, {chunk_ms} ms chunks"
            style = {
                "color": COLOURS[names.index(name) % len(COLOURS)],
                "marker": _MARKERS[chunks_ms.index(chunk_ms) % len(_MARKERS)],
                "linestyle": "-" if chunk_ms == chunks_ms[0] else "--",
            }
            _line(left, [(_mean_look(each), 100 * each["wer"]) for each in rows], label=label, **style)
            late = [(each["latency_ms"]["p50"], 100 * each["wer"]) for each in rows if each["latency_ms"]]
            _line(right, late, label=None, **style)
    left.set(xlabel="lookahead, mean over frames, ms", ylabel="word error rate, %")
    right.set(xlabel="word latency, median, ms")
    for axes in (left, right):
        axes.grid(color="#e6eaed")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def _line(axes: Any, points: Sequence[tuple[float, float]], *, label: str | None, **style: Any) -> None:
    points = sorted(points)
    if points:
        axes.plot([x for x, _ in points], [y for _, y in points], label=label, linewidth=1.5, **style)


def _mean_look(numbers: dict[str, Any]) -> float:
    """Whisper's decoder looks at nothing beyond its chunk."""
    return float(numbers["lookahead_ms"]["frame"]["mean"]) if numbers["lookahead_ms"] else 0.0
