"""Does every stream get its own words? Many at once come, break off, resume and go beside one another.

Each client says an utterance of its own; its finals are compared, word for word, with those of the utterance
recognised alone. The last line of the output is one JSON object; the exit code is 1 if any final differed or
a client met an error that it had not asked for.

Run as ``python -m benchmarks.crosstalk --manifest M.jsonl --streams 32 --visits 96``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asr import ForesoundError, Recognizer
from benchmarks.machine import machine
from benchmarks.server import ServerProcess
from benchmarks.soak import RESUME_S
from benchmarks.soak_load import Clip, Tally, visit
from benchmarks.soak_speech import utterance_clips


async def churn(url: str, clips: Sequence[Clip], *, n_streams: int, n_visits: int, speed: float) -> Tally:
    """Let clients come and go.

    Args:
        url: Of the server's native protocol.
        clips: What they say, in turn.
        n_streams: Clients at a time.
        n_visits: In all.
        speed: Against that of speech.
    """
    tally, chance = Tally(), random.Random(32)
    left: Iterator[int] = iter(range(n_visits))

    async def client() -> None:
        for number in left:
            await visit(url, clips[number % len(clips)], chance, tally, speed=speed)
            print(f"visit {number}: {len(tally.wrong)} wrong so far", file=sys.stderr)

    await asyncio.gather(*(client() for _ in range(n_streams)))
    return tally


def main() -> int:
    """Command line of ``python -m benchmarks.crosstalk``."""
    parser = argparse.ArgumentParser(description="Does every stream get its own words?")
    parser.add_argument("--manifest", type=Path, required=True, help="utterances, JSON lines")
    parser.add_argument("--streams", type=int, default=32, help="at a time (default: 32)")
    parser.add_argument("--visits", type=int, default=96, help="in all (default: 96)")
    parser.add_argument("--speed", type=float, default=1.0, help="against that of speech (default: 1)")
    parser.add_argument("--max-s", type=float, default=6.0, help="longest utterance (default: 6)")
    parser.add_argument("--model", default="tiny.en", help="checkpoint name or path (default: tiny.en)")
    parser.add_argument("--threads", type=int, help="of the model")
    args = parser.parse_args()
    try:
        recognizer = Recognizer.load(args.model)
        clips = utterance_clips(recognizer, args.manifest, n_clips=args.streams, max_s=args.max_s)
        # Sessions that vanish keep their places for a while.
        max_streams, options = 2 * args.streams, ("--resume-s", str(RESUME_S))
        with ServerProcess(
            model=args.model, max_streams=max_streams, threads=args.threads, options=options
        ) as server:
            began = time.perf_counter()
            tally = asyncio.run(
                churn(server.url, clips, n_streams=args.streams, n_visits=args.visits, speed=args.speed)
            )
            took_s = time.perf_counter() - began
    except ForesoundError as error:
        print(f"crosstalk: {error}", file=sys.stderr)
        return 2
    for name, texts in (("wrong", tally.wrong), ("failed", tally.failed)):
        for text in texts:
            print(f"{name}: {text}")
    numbers: dict[str, Any] = {"streams": args.streams, "clips": len(clips), "visits": tally.n_visits}
    numbers |= {
        "cuts": tally.n_cuts,
        "full": tally.n_full,
        "wrong": len(tally.wrong),
        "failed": len(tally.failed),
        "seconds": took_s,
    }
    print(json.dumps(numbers | {"speed": args.speed, "manifest": args.manifest.name, **machine()}))
    return 1 if tally.wrong or tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
