"""Word error rate against word latency for every mode: chunk sizes, weights, beam, second pass, transducer.

Every mode streams the same utterances, one at a time, as ``foresound evaluate`` does. Modes take turns on
each utterance, so that their costs can be compared on a busy machine. The last line of the output is one
JSON object; ``--plot`` draws the table.

Run as ``python -m benchmarks.accuracy --manifest M.jsonl --plot accuracy.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from asr import ForesoundError, Recognizer
from benchmarks.machine import machine
from training.evaluate import Settings, evaluate_utterance, load_recognizer, reference_times
from training.manifest import Utterance, load_audio, read_manifest
from training.report import EvaluatedUtterance, summarize


@dataclass(frozen=True)
class Mode:
    """One way to recognise.

    Attributes:
        name: Of the family, which is one line of the plot.
        weights: ``int8`` or ``fp32``.
        settings: Of one chunk size.
    """

    name: str
    weights: str
    settings: Settings

    @property
    def chunk_ms(self) -> int:
        """Its chunk size."""
        return self.settings.chunk_ms[0]


def list_modes(args: argparse.Namespace, *, has_int8: bool) -> list[Mode]:
    """What is measured, as the options say."""
    formats = ["int8", "fp32"] if has_int8 else ["fp32"]
    modes = [
        Mode(f"greedy, {weights}", weights, Settings((chunk_ms,), offline=False))
        for weights in formats
        for chunk_ms in args.chunk_ms
    ]
    best, middle = formats[0], args.chunk_ms[len(args.chunk_ms) // 2]
    modes.append(
        Mode(f"beam 4, {best}", best, Settings((middle,), beam_size=4, second_pass=True, offline=True))
    )
    if args.head != "none":
        modes += [
            Mode(
                f"transducer, {best}",
                best,
                Settings((middle,), decoder="transducer", latency=latency, offline=False),
            )
            for latency in ("minimal", "low", "medium", "high")
        ]
    return modes


def measure(
    modes: Sequence[Mode], recognizers: dict[str, Recognizer], utterances: Sequence[Utterance]
) -> list[dict[str, Any]]:
    """Stream every utterance in every mode.

    Args:
        modes: What to measure.
        recognizers: By format of weights.
        utterances: All with a text.

    Returns:
        A row for each mode, as :func:`training.report.summarize` makes it.
    """
    results: list[list[EvaluatedUtterance]] = [[] for _ in modes]
    aligner = next(iter(recognizers.values()))  # they share the original weights, which align
    for utterance in tqdm(utterances, unit="utterance", file=sys.stderr):
        samples, text = load_audio(utterance), utterance.text or ""
        times, _ = reference_times(aligner, samples, text=text, forced=None, offline_text=None)
        for mode, found in zip(modes, results, strict=True):
            recognizer = recognizers[mode.weights]
            found.append(evaluate_utterance(recognizer, utterance, settings=mode.settings, forced=times))
    rows = []
    for mode, found in zip(modes, results, strict=True):
        numbers = summarize(found, chunk_ms=[mode.chunk_ms])
        kept = ("wer", "second_pass_wer", "offline_wer", "latency_ms", "commit_latency_ms", "rtf")
        latency = {"latency": mode.settings.latency}
        rows.append(
            {"mode": mode.name, "chunk_ms": mode.chunk_ms, **latency, **{key: numbers[key] for key in kept}}
        )
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "mode                     chunk ms    WER %   word p50/p95 ms   commit p50/p95 ms   RTF to first row"
    ]
    for row in rows:
        name = row["mode"] + (f" {row['latency']}" if row["latency"] else "")
        lines.append(
            f"{name:25s} {row['chunk_ms']:7d} {100 * row['wer']:8.2f}   "
            f"{_pair(row['latency_ms']):>15s}   {_pair(row['commit_latency_ms']):>17s}   "
            f"{row['rtf'] / rows[0]['rtf']:16.2f}"
        )
    for row in rows:
        if row["second_pass_wer"] is not None:
            lines.append(f"second pass: WER {100 * row['second_pass_wer']:.2f} %")
        if row["offline_wer"] is not None:
            lines.append(f"offline Whisper, whole utterance at once: WER {100 * row['offline_wer']:.2f} %")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw word error rate against median word latency, a line for each family.

    Args:
        rows: Of :func:`measure`.
        path: The picture; its ending is the format.
    """
    from matplotlib.figure import Figure

    from benchmarks.lookahead_plot import COLOURS

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for colour, name in zip(COLOURS, dict.fromkeys(row["mode"] for row in rows), strict=False):
        mine = sorted((r for r in rows if r["mode"] == name), key=lambda r: float(r["latency_ms"]["p50"]))
        points = [(r["latency_ms"]["p50"], 100 * r["wer"], r["chunk_ms"]) for r in mine]
        axes.plot(*zip(*((x, y) for x, y, _ in points), strict=True), "o-", label=name, color=colour)
        for x, y, chunk_ms in points:
            axes.annotate(
                f"{chunk_ms}", (x, y), fontsize="x-small", textcoords="offset points", xytext=(4, 4)
            )
    axes.set(xlabel="word latency, median, ms", ylabel="word error rate, %")
    axes.grid(color="#e6eaed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    args = _parse(argv)
    try:
        best = load_recognizer(args.model, args.adapter, args.head)
        recognizers = {best.weights: best}
        recognizers.setdefault("fp32", load_recognizer(args.model, args.adapter, args.head, "fp32"))
        utterances = [utterance for utterance in read_manifest(args.manifest) if utterance.text]
        chosen = utterances[:: max(1, len(utterances) // args.limit)][: args.limit]
        rows = measure(list_modes(args, has_int8=best.weights == "int8"), recognizers, chosen)
    except ForesoundError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2
    print(format_rows(rows))
    if args.plot:
        draw(rows, args.plot)
    report = {"benchmark": "accuracy", "model": args.model, "n_utterances": len(chosen), "rows": rows}
    print(json.dumps(report | machine()))
    return 0


def _pair(values: dict[str, float] | None) -> str:
    return "-" if values is None else "{p50:.0f}/{p95:.0f}".format(**values)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Word error rate against word latency for every mode.")
    add = parser.add_argument
    add("--manifest", type=Path, required=True, metavar="M.jsonl")
    add("--limit", type=int, default=40, metavar="N", help="utterances, evenly spread (default: 40)")
    add("--model", default="tiny.en")
    add("--adapter", default="auto")
    add("--head", default="none", help="a transducer head's folder, or auto (default: none)")
    add(
        "--chunk-ms",
        type=lambda text: sorted(int(part) for part in text.split(",")),
        default=[80, 160, 300, 600, 1000],
        metavar="N[,N...]",
        help="chunk sizes (default: 80,160,300,600,1000)",
    )
    add("--plot", type=Path, metavar="FILE", help="draw a picture, a .png or .svg")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
