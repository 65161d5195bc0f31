"""One recording of many minutes: does a stream cost the same at its end, and are its seams clean?

Joins LibriSpeech chapters of a manifest into one recording, streams it, and streams the same utterances
alone. A constant cost per chunk and an equal word error rate show that re-anchoring neither grows
nor loses or doubles words. The last minute is fed to a fresh stream as well, chunk by chunk in turn: what is
said costs more or less, and so does a busy machine. The last line of the output is one JSON object.

Run as ``python -m benchmarks.longrun --manifest M.jsonl --minutes 20``.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from asr import SAMPLE_RATE, ForesoundError, Recognizer, Stream, Transcript
from benchmarks.machine import machine
from training.evaluate import load_recognizer, stream_wer
from training.manifest import ManifestError, Utterance, load_audio, read_manifest
from training.metrics import count_edits

GAP_S = 0.5  # silence where the recording does not simply go on
WARM_UP_S = 3.0  # streamed first and thrown away: the first calls of a process are slow


@dataclass(frozen=True)
class LongStream:
    """A recording streamed chunk by chunk."""

    transcript: Transcript
    chunk_ms: list[float]
    """Measured milliseconds per chunk by the clock on the wall, in order."""
    chunk_cpu_ms: list[float]
    """The same in processor time of all threads: other programs disturb it less."""
    fresh_ms: list[float]
    """Of the last minute's chunks, in a fresh stream that hears them in turn."""
    fresh_cpu_ms: list[float]
    """The same in processor time."""
    rss_start_mb: float
    rss_end_mb: float


def pick_chapters(utterances: Iterable[Utterance], *, minutes: float) -> list[list[Utterance]]:
    """Choose whole stretches of consecutive utterances, in the manifest's order, until it is enough.

    Args:
        utterances: Those with a text and an id ``speaker-chapter-number`` are used.
        minutes: Length to reach.

    Returns:
        Stretches of utterances that follow one another in one chapter; the last one is cut off when
        the length is reached.

    Raises:
        ManifestError: There is not that much.
    """
    chapters: dict[str, list[tuple[int, Utterance]]] = {}
    for utterance in utterances:
        chapter, _, number = utterance.id.rpartition("-")
        if utterance.text is not None and chapter.count("-") == 1 and number.isdigit():
            chapters.setdefault(chapter, []).append((int(number), utterance))
    chosen: list[list[Utterance]] = []
    left_s = 60 * minutes
    for numbered in chapters.values():
        numbered.sort(key=lambda pair: pair[0])
        for _, stretch in groupby(enumerate(numbered), key=lambda pair: pair[1][0] - pair[0]):
            chosen.append([])
            for _, (_, utterance) in stretch:
                chosen[-1].append(utterance)
                left_s -= utterance.duration_s
                if left_s <= 0:
                    return chosen
    raise ManifestError(
        f"only {minutes - left_s / 60:.1f} minutes of utterances named speaker-chapter-number, {minutes:g} "
        "are needed; choose a larger manifest or fewer --minutes"
    )


def join(stretches: Sequence[Sequence[Utterance]]) -> np.ndarray:
    """Return one recording, float32 at 16 kHz, with a short silence between stretches."""
    parts: list[np.ndarray] = []
    for stretch in stretches:
        parts += [load_audio(utterance) for utterance in stretch]
        parts.append(np.zeros(int(GAP_S * SAMPLE_RATE), dtype=np.float32))
    return np.concatenate(parts)


