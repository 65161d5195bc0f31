"""A picture of a clip: its waveform, its words, and how far ahead each frame looked.

``python -m benchmarks.lookahead_picture --audio clip.flac --latency medium -o clip.png`` takes the shipped
head, or one from ``--head``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asr import SAMPLE_RATE, ForesoundError, Recognizer, Word
from asr.audio import read_audio
from asr.head import HEAD_FRAME_MS
from benchmarks.lookahead_plot import GREY, INK
from training.evaluate import load_recognizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

FRAME_S = HEAD_FRAME_MS / 1000
_COLOURS = "viridis_r"


@dataclass(frozen=True)
class Clip:
    """What was heard.

    Attributes:
        samples: float32 at 16 kHz.
        words: With their times.
        waits_ms: How far ahead each frame of 40 ms looked.
    """

    samples: np.ndarray
    words: Sequence[Word]
    waits_ms: Sequence[int]

    @property
    def duration_s(self) -> float:
        """Its length."""
        return len(self.samples) / SAMPLE_RATE


def listen(
    recognizer: Recognizer, samples: np.ndarray, *, latency: str | float | None, chunk_ms: int
) -> Clip:
    """Stream a clip through the transducer.

    Args:
        recognizer: With a head.
        samples: The clip.
        latency: As in :meth:`asr.Recognizer.stream`.
        chunk_ms: Of the encoder.
    """
    stream = recognizer.stream(decoder="transducer", latency=latency, chunk_ms=chunk_ms)
    stream.feed(samples)
    stream.finish()
    n_frames = math.ceil(len(samples) / SAMPLE_RATE / FRAME_S)  # without those of the silence at its end
    return Clip(samples, stream.transcript.words, stream.waits.frames_ms()[:n_frames])


def draw(clip: Clip, path: Path, *, title: str, row_s: float = 6.0) -> None:
    """Draw a clip in rows of some seconds, each a waveform with words over its frames' looks.

    Args:
        clip: What was heard.
        path: The picture; its ending is the format.
        title: Over it.
        row_s: Seconds of a row at most.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    n_rows = max(1, math.ceil(clip.duration_s / row_s))
    row_s = clip.duration_s / n_rows
    figure = Figure(figsize=(12, 0.8 + 2.9 * n_rows), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=12)
    grid = figure.add_gridspec(2 * n_rows, 1, height_ratios=[1.5, 1] * n_rows)
    norm = Normalize(0, max(HEAD_FRAME_MS, *clip.waits_ms))
    for row in range(n_rows):
        start_s = row * row_s
        top, bottom = figure.add_subplot(grid[2 * row]), figure.add_subplot(grid[2 * row + 1])
        _draw_wave(top, clip, norm)
        _draw_words(top, [word for word in clip.words if start_s <= _middle_s(word) < start_s + row_s])
        _draw_waits(bottom, clip, norm)
        for axes in (top, bottom):
            axes.set_xlim(start_s, start_s + row_s)
            axes.spines[["top", "right"]].set_visible(False)
        top.tick_params(labelbottom=False)
    bottom.set_xlabel("time, s", color=INK)
    bar = figure.colorbar(ScalarMappable(norm, _COLOURS), ax=figure.axes, pad=0.01, aspect=40)
    bar.set_label("looked ahead, ms", color=INK)
    figure.savefig(path, dpi=150)


def _draw_wave(axes: Axes, clip: Clip, norm: Normalize) -> None:
    """The range of the samples in each 10 ms, in the colour of the frame's look."""
    from matplotlib import colormaps

    per_bar = SAMPLE_RATE // 100
    bars = clip.samples[: len(clip.samples) // per_bar * per_bar].reshape(-1, per_bar)
    times_s = np.arange(len(bars)) / 100
    frames = np.minimum((times_s / FRAME_S).astype(int), len(clip.waits_ms) - 1)
    colours = colormaps[_COLOURS](norm(np.asarray(clip.waits_ms)[frames]))
    axes.bar(times_s, np.ptp(bars, axis=1), 0.01, bottom=bars.min(axis=1), color=colours, align="edge")
    loudest = max(float(np.abs(clip.samples).max()), 1e-3)
    axes.set_ylim(-1.1 * loudest, 2.0 * loudest)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _draw_words(axes: Axes, words: Sequence[Word]) -> None:
    """Texts over their spans, in two heights by turns so that short ones have room."""
    top = axes.get_ylim()[1]
    for index, word in enumerate(words):
        height = top * (0.88 if index % 2 else 0.70)
        axes.axvspan(word.start_s, word.end_s, color=GREY, alpha=0.20 if index % 2 else 0.10, linewidth=0)
        axes.text(_middle_s(word), height, word.text, ha="center", va="center", fontsize=10, color=INK)


def _middle_s(word: Word) -> float:
    return (word.start_s + word.end_s) / 2


def _draw_waits(axes: Axes, clip: Clip, norm: Normalize) -> None:
    """One bar for each frame."""
    from matplotlib import colormaps

    waits = np.asarray(clip.waits_ms)
    times_s = np.arange(len(waits)) * FRAME_S
    axes.bar(times_s, waits, 0.92 * FRAME_S, color=colormaps[_COLOURS](norm(waits)), align="edge")
    axes.axhline(waits.mean(), color=GREY, linewidth=1, linestyle=":")
    axes.set_ylim(0, float(norm.vmax or 1) * 1.05)
    axes.set_ylabel("looked ahead, ms", color=INK)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e6eaed")


def _latency(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--audio", type=Path, required=True, help="a clip of speech")
    add("-o", "--output", type=Path, required=True, help="the picture, .png or .svg")
    add("--latency", type=_latency, help="minimal, low, medium, high or ms (default: as it was trained)")
    add("--chunk-ms", type=int, default=300, help="chunk size (default: 300)")
    add("--model", default="tiny.en", help="checkpoint name or path (default: tiny.en)")
    add("--adapter", default="auto", help="auto, none or a folder (default: auto)")
    add("--head", default="auto", help="auto or a folder (default: auto)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.lookahead_picture``."""
    args = parse(argv)
    try:
        with read_audio(args.audio) as source:
            samples = np.concatenate([*source.blocks(1.0)])
        recognizer = load_recognizer(args.model, args.adapter, args.head)
        clip = listen(recognizer, samples, latency=args.latency, chunk_ms=args.chunk_ms)
    except ForesoundError as error:
        print(f"lookahead_picture: {error}", file=sys.stderr)
        return 2
    shown = "as trained" if args.latency is None else args.latency
    mean_ms = np.mean(clip.waits_ms)
    title = f"{args.audio.name}: latency {shown}, frames looked {mean_ms:.0f} ms ahead on average"
    draw(clip, args.output, title=title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
