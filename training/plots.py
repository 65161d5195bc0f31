"""The pictures of an evaluation report, as PNG files; needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MAX_SPEAKERS = 30


def draw(folder: Path, models: Sequence[dict[str, Any]]) -> dict[str, Path]:
    """Draw all pictures.

    Args:
        folder: Where the files go.
        models: Each with ``title``, its ``runs`` as :func:`training.report.summarize` has them, and a
            ``breakdown`` for each of them.

    Returns:
        Files by title.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pictures: dict[str, tuple[str, Callable[[Any, Sequence[dict[str, Any]]], None]]] = {
        "Word error rate by chunk size": ("wer.png", _draw_wer),
        "How late words are shown": ("latency.png", _draw_latency),
        "What confidences are worth": ("calibration.png", _draw_calibration),
        "Word error rate by speaker": ("speakers.png", _draw_speakers),
    }
    files = {}
    for title, (name, paint) in pictures.items():
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        paint(axes, models)
        axes.set_title(title)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
        figure.savefig(folder / name, dpi=110)
        pyplot.close(figure)
        files[title] = folder / name
    return files


def _draw_wer(axes: Any, models: Sequence[dict[str, Any]]) -> None:
    for model in models:
        runs = sorted((run for run in model["runs"] if run["wer"] is not None), key=lambda r: r["chunk_ms"])
        chunks = [run["chunk_ms"] for run in runs]
        (line,) = axes.plot(chunks, [100 * run["wer"] for run in runs], "o-", label=model["title"])
        offline = next((run["offline_wer"] for run in runs if run["offline_wer"] is not None), None)
        if offline is not None:
            axes.axhline(
                100 * offline, color=line.get_color(), ls=":", lw=1, label=f"{model['title']}, offline"
            )
    axes.set(xlabel="chunk, ms", ylabel="WER, %")
    axes.set_ylim(bottom=0)


def _draw_latency(axes: Any, models: Sequence[dict[str, Any]]) -> None:
    for model in models:
        for run, part in zip(model["runs"], model["breakdown"], strict=True):
            bars = part["latency_histogram"]
            if bars["count"]:
                total = sum(bars["count"])
                shares = [100 * count / total for count in bars["count"]]
                label = f"{model['title']}, {run['chunk_ms']} ms"
                axes.step(bars["from_ms"], shares, where="post", label=label)
    axes.set(xlabel="ms from a word's end until it is shown for good", ylabel="words, %")


def _draw_calibration(axes: Any, models: Sequence[dict[str, Any]]) -> None:
    axes.plot([0, 1], [0, 1], color="grey", lw=1)
    for model in models:
        found = model["breakdown"][0]["calibration"]
        if found["bins"]:
            label = f"{model['title']}, {model['runs'][0]['chunk_ms']} ms, error {found['error']:.3f}"
            axes.plot(
                [b["confidence"] for b in found["bins"]],
                [b["right"] for b in found["bins"]],
                "o-",
                label=label,
            )
    axes.set(xlabel="confidence", ylabel="share of words that are right", xlim=(0, 1), ylim=(0, 1.02))


def _draw_speakers(axes: Any, models: Sequence[dict[str, Any]]) -> None:
    names = [row["name"] for row in models[0]["breakdown"][0]["speakers"]][:MAX_SPEAKERS]
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        wer = {row["name"]: row["wer"] for row in model["breakdown"][0]["speakers"]}
        at = [i + number * width for i in range(len(names))]
        axes.bar(at, [100 * (wer.get(name) or 0) for name in names], width, label=model["title"])
    axes.set_xticks(
        [i + 0.4 - width / 2 for i in range(len(names))], names, rotation=60, ha="right", fontsize=7
    )
    axes.set(ylabel=f"WER, % ({models[0]['runs'][0]['chunk_ms']} ms chunks)")
