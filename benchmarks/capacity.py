"""How many real-time streams a server carries: streams against word latency, up to saturation.

Starts a real server and plays real speech into it through real websockets at the speed of speech, with
more streams in every round, each beginning at a moment of its own. A word's latency is the time on the wall
from the moment at which its end was spoken to the moment at which its text was there for good, so chunks,
computing, batching and network all count; its end is where the stream's own final puts it. Every stream's
text is compared with the same audio recognised alone. The last line of the output is one JSON object.

Run as ``python -m benchmarks.capacity --manifest M.jsonl --streams 1,2,4,8,16``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

from asr import SAMPLE_RATE, Event, Final, ForesoundError, Partial, Recognizer
from benchmarks.machine import machine
from benchmarks.server import ServerProcess
from clients.messages import parse
from training.manifest import ManifestError, load_audio, read_manifest
from training.metrics import EmissionLog, percentiles

BLOCK_S = 0.05  # a microphone's block
GAP_S = 1.0  # silence between two utterances
Chunks = dict[str, int | None]  # chunk_ms and right_context_ms of a stream
SATURATED_MS = 2000.0  # 95th percentile of latency beyond which more streams make no sense


@dataclass
class Heard:
    """What one stream got: frames, and seconds on the wall after its first block began.

    They are read when all streams are over, so that reading takes no time from the server.
    """

    frames: list[tuple[float, str | bytes]] = field(default_factory=list)

    @cached_property
    def events(self) -> list[tuple[float, Event]]:
        """Events among the frames."""
        messages = [(time_s, parse(frame)[1]) for time_s, frame in self.frames]
        return [(time_s, each) for time_s, each in messages if isinstance(each, Partial | Final)]

    @property
    def finals(self) -> list[Final]:
        """All finals."""
        return [event for _, event in self.events if isinstance(event, Final)]

    @property
    def text(self) -> str:
        """Of all finals."""
        return " ".join(final.text for final in self.finals)

    def latencies_ms(self) -> list[float]:
        """From the end of every word to its being there for good."""
        log = EmissionLog()
        for time_s, event in self.events:
            log.add([event], time_s=time_s, compute_aware_s=time_s)
        words = [word for final in self.finals for word in final.words]
        shown = zip(log.words(), words, strict=True)
        return [1000 * (seen.emitted_compute_aware_s - word.end_s) for seen, word in shown]

    def first_ms(self) -> float | None:
        """From the end of the first word to the first text on the screen."""
        words = [word for final in self.finals for word in final.words]
        first_s = next((t for t, event in self.events if isinstance(event, Partial) and event.words), None)
        return None if first_s is None or not words else 1000 * (first_s - words[0].end_s)


@dataclass(frozen=True)
class Round:
    """One row of the table; times in milliseconds, processor time in seconds per second."""

    streams: int
    word_p50_ms: float
    word_p95_ms: float
    first_text_p50_ms: float
    cpu: float
    clients_cpu: float
    memory_mb: float
    same_text: int
    """Streams whose text is the one of the same audio alone."""


def make_clips(manifest: Path, *, n_clips: int, seconds: float) -> list[np.ndarray]:
    """Join consecutive utterances to as many different clips.

    Args:
        manifest: Utterances.
        n_clips: How many clips.
        seconds: The least length of each.

    Returns:
        int16 samples ``[N]`` at 16 kHz.

    Raises:
        ManifestError: There is too little.
    """
    clips: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    for utterance in read_manifest(manifest):
        parts += [load_audio(utterance), np.zeros(int(GAP_S * SAMPLE_RATE), np.float32)]
        if sum(map(len, parts)) >= seconds * SAMPLE_RATE:
            clips.append((np.clip(np.concatenate(parts), -1, 1) * 32767).astype(np.int16))
            parts = []
        if len(clips) == n_clips:
            return clips
    raise ManifestError(f"{manifest} is too short for {n_clips} clips of {seconds:g} s; make them shorter")


def listen_alone(recognizer: Recognizer, clip: np.ndarray, chunks: Chunks) -> str:
    """The text of a stream that has the model for itself."""
    stream = recognizer.stream(**chunks)
    stream.feed(clip)
    stream.finish()
    return stream.transcript.text


async def play(url: str, clip: np.ndarray, chunks: Chunks, *, delay_s: float) -> Heard:
    """Stream a clip at the speed of speech.

    Args:
        url: The server.
        clip: int16 samples ``[N]``.
        chunks: Their size and right context.
        delay_s: Wait this long first.

    Returns:
        What came back.
    """
    await asyncio.sleep(delay_s)
    heard = Heard()
    start = {"type": "start", "sample_rate": SAMPLE_RATE, "encoding": "pcm_s16le", "channels": 1}
    async with connect(url, compression=None, proxy=None) as websocket:
        await websocket.send(json.dumps(start | {name: n for name, n in chunks.items() if n is not None}))
        await websocket.recv()
        started = time.perf_counter()

        async def speak() -> None:
            size = int(BLOCK_S * SAMPLE_RATE)
            for begin in range(0, len(clip), size):
                block = clip[begin : begin + size]
                due = started + (begin + len(block)) / SAMPLE_RATE  # a block is there when its end was spoken
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await websocket.send(block.tobytes())
            await websocket.send('{"type": "stop"}')

        speaking = asyncio.create_task(speak())
        async for frame in websocket:
            heard.frames.append((time.perf_counter() - started, frame))
        await speaking
    return heard


async def run_round(
    server: ServerProcess, clips: Sequence[np.ndarray], chunks: Chunks, *, alone: Sequence[str]
) -> Round:
    """Play all clips at once and sum up."""
    rng = random.Random(len(clips))
    cpu_s, clients_s, started = server.cpu_s, time.process_time(), time.perf_counter()
    plays = [play(server.url, clip, chunks, delay_s=rng.uniform(0, 1)) for clip in clips]
    heard = await asyncio.gather(*plays)
    took_s = time.perf_counter() - started
    cpu = round((server.cpu_s - cpu_s) / took_s, 2)
    clients_cpu = round((time.process_time() - clients_s) / took_s, 2)
    latencies = percentiles([ms for each in heard for ms in each.latencies_ms()]) or {}
    firsts = [first_ms for each in heard if (first_ms := each.first_ms()) is not None]
    return Round(
        streams=len(clips),
        word_p50_ms=round(latencies["p50"]),
        word_p95_ms=round(latencies["p95"]),
        first_text_p50_ms=round(statistics.median(firsts)),
        cpu=cpu,
        clients_cpu=clients_cpu,
        memory_mb=round(server.memory_mb),
        same_text=sum(each.text == text for each, text in zip(heard, alone, strict=True)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    args = _parse(argv)
    most = max(args.streams)
    try:
        clips = make_clips(args.manifest, n_clips=most, seconds=args.seconds)
        recognizer = Recognizer.load(args.model)
        alone = [listen_alone(recognizer, clip, _chunks(args)) for clip in clips]
        with ServerProcess(model=args.model, max_streams=most, threads=args.threads) as server:
            rounds = asyncio.run(_rounds(server, clips, args, alone=alone))
            start_s = server.start_s
    except ForesoundError as error:
        print(f"capacity: {error}", file=sys.stderr)
        return 2
    print(json.dumps(_summary(rounds, args, start_s=start_s)))
    return 0


def _chunks(args: argparse.Namespace) -> Chunks:
    return {"chunk_ms": args.chunk_ms, "right_context_ms": args.right_context_ms}


async def _rounds(
    server: ServerProcess, clips: Sequence[np.ndarray], args: argparse.Namespace, *, alone: Sequence[str]
) -> list[Round]:
    chunks = _chunks(args)
    await play(server.url, clips[0], chunks, delay_s=0)  # the first calls of a process are slow
    print(
        "streams   word p50   word p95   first text   processors   of clients   memory   same text as alone"
    )
    rounds: list[Round] = []
    for n_streams in sorted(args.streams):
        row = await run_round(server, clips[:n_streams], chunks, alone=alone[:n_streams])
        rounds.append(row)
        print(
            f"{row.streams:7d}   {row.word_p50_ms:5.0f} ms   {row.word_p95_ms:5.0f} ms   "
            f"{row.first_text_p50_ms:7.0f} ms   {row.cpu:10.2f}   {row.clients_cpu:10.2f}   "
            f"{row.memory_mb:3.0f} MB   {row.same_text} of {row.streams}",
            flush=True,
        )
        if row.word_p95_ms > SATURATED_MS:
            print("saturated: more streams would only fall behind")
            break
    return rounds


def _summary(rounds: Sequence[Round], args: argparse.Namespace, *, start_s: float) -> dict[str, Any]:
    first, last = rounds[0], rounds[-1]
    within = [row.streams for row in rounds if row.word_p95_ms <= args.target_ms]
    return {
        "benchmark": "capacity",
        "model": args.model,
        "chunk_ms": args.chunk_ms,
        "right_context_ms": args.right_context_ms,
        "rounds": [vars(row) for row in rounds],
        "target_ms": args.target_ms,
        "streams_within_target": max(within, default=0),
        "cpu_per_stream_ratio": round(last.cpu / last.streams / (first.cpu / first.streams), 3),
        "start_s": round(start_s, 2),
        **machine(),
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Streams against word latency, up to saturation.")
    add = parser.add_argument
    add("--manifest", type=Path, required=True, metavar="M.jsonl")
    add("--streams", type=_counts, default=[1, 2, 4, 8, 12, 16], metavar="N[,N...]", help="rounds")
    add("--seconds", type=float, default=20.0, metavar="S", help="length of a stream (default: 20)")
    add("--model", default="tiny.en")
    add("--chunk-ms", type=int, default=300, metavar="N")
    add("--right-context-ms", type=int, metavar="N", help="of the streams (default: 300)")
    add("--threads", type=int, metavar="N", help="of the server's model (default: the server's)")
    add(
        "--target-ms", type=float, default=1000.0, metavar="MS", help="wanted 95th percentile (default: 1000)"
    )
    return parser.parse_args(argv)


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
