"""Does the server keep its size? Clients come and go at an accelerated pace beside one stream of hours.

In rounds, clients speak clips, break their connections and resume, vanish, or send nonsense. Every final is
compared, word for word, with the clip recognised alone: other people's words would be seen. Between two
rounds, when only the long stream is left, what the server holds is noted: these moments are alike, so what
grows from one to the next is a leak. The last line of the output is one JSON object; the exit code is 1 if
something grew by 2 % or more after the warm-up, if a final was wrong, or if a slot was not given back.

Run as ``python -m benchmarks.soak --minutes 60 --long-hours 2 --plot docs/soak.png``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from asr import ForesoundError, Recognizer
from benchmarks.machine import machine
from benchmarks.server import ServerProcess
from benchmarks.soak_load import BYTES_PER_S, FAULTS, Clip, Speaker, Tally, visit
from benchmarks.soak_speech import cut_clips, long_speech, read_audio, to_pcm, utterance_clips
from training.manifest import read_manifest
from training.metrics import count_edits

MAX_GROWTH = 0.02
WARM_UP = 0.2  # of the time
SPREAD = 1.05  # the long stream ends a little before the run does
RESUME_S = 15.0  # a short one: sessions that nobody comes back to are gone by the next quiet moment
GROWING = ("rss_mb", "fds", "tasks", "threads", "slots")
_AUDIO = Path(__file__).parents[1] / "tests" / "fixtures" / "jfk.flac"
_QUIET_S = 120.0  # for a round's last sessions to be gone, also on a busy machine
_MAX_CLIP_S, _N_CLIPS = 6.0, 24  # of a manifest's utterances


@dataclass(frozen=True)
class Sample:
    """What the server held at a quiet moment, and how the round before went."""

    at_s: float
    rss_mb: float
    fds: int
    tasks: int
    threads: int
    slots: int
    sessions: int
    end_p50_ms: float
    """From a client's stop to done."""
    end_p95_ms: float
    word_ms: float
    """From the arrival of a word's end to the word, committed; mean of the round, in all streams."""
    tick_ms: float
    """What a step of the model took; mean of the round."""
    long_min: float
    """Audio that the long stream has sent, in minutes."""


