"""Lanes as threads of one process, and as processes: how many real-time streams each carries.

Each lane plays its own clips together, all lanes at once, one torch thread each: first a single lane, then
lanes as threads over one recogniser, then as processes with one each. Wall time counts, so the machine has to
be quiet. The last line of the output is one JSON object with the ratio of processes to threads.

Run as ``python -m benchmarks.processes --manifest M.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr import SAMPLE_RATE, ForesoundError, Recognizer
from benchmarks.capacity import make_clips
from benchmarks.lockstep import play_together
from benchmarks.machine import machine

_WARM_UP = slice(2 * SAMPLE_RATE)


def _lane(
    recognizer: Recognizer,
    clips: Sequence[np.ndarray],
    chunk_ms: int,
    start: Any,
    tell: Callable[[float], Any],
) -> None:
    """Play clips when all lanes are ready, and tell how many real-time streams that is."""
    torch.set_num_threads(1)
    play_together(recognizer, [clip[_WARM_UP] for clip in clips], n_streams=len(clips), chunk_ms=chunk_ms)
    start.wait()
    started = time.perf_counter()
    played = play_together(recognizer, clips, n_streams=len(clips), chunk_ms=chunk_ms)
    tell(played.audio_s / (time.perf_counter() - started))


def _process(model: str, clips: Sequence[np.ndarray], chunk_ms: int, start: Any, results: Any) -> None:
    _lane(Recognizer.load(model), clips, chunk_ms, start, results.put)


def by_threads(model: str, lanes: Sequence[Sequence[np.ndarray]], chunk_ms: int) -> list[float]:
    """Play the lanes in threads.

    Args:
        model: As in :meth:`asr.Recognizer.load`.
        lanes: float32 clips at 16 kHz of each.
        chunk_ms: Chunk size.

    Returns:
        Real-time streams of each lane.
    """
    recognizer, start = Recognizer.load(model), threading.Barrier(len(lanes))
    rates: list[float] = []
    threads = [
        threading.Thread(target=_lane, args=(recognizer, clips, chunk_ms, start, rates.append))
        for clips in lanes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rates


def by_processes(model: str, lanes: Sequence[Sequence[np.ndarray]], chunk_ms: int) -> list[float]:
    """The same in processes."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(len(lanes)), context.Queue()
    processes = [
        context.Process(target=_process, args=(model, clips, chunk_ms, start, results)) for clips in lanes
    ]
    for process in processes:
        process.start()
    rates = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return rates


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    parser = argparse.ArgumentParser(description="Lanes as threads and as processes.")
    add = parser.add_argument
    add("--manifest", type=Path, required=True, metavar="M.jsonl")
    add("--streams", type=int, default=16, metavar="N", help="of each lane (default: 16)")
    add("--lanes", type=int, default=os.cpu_count() or 1, metavar="N", help="(default: as many as cores)")
    add("--seconds", type=float, default=10.0, metavar="S", help="least length of a stream (default: 10)")
    add("--model", default="tiny.en")
    add("--chunk-ms", type=int, default=300, metavar="N")
    args = parser.parse_args(argv)
    try:
        made = make_clips(args.manifest, n_clips=args.lanes * args.streams, seconds=args.seconds)
        clips = [clip.astype(np.float32) / 32768 for clip in made]
        lanes = [clips[first :: args.lanes] for first in range(args.lanes)]
        rates = {
            "one lane": by_threads(args.model, lanes[:1], args.chunk_ms),
            "threads": by_threads(args.model, lanes, args.chunk_ms),
            "processes": by_processes(args.model, lanes, args.chunk_ms),
        }
    except ForesoundError as error:
        print(f"processes: {error}", file=sys.stderr)
        return 2
    print("             real-time streams of each lane      of all")
    for name, each in rates.items():
        print(f"{name:10s}   {'  '.join(f'{rate:6.1f}' for rate in each):30s}   {sum(each):6.1f}")
    report = {"benchmark": "processes", "model": args.model, "streams": args.streams, "rates": rates}
    ratio = sum(rates["processes"]) / sum(rates["threads"])
    print(json.dumps(report | {"processes_to_threads": round(ratio, 2), **machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
