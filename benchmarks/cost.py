"""What a second of speech costs, and how well it is heard, with and without each means of saving.

Variants take turns in every round, so that what else the machine does falls on all of them; what counts
are the ratios of processor time within a round. Clips are whole utterances, with pauses between them if
wanted, as one side of a conversation has them. The last line of the output is one JSON object.

Run as ``python -m benchmarks.cost --manifest M.jsonl --variants fp32,int8,int8+adaptive``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr import SAMPLE_RATE, ForesoundError, Recognizer
from benchmarks.lockstep import Played, play_together
from benchmarks.machine import machine
from training.manifest import ManifestError, load_audio, read_manifest
from training.metrics import WerResult, count_edits

HISS = 10 ** (-60 / 20)  # level of the noise in pauses: a room is never digitally silent


@dataclass(frozen=True)
class Clip:
    """One stream's audio and what is said in it."""

    samples: np.ndarray
    text: str


@dataclass(frozen=True)
class Variant:
    """One way to recognise.

    A name is ``int8`` or ``fp32``, then, each after a plus sign, ``adaptive`` (silence is skipped) and
    ``left=N`` (seconds of visible past), ``right=N`` or ``chunk=N`` (milliseconds).
    """

    name: str
    weights: str
    chunk_ms: int
    options: dict[str, Any]

    @classmethod
    def parse(cls, name: str, *, chunk_ms: int) -> Variant:
        """Read a name.

        Args:
            name: As above.
            chunk_ms: Unless the name says so.

        Returns:
            The variant.

        Raises:
            ValueError: There is no such part.
        """
        weights, *parts = name.split("+")
        options: dict[str, Any] = {"adaptive": False}
        for part in parts:
            key, _, value = part.partition("=")
            if key == "adaptive":
                options["adaptive"] = True
            elif key == "left":
                options["left_context_s"] = float(value)
            elif key == "right":
                options["right_context_ms"] = int(value)
            elif key == "chunk":
                chunk_ms = int(value)
            else:
                known = "adaptive, left=N, right=N and chunk=N"
                raise ValueError(f"a variant has no part {part!r}; there are {known}")
        return cls(name, weights, chunk_ms, options)


def make_clips(
    manifest: Path, *, limit: int, set_name: str | None, pause_s: tuple[float, float]
) -> list[Clip]:
    """Utterances, each followed by a pause, joined in pairs where there are pauses.

    Args:
        manifest: Utterances; those without text are left out.
        limit: How many utterances, evenly spread.
        set_name: Only those of this set.
        pause_s: Least and greatest length of a pause.

    Returns:
        Clips.

    Raises:
        ManifestError: There are none.
    """
    chosen = [u for u in read_manifest(manifest) if u.text and set_name in (None, u.set)]
    if not chosen:
        raise ManifestError(f"{manifest}: no utterance with a text" + (f" of {set_name}" if set_name else ""))
    chosen = chosen[:: max(1, len(chosen) // limit)][:limit]
    rng = np.random.default_rng(0)
    n_joined = 2 if pause_s[1] else 1
    clips = []
    for start in range(0, len(chosen), n_joined):
        parts: list[np.ndarray] = []
        for utterance in chosen[start : start + n_joined]:
            n_pause = int(rng.uniform(*pause_s) * SAMPLE_RATE)
            parts += [load_audio(utterance), HISS * rng.standard_normal(n_pause).astype(np.float32)]
        text = " ".join(utterance.text or "" for utterance in chosen[start : start + n_joined])
        clips.append(Clip(np.concatenate(parts).astype(np.float32), text))
    return clips


def measure(
    variants: Sequence[Variant], clips: Sequence[Clip], *, model: str, n_streams: int, n_rounds: int
) -> list[dict[str, Any]]:
    """Play all clips with every variant in turn.

    Args:
        variants: The first is what the others are compared with.
        clips: What to play.
        model: Checkpoint name or path.
        n_streams: Streams at a time.
        n_rounds: How often each variant plays everything.

    Returns:
        A row for each variant.
    """
    recognizers = {v.weights: Recognizer.load(model, weights=v.weights) for v in variants}
    for recognizer in recognizers.values():  # the first calls of a process are slow
        play_together(recognizer, [clips[0].samples], n_streams=1, chunk_ms=300)
    played: dict[str, list[Played]] = {variant.name: [] for variant in variants}
    for _ in range(n_rounds):
        for variant in variants:
            played[variant.name].append(
                play_together(
                    recognizers[variant.weights],
                    [clip.samples for clip in clips],
                    n_streams=n_streams,
                    chunk_ms=variant.chunk_ms,
                    **variant.options,
                )
            )
    first = played[variants[0].name]
    rows = []
    for variant in variants:
        mine = played[variant.name]
        pairs = zip(clips, mine[0].texts, strict=True)
        edits = sum((count_edits(clip.text, hypothesis=text) for clip, text in pairs), WerResult())
        ratios = [one.cpu_s / other.cpu_s for one, other in zip(mine, first, strict=True)]
        rows.append(
            {
                "variant": variant.name,
                "wer": edits.wer,
                "n_edits": edits.n_edits,
                "n_words": edits.n_words,
                "cpu_ms_per_s": 1000 * statistics.median(one.cpu_per_s for one in mine),
                "cpu_ratio": statistics.median(ratios),
                "state_mb": mine[0].state_bytes / 1e6,
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    args = _parse(argv)
    try:
        variants = [Variant.parse(name, chunk_ms=args.chunk_ms) for name in args.variants.split(",")]
        clips = make_clips(
            args.manifest, limit=args.limit, set_name=args.set, pause_s=(args.pause_s[0], args.pause_s[-1])
        )
        rows = measure(variants, clips, model=args.model, n_streams=args.streams, n_rounds=args.rounds)
    except (ForesoundError, ValueError) as error:
        print(f"cost: {error}", file=sys.stderr)
        return 2
    audio_s = sum(len(clip.samples) for clip in clips) / SAMPLE_RATE
    print(f"{len(clips)} clips, {audio_s:.0f} s, {args.streams} at a time, {args.rounds} rounds")
    print("variant                    WER   edits   CPU ms per s of audio   ratio   state MB per stream")
    for row in rows:
        print(
            f"{row['variant']:22s} {100 * row['wer']:6.2f} % {row['n_edits']:6d} {row['cpu_ms_per_s']:16.1f}"
            f" {row['cpu_ratio']:13.2f} {row['state_mb']:12.2f}"
        )
    report = {"benchmark": "cost", "model": args.model, "streams": args.streams, "audio_s": audio_s}
    print(json.dumps(report | {"pause_s": args.pause_s, "rows": rows, **machine()}))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Processor time and word error rate of variants, interleaved."
    )
    add = parser.add_argument
    add("--manifest", type=Path, required=True, metavar="M.jsonl")
    add("--set", metavar="NAME", help="only utterances of this set")
    add("--limit", type=int, default=60, metavar="N", help="utterances (default: 60)")
    add("--model", default="tiny.en")
    add("--streams", type=int, default=16, metavar="N", help="at a time (default: 16)")
    add("--chunk-ms", type=int, default=300, metavar="N")
    add("--rounds", type=int, default=2, metavar="N", help="of all variants (default: 2)")
    add("--variants", default="fp32,int8,int8+adaptive", metavar="V[,V...]", help=Variant.__doc__)
    add(
        "--pause-s",
        type=lambda text: [float(part) for part in text.split(",")],
        default=[0.0],
        metavar="S[,S]",
        help="length of the pauses between utterances, or its range (default: 0, none)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
