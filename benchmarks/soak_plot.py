"""The picture of :mod:`benchmarks.soak`: what the server held, at every quiet moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

INK, GREY, BLUE, RED = "#22303c", "#8a97a3", "#0b6e99", "#d1495b"
_PANELS = (
    ("memory (RSS), MB", ("rss_mb",)),
    ("file descriptors", ("fds",)),
    ("tasks and threads", ("tasks", "threads")),
    ("slots in use", ("slots",)),
    ("latency, ms of the wall clock", ("end_p50_ms", "word_ms")),
    ("the long stream, minutes of audio", ("long_min",)),
)
_LEGENDS = {"end_p50_ms": "from stop to done (p50)", "word_ms": "from a word's end to the word (mean)"}


def draw(samples: Sequence[dict[str, Any]], *, warm_up_s: float, path: Path) -> None:
    """Draw one panel for each kind of resource over time.

    Args:
        samples: As in the report.
        warm_up_s: Shaded; growth is counted after it.
        path: The picture; its ending is the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    minutes = [each["at_s"] / 60 for each in samples]
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, _PANELS, strict=True):
        axes.axvspan(0, warm_up_s / 60, color="#f0f3f5")
        for name, colour in zip(names, (BLUE, RED), strict=False):
            values = [each[name] for each in samples]
            axes.plot(
                minutes, values, color=colour, linewidth=1.5, marker=".", label=_LEGENDS.get(name, name)
            )
        if len(names) > 1:
            axes.legend(frameon=False, fontsize="small")
        axes.set_title(title, fontsize="medium", color=INK)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(color="#e6eaed")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("minutes", color=GREY)
    figure.savefig(path, dpi=150)
