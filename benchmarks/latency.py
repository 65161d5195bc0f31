"""One stream: how long after it was said is a word there?

Each utterance is fed in blocks of 20 ms, followed by a pause. Nothing waits: the clock is simulated from what
each call took, so a call begins when its audio has been spoken and the call before it is done. Word ends are
those of forced or weak alignment (``training.evaluate``). The last line of the output is one JSON object.

word latency       from a word's end to the first moment from which on it was shown and never changed
first text         from the first word's beginning to the first text on the screen
final              from the last word's end to the segment's final, of which ``--silence-ms`` are waited for

Run as ``python -m benchmarks.latency --manifest M.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from asr import SAMPLE_RATE, Final, ForesoundError, Partial, Recognizer
from asr.stream import Stream
from benchmarks.cost import HISS
from benchmarks.machine import machine
from training.evaluate import load_recognizer, reference_times
from training.manifest import WordTime, load_audio, read_alignments, read_manifest
from training.metrics import EmissionLog, WerResult, count_edits, word_latencies

BLOCK = SAMPLE_RATE // 50
PAUSE_S = 1.5  # after each utterance, so that its final comes by itself
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Measured:
    """Milliseconds of all utterances."""

    plain: list[float] = field(default_factory=list)  # word latency on an infinitely fast machine
    aware: list[float] = field(default_factory=list)  # word latency on this one
    committed: list[float] = field(default_factory=list)  # until it is committed, on an infinitely fast one
    first: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    edits: WerResult = field(default_factory=WerResult)
    audio_s: float = 0.0
    compute_s: float = 0.0


def play(
    stream: Stream, samples: np.ndarray, words: Sequence[WordTime], clock: Callable[[], float]
) -> Measured:
    """Stream one utterance.

    Args:
        stream: A fresh stream.
        samples: float32 at 16 kHz, with the pause.
        words: Reference times.
        clock: What tells how long a call took.

    Returns:
        Its latencies.
    """
    log, found = EmissionLog(), Measured(audio_s=len(samples) / SAMPLE_RATE)
    now_s = 0.0
    first_s: float | None = None
    final_s: float | None = None
    for start in [*range(0, len(samples), BLOCK), None]:
        heard_s = (len(samples) if start is None else min(start + BLOCK, len(samples))) / SAMPLE_RATE
        began = clock()
        events = stream.finish() if start is None else stream.feed(samples[start : start + BLOCK])
        took_s = clock() - began
        found.compute_s += took_s
        now_s = max(now_s, heard_s) + took_s
        log.add(events, time_s=heard_s, compute_aware_s=now_s)
        if first_s is None and any(isinstance(event, Partial) and event.words for event in events):
            first_s = now_s
        if start is not None and any(isinstance(event, Final) for event in events):
            final_s = now_s
    latencies = word_latencies(log.words(), reference=words)
    found.plain, found.aware = latencies.emission_ms, latencies.emission_compute_aware_ms
    found.committed = latencies.commit_ms
    if words and first_s is not None:
        found.first.append(1000 * (first_s - words[0].start_s))
    if words and final_s is not None:
        found.final.append(1000 * (final_s - words[-1].end_s))
    return found


def measure(
    recognizer: Recognizer, args: argparse.Namespace, *, forced: dict[str, list[WordTime]]
) -> Measured:
    """Stream the manifest's first utterances, each alone."""
    clock = CLOCKS[args.clock]
    total = Measured()
    rng = np.random.default_rng(0)
    chosen = [utterance for utterance in read_manifest(args.manifest) if utterance.text][: args.limit]
    warm_up = recognizer.stream(chunk_ms=args.chunk_ms)
    warm_up.feed(load_audio(chosen[0])[: 3 * SAMPLE_RATE])
    warm_up.finish()
    for utterance in chosen:
        text, samples = utterance.text or "", load_audio(utterance)
        words, _ = reference_times(
            recognizer, samples, text=text, forced=forced.get(utterance.id), offline_text=None
        )
        pause = HISS * rng.standard_normal(int(PAUSE_S * SAMPLE_RATE)).astype(np.float32)
        stream = recognizer.stream(chunk_ms=args.chunk_ms, silence_ms=args.silence_ms)
        one = play(stream, np.concatenate([samples, pause.astype(np.float32)]), words, clock)
        for name in ("plain", "aware", "committed", "first", "final"):
            getattr(total, name).extend(getattr(one, name))
        total.edits += count_edits(text, hypothesis=stream.transcript.text)
        total.audio_s += one.audio_s
        total.compute_s += one.compute_s
    return total


def summarize(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th and 99th percentile; None without values."""
    if not values:
        return None
    return {f"p{q}": round(float(np.percentile(values, q)), 1) for q in (50, 95, 99)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    args = _parse(argv)
    try:
        recognizer = load_recognizer(args.model, args.adapter, "none", args.weights)
        found = measure(recognizer, args, forced=read_alignments(args.alignments) if args.alignments else {})
    except ForesoundError as error:
        print(f"latency: {error}", file=sys.stderr)
        return 2
    rows = {
        "word, infinitely fast machine": summarize(found.plain),
        "word, this machine": summarize(found.aware),
        "word committed, infinitely fast": summarize(found.committed),
        "first text": summarize(found.first),
        "final": summarize(found.final),
    }
    print(f"{'latency, ms':34s}     p50      p95      p99")
    for name, row in rows.items():
        print(f"{name:34s}" + ("        -" if row is None else "".join(f"{ms:9.0f}" for ms in row.values())))
    rtf = found.compute_s / found.audio_s
    print(f"WER {100 * found.edits.wer:.2f} %; {rtf:.3f} s of {args.clock} time per second of audio")
    report = {
        "benchmark": "latency",
        "model": args.model,
        "weights": recognizer.weights,
        "chunk_ms": args.chunk_ms,
        "clock": args.clock,
        "latency_ms": rows,
        "n_words": len(found.aware),
        "wer": found.edits.wer,
        "compute_per_s": rtf,
        **machine(),
    }
    print(json.dumps(report))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Latency of one stream, computing included.")
    add = parser.add_argument
    add("--manifest", type=Path, required=True, metavar="M.jsonl")
    add("--alignments", type=Path, metavar="A.jsonl", help="forced word times (default: weak alignment)")
    add("--limit", type=int, default=40, metavar="N", help="utterances (default: 40)")
    add("--model", default="tiny.en")
    add("--adapter", default="auto")
    add("--weights", default="auto", help="auto, int8 or fp32 (default: auto)")
    add("--chunk-ms", type=int, default=300, metavar="N")
    add("--silence-ms", type=int, default=800, metavar="N", help="that ends a segment (default: 800)")
    add(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="of what calls take; cpu leaves out what others take of a busy machine (default: wall)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
