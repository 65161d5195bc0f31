"""The table and the picture of the side-by-side benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OURS, THEIRS, INK = "#0b6e99", "#b8c1c8", "#22303c"


def format_rows(rows: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown, and the settings below it."""
    lines = [
        "| system | utterances | WER, % | word, ms p50 / p95 | committed, ms p50 / p95 | CPU s per s | "
        "streams per core | ratio | MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        wer = "-" if row["wer"] is None else f"{100 * row['wer']:.1f}"
        shown, committed = (
            "-" if row[key] is None else f"{row[key]['p50']:.0f} / {row[key]['p95']:.0f}"
            for key in ("word_ms", "committed_ms")
        )
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.1f}"
        lines.append(
            f"| {name} | {row['n']} | {wer} | {shown} | {committed} | {row['cpu_per_s']:.3f} | "
            f"{row['streams_per_core']:.1f} | {ratio} | {row['rss_mb']} |"
        )
    return "\n".join([*lines, "", *(f"{name}: {row['settings']}" for name, row in rows.items())])


def draw(rows: dict[str, dict[str, Any]], path: Path, *, title: str) -> None:
    """Draw the streams that a core serves, with word error rate and word latency beside each bar.

    Args:
        rows: The table's.
        path: The picture; its ending is the format.
        title: What it is about.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = sorted(rows, key=lambda name: float(rows[name]["streams_per_core"]))
    values = [rows[name]["streams_per_core"] for name in names]
    colours = [OURS if name.startswith("foresound") else THEIRS for name in names]
    axes.barh(names, values, color=colours)
    for i, name in enumerate(names):
        axes.annotate(
            _label(rows[name]), (values[i], i), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize="small", color=INK,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(0.9 * min(0.5, *values), 8 * max(values))
    axes.set_xlabel("streams per core (one over processor seconds per second of audio)")
    axes.set_title(title, fontsize="medium", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _label(row: dict[str, Any]) -> str:
    text = f"{row['streams_per_core']:.1f}"
    if row["wer"] is not None:
        text += f", WER {100 * row['wer']:.1f} %"
    if row["word_ms"] is not None:
        text += f", word {row['word_ms']['p50'] / 1000:.1f} s"
    return text