class Soak:
    """One run against a server.

    Attributes:
        tally: What the clients met.
        samples: One for each quiet moment.
        faults: Of the server, seen from outside, in words.
    """

    def __init__(
        self, url: str, clips: Sequence[Clip], *, n_clients: int, speed: float, round_s: float
    ) -> None:
        """Describe the load.

        Args:
            url: Of the server's native protocol.
            clips: What clients say.
            n_clients: At a time, besides the long stream.
            speed: Of a client against that of speech.
            round_s: Between two quiet moments.
        """
        self._url, self._clips = url, clips
        self._n_clients, self._speed, self._round_s = n_clients, speed, round_s
        self._chance = random.Random(8)
        self.tally = Tally()
        self.samples: list[Sample] = []
        self.faults: list[str] = []
        self._histograms: dict[str, tuple[float, float]] = {}

    async def run(self, *, seconds: float, long_audio: bytes, long_speed: float) -> Speaker:
        """Load the server.

        Args:
            seconds: How long.
            long_audio: What the long stream says, if there is time for all of it.
            long_speed: Of the long stream against that of speech.

        Returns:
            The long stream, which has ended.
        """
        began = time.perf_counter()
        long = Speaker(self._url, long_audio, speed=long_speed)
        speaking = asyncio.create_task(long.speak_for_long())
        while (at_s := time.perf_counter() - began) < seconds:
            ends_at = time.perf_counter() + min(self._round_s, seconds - at_s)
            await asyncio.gather(*(self._come_and_go(ends_at) for _ in range(self._n_clients)))
            n_left = 0 if speaking.done() else 1
            try:
                await self._wait(lambda page, n_left=n_left: _held(page) <= n_left)
                self.samples.append(await self._sample(time.perf_counter() - began, long))
            except FAULTS as fault:
                self.faults.append(f"{time.perf_counter() - began:.0f} s: {fault}")
                print(self.faults[-1], file=sys.stderr, flush=True)
                continue
            print(format_sample(self.samples[-1]), file=sys.stderr, flush=True)
        long.hush()
        await speaking
        return long

    async def at_rest(self) -> dict[str, float]:
        """Return what the server holds when nobody is left; nothing if it does not answer."""
        try:
            return await self._wait(lambda page: _held(page) == 0)
        except FAULTS as fault:
            self.faults.append(f"at rest: {fault}")
            return {}

    async def _come_and_go(self, ends_at: float) -> None:
        while time.perf_counter() < ends_at:
            clip = self._chance.choice(self._clips)
            await visit(self._url, clip, self._chance, self.tally, speed=self._speed)

    async def _wait(self, is_so: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        give_up_at = time.perf_counter() + _QUIET_S
        while not is_so(page := await asyncio.to_thread(read_metrics, self._url)):
            if time.perf_counter() > give_up_at:
                raise ForesoundError(
                    f"the server holds sessions that nobody has: {page['foresound_sessions']:g}"
                )
            await asyncio.sleep(0.2)
        return page

    async def _sample(self, at_s: float, long: Speaker) -> Sample:
        page = await asyncio.to_thread(read_metrics, self._url)
        ends, self.tally.end_ms = self.tally.end_ms or [0.0], []
        return Sample(
            at_s=at_s,
            rss_mb=(page["process_resident_memory_bytes"] + page["foresound_model_memory_bytes"]) / 1e6,
            fds=int(page["process_open_fds"]),
            tasks=int(page["foresound_tasks"]),
            threads=int(page["foresound_threads"]),
            slots=int(page["foresound_slots_used"]),
            sessions=int(page["foresound_sessions"]),
            end_p50_ms=float(np.percentile(ends, 50)),
            end_p95_ms=float(np.percentile(ends, 95)),
            word_ms=self._mean_ms("foresound_word_latency_seconds", page),
            tick_ms=self._mean_ms("foresound_tick_seconds", page),
            long_min=long.n_bytes / BYTES_PER_S / 60,
        )

    def _mean_ms(self, name: str, page: dict[str, float]) -> float:
        """Return a histogram's mean since it was asked for last."""
        seconds, n_values = page[f"{name}_sum"], page[f"{name}_count"]
        earlier_s, n_earlier = self._histograms.get(name, (0.0, 0.0))
        self._histograms[name] = seconds, n_values
        return 1000 * (seconds - earlier_s) / max(1.0, n_values - n_earlier)


def read_metrics(url: str) -> dict[str, float]:
    """Return a server's metrics without labels.

    Args:
        url: Where it takes streams.
    """
    address = f"http://{urlsplit(url).netloc}/metrics"
    with urllib.request.urlopen(address, timeout=10) as page:  # noqa: S310 - our own server's
        lines = page.read().decode().splitlines()
    return {
        name: float(value) for name, value in (line.split() for line in lines if re.match(r"\w+ \S+$", line))
    }


def _held(page: dict[str, float]) -> float:
    return max(page["foresound_sessions"], page["foresound_slots_used"])


def growth(samples: Sequence[Sample], name: str, *, warm_up_s: float) -> float:
    """Return by which part a resource grew: the last quarter's median against the first's, after warm-up.

    Args:
        samples: In order.
        name: Of a field of :class:`Sample`.
        warm_up_s: What is left out.
    """
    values = [float(getattr(each, name)) for each in samples if each.at_s > warm_up_s]
    if len(values) < 4:
        raise ForesoundError(f"{len(values)} samples after the warm-up are too few; give more --minutes")
    n_quarter = len(values) // 4
    first, last = statistics.median(values[:n_quarter]), statistics.median(values[-n_quarter:])
    return last / first - 1 if first else last


def format_sample(sample: Sample) -> str:
    """Return a sample as a line for people."""
    return (
        f"{sample.at_s:7.0f} s  {sample.rss_mb:7.1f} MB  {sample.fds:4d} files  {sample.tasks:4d} tasks  "
        f"{sample.threads:4d} threads  {sample.slots:3d} slots  stop to done {sample.end_p50_ms:5.0f} ms "
        f"(p95 {sample.end_p95_ms:5.0f})  words {sample.word_ms:4.0f} ms  long {sample.long_min:5.1f} min"
    )


def report(soak: Soak, long: Speaker, at_rest: dict[str, float], *, warm_up_s: float) -> dict[str, Any]:
    """Return all numbers, also those of a run that failed.

    Args:
        soak: Has run.
        long: Its long stream.
        at_rest: The metrics after everybody has left; empty if the server did not tell them.
        warm_up_s: What growth leaves out.
    """
    faults = list(soak.faults)
    grown: dict[str, float] = {}
    try:
        for name in (*GROWING, "end_p50_ms", "word_ms"):
            grown[name] = growth(soak.samples, name, warm_up_s=warm_up_s)
    except ForesoundError as fault:
        faults.append(str(fault))
    return {
        "growth": grown,
        "visits": soak.tally.n_visits,
        "cuts": soak.tally.n_cuts,
        "full": soak.tally.n_full,
        "wrong": soak.tally.wrong,
        "failed": soak.tally.failed,
        "faults": faults,
        "long_minutes": long.n_bytes / BYTES_PER_S / 60,
        "long_words": len(" ".join(long.texts).split()),
        "long_done": long.end_s is not None,
        "long_broken": long.broken,
        "slots_at_rest": at_rest.get("foresound_slots_used"),
        "crashes": at_rest.get("foresound_crashes_total"),
        "warm_up_s": warm_up_s,
        "samples": [asdict(each) for each in soak.samples],
    }


def is_good(numbers: dict[str, Any]) -> bool:
    """Tell whether a report shows no leak, no wrong final and no fault."""
    grown = any(numbers["growth"].get(name, np.inf) >= MAX_GROWTH for name in GROWING)
    bad = any(numbers[name] for name in ("wrong", "failed", "faults", "long_broken"))
    at_rest = numbers["crashes"] == numbers["slots_at_rest"] == 0
    return at_rest and numbers["long_done"] and not (grown or bad)


def main() -> int:
    """Command line of ``python -m benchmarks.soak``."""
    args = _parse_arguments()
    try:
        clips, long_audio, said = _speech(args)
        options = ("--resume-s", str(RESUME_S), "--session-s", "86400")
        with ServerProcess(
            model=args.model, max_streams=args.clients + 4, threads=args.threads, options=options
        ) as server:
            soak = Soak(server.url, clips, n_clients=args.clients, speed=args.speed, round_s=args.round_s)
            seconds = 60 * args.minutes
            long_speed = SPREAD * len(long_audio) / BYTES_PER_S / seconds
            long, at_rest = asyncio.run(_run(soak, seconds, long_audio, long_speed))
            cpu_s = server.cpu_s
    except ForesoundError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    numbers = report(soak, long, at_rest, warm_up_s=WARM_UP * seconds) | {"server_cpu_s": cpu_s}
    if said:
        numbers["long_wer"] = count_edits(said, hypothesis=" ".join(long.texts)).wer
    _show(numbers)
    settings = {"minutes": args.minutes, "clients": args.clients, "speed": args.speed, "model": args.model}
    print(json.dumps(settings | numbers | machine()))
    if args.plot and numbers["samples"]:
        from benchmarks.soak_plot import draw

        draw(numbers["samples"], warm_up_s=numbers["warm_up_s"], path=args.plot)
    return 0 if is_good(numbers) else 1


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Growth of a server under clients that come and go.")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--long-hours", type=float, default=2.0, help="of the long stream (default: 2)")
    parser.add_argument("--clients", type=int, default=3, help="at a time (default: 3)")
    parser.add_argument("--speed", type=float, default=3.0, help="of a client against speech (default: 3)")
    parser.add_argument("--round-s", type=float, default=20.0, help="between two samples (default: 20)")
    speech = parser.add_mutually_exclusive_group()
    speech.add_argument("--audio", type=Path, default=_AUDIO, help="speech to cut clips from, and to repeat")
    speech.add_argument("--manifest", type=Path, help="utterances to say instead, JSON lines with texts")
    parser.add_argument("--model", default="tiny.en", help="checkpoint name or path (default: tiny.en)")
    parser.add_argument("--threads", type=int, help="of the model")
    parser.add_argument("--plot", type=Path, help="draw the samples there")
    return parser.parse_args()


