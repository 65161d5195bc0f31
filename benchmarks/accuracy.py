"""Word error rate against word latency for every mode: chunk sizes, weights, beam, second pass, transducer.

Every mode streams the same utterances, one at a time. Modes take turns on each utterance, so that their costs
can be compared on a busy machine; costs are processor time. With ``--output`` a run that was cut goes on, and
another one adds modes (``--head``) or utterances (``--limit``) to the same table. The last line of the output
is one JSON object; ``--plot`` draws the table.

Run as ``python -m benchmarks.accuracy --manifest M.jsonl --plot accuracy.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from asr import SAMPLE_RATE, ForesoundError, Recognizer
from benchmarks.machine import fastest_weights, machine
from benchmarks.utterances import evenly_spread
from training.evaluate import load_recognizer, reference_times
from training.manifest import Utterance, WordTime, load_audio
from training.metrics import NO_EDITS, WerResult, count_edits, percentiles, play, transcribe, word_latencies

DIAL = ("minimal", "low", "medium", "high")


@dataclass(frozen=True)
class Mode:
    """One way to recognise.

    Attributes:
        family: One line of the plot.
        weights: ``int8`` or ``fp32``.
        chunk_ms: Chunk size; 0 is the original Whisper on the whole utterance at once.
        beam_size: Hypotheses.
        latency: The transducer's; None is Whisper's decoder.
        second_pass: Only the text after it is measured.
    """

    family: str
    weights: str
    chunk_ms: int
    beam_size: int = 1
    latency: str | None = None
    second_pass: bool = False

    @property
    def name(self) -> str:
        """What a row is called."""
        if not self.chunk_ms:
            return self.family
        return f"{self.family}{f' {self.latency}' if self.latency else ''}, {self.chunk_ms} ms"

    @property
    def options(self) -> dict[str, Any]:
        """What a stream is asked for."""
        common = {"chunk_ms": self.chunk_ms, "second_pass": self.second_pass}
        if self.latency:
            return common | {"decoder": "transducer", "latency": self.latency}
        return common | {"beam_size": self.beam_size}


def list_modes(chunks_ms: Sequence[int], *, formats: Sequence[str], has_head: bool) -> list[Mode]:
    """What is measured.

    Args:
        chunks_ms: Chunk sizes of greedy decoding; the middle one is that of everything else.
        formats: Of weights; the first one is that of everything else.
        has_head: Whether there is a transducer.

    Returns:
        The modes.
    """
    best, middle = formats[0], chunks_ms[len(chunks_ms) // 2]
    modes = [Mode(f"greedy, {best}", best, chunk_ms) for chunk_ms in chunks_ms]
    modes += [Mode(f"greedy, {other}", other, middle) for other in formats[1:]]
    modes.append(Mode(f"beam 4, {best}", best, middle, beam_size=4))
    modes.append(Mode(f"second pass, {best}", best, middle, second_pass=True))
    modes.append(Mode("offline Whisper", "fp32", 0))
    if has_head:
        modes += [Mode(f"transducer, {best}", best, middle, latency=latency) for latency in DIAL]
    return modes


def measure(
    recognizer: Recognizer, mode: Mode, samples: np.ndarray, *, text: str, times: Sequence[WordTime]
) -> dict[str, Any]:
    """Recognise one utterance.

    Args:
        recognizer: With the mode's weights.
        mode: How.
        samples: float32 at 16 kHz, shape (n_samples,).
        text: What was said.
        times: When.

    Returns:
        Plain values for JSON.
    """
    began = time.process_time()
    words: dict[str, Any] = {"shown_ms": [], "committed_ms": []}
    if not mode.chunk_ms:
        heard = recognizer.transcribe_offline(samples)
    elif mode.second_pass:
        heard = transcribe(recognizer.stream(**mode.options), samples)
    else:
        played = play(recognizer.stream(**mode.options), samples)
        heard = played.transcript.text
        late = word_latencies(played.words, reference=times)
        words = {"shown_ms": late.emission_ms, "committed_ms": late.commit_ms}
    edits = asdict(count_edits(text, hypothesis=heard))
    return {"text": heard, "edits": edits, "cpu_s": time.process_time() - began, **words}


def run(
    modes: Sequence[Mode],
    recognizers: dict[str, Recognizer],
    utterances: Sequence[Utterance],
    output: Path | None,
) -> list[dict[str, Any]]:
    """Recognise every utterance in every mode, except what is known.

    Args:
        modes: What to measure.
        recognizers: By format of weights.
        utterances: All with a text.
        output: Keeps what is known, a line for each utterance and mode.

    Returns:
        The lines, old and new.
    """
    lines = read_lines(output)
    known = {(line["id"], line["mode"]) for line in lines}
    aligner = next(iter(recognizers.values()))  # they share the original weights, which align
    for utterance in tqdm(utterances, unit="utterance", file=sys.stderr):
        missing = [mode for mode in modes if (utterance.id, mode.name) not in known]
        if not missing:
            continue
        samples, text = load_audio(utterance), utterance.text or ""
        times, _ = reference_times(aligner, samples, text=text, forced=None, offline_text=None)
        for mode in missing:
            about = {"id": utterance.id, "mode": mode.name, "family": mode.family, "chunk_ms": mode.chunk_ms}
            about |= {"latency": mode.latency, "audio_s": len(samples) / SAMPLE_RATE}
            found = measure(recognizers[mode.weights], mode, samples, text=text, times=times)
            lines.append(about | found)
            if output:
                with output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    return lines


def read_lines(path: Path | None) -> list[dict[str, Any]]:
    """What a run before has kept; a half-written last line is taken away."""
    if path is None or not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")
    path.write_text(whole[0] + whole[1], encoding="utf-8")
    return [json.loads(line) for line in whole[0].splitlines()]


def summarize(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each mode, in the order in which they were first measured."""
    rows = []
    for name in dict.fromkeys(line["mode"] for line in lines):
        mine = [line for line in lines if line["mode"] == name]
        edits = sum((WerResult(**line["edits"]) for line in mine), NO_EDITS)
        audio_s = sum(line["audio_s"] for line in mine)
        rows.append(
            {
                **{key: mine[0][key] for key in ("mode", "family", "chunk_ms", "latency")},
                "n": len(mine),
                "audio_s": audio_s,
                "n_words": edits.n_words,
                "wer": edits.wer,
                "latency_ms": percentiles([ms for line in mine for ms in line["shown_ms"]]),
                "commit_latency_ms": percentiles([ms for line in mine for ms in line["committed_ms"]]),
                "cpu_per_s": sum(line["cpu_s"] for line in mine) / audio_s,
            }
        )
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = [
        "| mode | utterances | WER, % | word, ms p50 / p95 | committed, ms p50 / p95 | CPU s per s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['mode']} | {row['n']} | {100 * row['wer']:.2f} | {_pair(row['latency_ms'])} | "
            f"{_pair(row['commit_latency_ms'])} | {row['cpu_per_s']:.3f} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw word error rate against median word latency, a line for each family.

    Args:
        rows: Of :func:`summarize`; those without latencies are dashed lines.
        path: The picture; its ending is the format.
    """
    from matplotlib.figure import Figure

    from benchmarks.lookahead_plot import COLOURS

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(dict.fromkeys(row["family"] for row in rows)):
        mine, colour = [row for row in rows if row["family"] == name], COLOURS[i % len(COLOURS)]
        timed = sorted((r for r in mine if r["latency_ms"]), key=lambda r: float(r["latency_ms"]["p50"]))
        if not timed:
            axes.axhline(100 * mine[0]["wer"], linestyle="--", linewidth=1, label=name, color=colour)
            continue
        points = [(r["latency_ms"]["p50"], 100 * r["wer"], r["latency"] or r["chunk_ms"]) for r in timed]
        axes.plot(*zip(*((x, y) for x, y, _ in points), strict=True), "o-", label=name, color=colour)
        for x, y, label in points:
            axes.annotate(f"{label}", (x, y), fontsize="x-small", textcoords="offset points", xytext=(4, 4))
    axes.set(xlabel="word latency, median, ms", ylabel="word error rate, %")
    axes.set_ylim(bottom=0)
    axes.grid(color="#e6eaed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    args = _parse(argv)
    try:
        best = load_recognizer(args.model, args.adapter, args.head, fastest_weights())
        recognizers = {best.weights: best}
        if best.weights != "fp32":
            recognizers["fp32"] = load_recognizer(args.model, args.adapter, "none", "fp32")
        modes = list_modes(args.chunk_ms, formats=list(recognizers), has_head=len(best.decoders) > 1)
        lines = run(modes, recognizers, evenly_spread(args.manifest, limit=args.limit), args.output)
    except ForesoundError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2
    rows = summarize(lines)
    print(format_rows(rows))
    if args.plot:
        draw(rows, args.plot)
    report = {"benchmark": "accuracy", "model": args.model, "manifest": args.manifest.name, "rows": rows}
    print(json.dumps(report | machine()))
    return 0


def _pair(values: dict[str, float] | None) -> str:
    return "-" if values is None else "{p50:.0f} / {p95:.0f}".format(**values)


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
    add("--output", type=Path, metavar="FILE.jsonl", help="what is measured; a later run goes on")
    add("--plot", type=Path, metavar="FILE", help="draw a picture, a .png or .svg")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