def stream_long(recognizer: Recognizer, samples: np.ndarray, *, chunk_ms: int) -> LongStream:
    """Stream a recording, one chunk per call, and time every call.

    Args:
        recognizer: The recognizer under test.
        samples: float32 at 16 kHz, shape (n_samples,).
        chunk_ms: Chunk size, of the model and of each call.

    Returns:
        The transcript, the cost of every whole chunk, in the last minute that of a fresh stream too, and the
        memory before and after.
    """
    chunk = SAMPLE_RATE * chunk_ms // 1000
    warm_up = recognizer.stream(chunk_ms=chunk_ms)
    warm_up.feed(samples[: int(WARM_UP_S * SAMPLE_RATE)])
    warm_up.finish()
    del warm_up
    stream, fresh = recognizer.stream(chunk_ms=chunk_ms), recognizer.stream(chunk_ms=chunk_ms)
    rss_start_mb = rss_mb()
    chunks = [samples[start : start + chunk] for start in range(0, len(samples) // chunk * chunk, chunk)]
    n_alone = max(0, len(chunks) - 60_000 // chunk_ms)
    long_ms, fresh_ms = [], []
    for i, each in enumerate(tqdm(chunks, unit="chunk", file=sys.stderr)):
        long_ms.append(_timed_ms(stream, each))
        if i >= n_alone:
            fresh_ms.append(_timed_ms(fresh, each))
    stream.feed(samples[len(chunks) * chunk :])
    stream.finish()
    (wall_ms, cpu_ms), (fresh_wall_ms, fresh_cpu_ms) = (
        [list(column) for column in zip(*both, strict=True)] for both in (long_ms, fresh_ms)
    )
    return LongStream(
        stream.transcript,
        wall_ms,
        cpu_ms,
        fresh_wall_ms,
        fresh_cpu_ms,
        rss_start_mb=rss_start_mb,
        rss_end_mb=rss_mb(),
    )


def _timed_ms(stream: Stream, samples: np.ndarray) -> tuple[float, float]:
    """Milliseconds that a chunk takes, by the wall and by the processor."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    stream.feed(samples)
    return 1000 * (time.perf_counter() - wall_s), 1000 * (time.process_time() - cpu_s)


def rss_mb() -> float:
    """Return the memory this process holds in MB; its highest so far where /proc is missing."""
    try:
        n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return n_pages * resource.getpagesize() / 1e6


def measure(
    recognizer: Recognizer,
    stretches: Sequence[Sequence[Utterance]],
    *,
    chunk_ms: int,
    with_alone: bool = True,
) -> dict[str, Any]:
    """Stream the joined recording, and its utterances alone.

    Args:
        recognizer: The recognizer under test.
        stretches: What to join.
        chunk_ms: Chunk size.
        with_alone: Whether to stream the utterances alone, which takes as long again.

    Returns:
        Plain values: cost per chunk in the first and the last minute, both word error rates, the
        number of segments and memory. What is said costs more or less, too: ``last_minute_alone`` is
        the cost of the last minute's very audio in a fresh stream.
    """
    utterances = [utterance for stretch in stretches for utterance in stretch]
    samples = join(stretches)
    long = stream_long(recognizer, samples, chunk_ms=chunk_ms)
    n_minute = 60_000 // chunk_ms
    reference = " ".join(utterance.text or "" for utterance in utterances)
    joined = count_edits(reference, hypothesis=long.transcript.text)
    alone = None
    if with_alone:
        alone = stream_wer(recognizer, tqdm(utterances, unit="utterance", file=sys.stderr), chunk_ms=chunk_ms)
    first = _cost(long.chunk_ms[:n_minute], long.chunk_cpu_ms[:n_minute])
    last = _cost(long.chunk_ms[-n_minute:], long.chunk_cpu_ms[-n_minute:])
    last_alone = _cost(long.fresh_ms, long.fresh_cpu_ms)
    return {
        "minutes": len(samples) / SAMPLE_RATE / 60,
        "n_utterances": len(utterances),
        "n_stretches": len(stretches),
        "n_segments": len(long.transcript.segments),
        "first_minute": first,
        "last_minute": last,
        "last_minute_alone": last_alone,
        "last_to_first": {key: last[key] / first[key] for key in last},
        "last_to_alone": {key: last[key] / last_alone[key] for key in last},
        "rtf": sum(long.chunk_ms) / 1000 / (len(samples) / SAMPLE_RATE),
        "joined": {"wer": joined.wer, **asdict(joined)},
        "alone": {"wer": alone.wer, **asdict(alone)} if alone else None,
        "relative_wer_difference": joined.wer / alone.wer - 1 if alone and alone.n_edits else None,
        "rss_start_mb": long.rss_start_mb,
        "rss_end_mb": long.rss_end_mb,
    }


def _cost(wall_ms: Sequence[float], cpu_ms: Sequence[float]) -> dict[str, float]:
    """Return median and mean milliseconds of chunks, by the wall and by the processor."""
    return {
        "median_ms": statistics.median(wall_ms),
        "mean_ms": statistics.fmean(wall_ms),
        "cpu_median_ms": statistics.median(cpu_ms),
        "cpu_mean_ms": statistics.fmean(cpu_ms),
    }


def format_report(report: dict[str, Any]) -> str:
    """Return the numbers of :func:`measure` for people."""
    cost = "{median_ms:7.2f} {mean_ms:8.2f} {cpu_median_ms:11.2f} {cpu_mean_ms:9.2f}"
    ratio = cost.replace(".2f", ".3f")
    edits = "{wer:.2%} ({substitutions} substitutions, {deletions} deletions, {insertions} insertions)"
    relative = report["relative_wer_difference"]
    return "\n".join(
        [
            f"recording    {report['minutes']:.1f} minutes, {report['n_utterances']} utterances in "
            f"{report['n_stretches']} stretches; streamed in {report['n_segments']} segments",
            "cost of a chunk, ms       median     mean  cpu median  cpu mean",
            f"  first minute            {cost.format(**report['first_minute'])}",
            f"  last minute             {cost.format(**report['last_minute'])}",
            f"  last minute, alone      {cost.format(**report['last_minute_alone'])}",
            f"  last / first            {ratio.format(**report['last_to_first'])}",
            f"  last / last alone       {ratio.format(**report['last_to_alone'])}",
            f"WER joined   {edits.format(**report['joined'])}",
            f"WER alone    {edits.format(**report['alone']) if report['alone'] else '-'}",
            f"WER joined / alone - 1: {'-' if relative is None else f'{relative:+.1%}'}",
            f"real-time factor {report['rtf']:.3f}; memory {report['rss_start_mb']:.0f} MB at the start, "
            f"{report['rss_end_mb']:.0f} MB at the end",
        ]
    )


def main() -> int:
    """Command line of ``python -m benchmarks.longrun``."""
    parser = argparse.ArgumentParser(description="Cost and accuracy of one stream of many minutes.")
    parser.add_argument("--manifest", type=Path, required=True, help="LibriSpeech utterances, JSON lines")
    parser.add_argument("--model", default="tiny.en", help="checkpoint name or path (default: tiny.en)")
    parser.add_argument("--adapter", default="auto", help="auto, none or a folder (default: auto)")
    parser.add_argument("--chunk-ms", type=int, default=300, help="chunk size (default: 300)")
    parser.add_argument("--minutes", type=float, default=20.0, help="length of the recording (default: 20)")
    parser.add_argument(
        "--no-alone", action="store_true", help="leave out the utterances alone, which take as long again"
    )
    args = parser.parse_args()
    if args.minutes < 2:
        parser.error("--minutes must be at least 2, so that the first and the last minute are two")
    try:
        stretches = pick_chapters(read_manifest(args.manifest), minutes=args.minutes)
        recognizer = load_recognizer(args.model, args.adapter)
        report = measure(recognizer, stretches, chunk_ms=args.chunk_ms, with_alone=not args.no_alone)
    except ForesoundError as error:
        print(f"longrun: {error}", file=sys.stderr)
        return 2
    print(format_report(report))
    report |= {"model": args.model, "adapter": args.adapter, "chunk_ms": args.chunk_ms}
    report |= {"manifest": args.manifest.name, **machine()}
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