def _speech(args: argparse.Namespace) -> tuple[list[Clip], bytes, str]:
    """Return the clips, the long stream's audio, and what is said in it if that is known."""
    import torch

    torch.set_num_threads(args.threads or torch.get_num_threads())
    recognizer = Recognizer.load(args.model)
    if args.manifest:
        clips = utterance_clips(recognizer, args.manifest, n_clips=_N_CLIPS, max_s=_MAX_CLIP_S)
        utterances = [each for each in read_manifest(args.manifest) if each.text is not None]
        return clips, *long_speech(utterances, hours=args.long_hours)
    samples = read_audio(args.audio)
    once = to_pcm(samples)
    times = max(1, round(args.long_hours * 3600 * BYTES_PER_S / len(once)))
    return cut_clips(recognizer, samples), once * times, ""


def _show(numbers: dict[str, Any]) -> None:
    for name, part in numbers["growth"].items():
        print(f"{name:12} {part:+.2%} after the warm-up")
    print(f"visits {numbers['visits']}, {numbers['cuts']} cuts resumed, {len(numbers['wrong'])} wrong finals")
    print(f"long stream: {numbers['long_minutes']:.1f} minutes, {numbers['long_words']} words")
    for name in ("wrong", "failed", "faults", "long_broken"):
        for what in numbers[name]:
            print(f"{name}: {what}")


async def _run(
    soak: Soak, seconds: float, long_audio: bytes, long_speed: float
) -> tuple[Speaker, dict[str, float]]:
    long = await soak.run(seconds=seconds, long_audio=long_audio, long_speed=long_speed)
    return long, await soak.at_rest()


if __name__ == "__main__":
    sys.exit(main())
