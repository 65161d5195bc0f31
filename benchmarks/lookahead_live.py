"""The dial's two ends live: one recording, spoken at once into two streams of one server in real time.

Starts ``foresound serve`` and plays the recording at the speed of speech through two websockets; one stream
asks for the shortest lookahead, the other for the longest. For every word of the recording the table says
when its end was spoken and how long after that each stream showed it for good; a dash is a word that it
heard differently. The last line of the output is one JSON object.

Run as ``python -m benchmarks.lookahead_live --audio talk.flac --text "what is said"``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np

from asr import SAMPLE_RATE, Final, ForesoundError, Recognizer
from asr.audio import read_audio
from benchmarks.machine import machine
from benchmarks.server import ServerProcess
from clients import StreamingClient
from training.evaluate import reference_times
from training.manifest import WordTime
from training.metrics import EmissionLog, ShownWord, count_edits, percentiles, word_parts

BLOCK_S = 0.02
START_S = 0.5  # until both streams are open


@dataclass(frozen=True)
class Heard:
    """What one stream said."""

    text: str
    words: list[ShownWord]  # times on the wall from the recording's beginning


async def listen(url: str, samples: np.ndarray, *, latency: str, chunk_ms: int, begin: float) -> Heard:
    """Speak a recording into a stream.

    Args:
        url: The server.
        samples: float32 at 16 kHz.
        latency: The dial.
        chunk_ms: Chunk size.
        begin: When to begin, on the clock of ``time.perf_counter``.

    Returns:
        Its words and when they were there.
    """
    log, finals = EmissionLog(), []
    options = {"decoder": "transducer", "latency": latency, "chunk_ms": chunk_ms}
    async with StreamingClient(url, **options) as client:  # type: ignore[arg-type]

        async def speak() -> None:
            size = round(BLOCK_S * SAMPLE_RATE)
            for start in range(0, len(samples), size):
                due = begin + (start + size) / SAMPLE_RATE
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await client.send(samples[start : start + size])
            await client.finish()

        speaking = asyncio.create_task(speak())
        async for event in client:
            now_s = time.perf_counter() - begin
            log.add([event], time_s=now_s, compute_aware_s=now_s)
            if isinstance(event, Final):
                finals.append(event.text)
        await speaking
    return Heard(" ".join(finals), log.words())


def lateness(words: Sequence[ShownWord], reference: Sequence[WordTime]) -> list[float | None]:
    """How long after its end each word of the reference was shown for good, in ms; None where it was not."""
    heard = [(part, word) for word in words for part in word_parts(word.text)]
    said = [(part, i) for i, word in enumerate(reference) for part in word_parts(word.word)]
    aligned = jiwer.process_words(" ".join(part for part, _ in said), " ".join(part for part, _ in heard))
    late: list[float | None] = [None] * len(reference)
    for chunk in aligned.alignments[0]:
        if chunk.type == "equal":
            for k in range(chunk.ref_end_idx - chunk.ref_start_idx):
                i, word = said[chunk.ref_start_idx + k][1], heard[chunk.hyp_start_idx + k][1]
                late[i] = 1000 * (word.emitted_s - reference[i].end_s)
    return late


async def _both(url: str, samples: np.ndarray, ends: Sequence[str], chunk_ms: int) -> list[Heard]:
    begin = time.perf_counter() + START_S
    return await asyncio.gather(
        *(listen(url, samples, latency=end, chunk_ms=chunk_ms, begin=begin) for end in ends)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; see the module's text."""
    args = _parse(argv)
    try:
        with read_audio(args.audio) as source:
            samples = np.concatenate(list(source.blocks()))
        aligner = Recognizer.load(args.model, adapter="none", head="none")
        heard = aligner.transcribe_offline(samples)
        words, _ = reference_times(aligner, samples, text=args.text, forced=None, offline_text=heard)
        options = ["--adapter", args.adapter, "--head", args.head]
        with ServerProcess(model=args.model, max_streams=2, threads=None, options=options) as server:
            both = asyncio.run(_both(server.url, samples, args.ends, args.chunk_ms))
    except ForesoundError as error:
        print(f"lookahead_live: {error}", file=sys.stderr)
        return 2
    late = [lateness(each.words, words) for each in both]
    print(f"{'word':16s}{'spoken until':>14s}" + "".join(f"{end:>12s}" for end in args.ends))
    for i, word in enumerate(words):
        cells = ["-" if each[i] is None else f"{each[i]:+.0f} ms" for each in late]
        print(f"{word.word:16s}{word.end_s:12.2f} s" + "".join(f"{cell:>12s}" for cell in cells))
    summary = {}
    for end, each, times in zip(args.ends, both, late, strict=True):
        wer = count_edits(args.text, hypothesis=each.text).wer
        shown = percentiles([ms for ms in times if ms is not None])
        summary[end] = {"text": each.text, "wer": wer, "late_ms": shown}
        print(f"{end}: {each.text}")
    print(json.dumps({"benchmark": "lookahead_live", "chunk_ms": args.chunk_ms, **summary, **machine()}))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The lookahead dial's two ends, live.")
    add = parser.add_argument
    add("--audio", type=Path, required=True, help="a recording of up to 29 s")
    add("--text", required=True, help="what is said in it")
    add("--ends", type=lambda text: text.split(","), default=["minimal", "high"], metavar="A,B")
    add("--chunk-ms", type=int, default=80, metavar="N", help="of both streams (default: 80)")
    add("--model", default="tiny.en")
    add("--adapter", default="auto")
    add("--head", default="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
