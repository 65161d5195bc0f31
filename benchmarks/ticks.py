"""Where the milliseconds of a tick go, part by part, against a floor of operations and bytes.

Plays clips in lockstep (:mod:`benchmarks.lockstep`) and takes processor time around the parts of the engine;
what a part calls is counted there and not in the part. The floor of a part is what its multiplications would
take at the speed of one large product on this machine, plus reading its weights once per step at the speed
of summing. The last line of the output is one JSON object.

Run as ``python -m benchmarks.ticks --manifest M.jsonl --streams 16``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr import ForesoundError, Recognizer
from asr.decoder import DecoderJob
from asr.encoder import EncoderJob
from asr.int8 import Int8Linear
from benchmarks.capacity import make_clips
from benchmarks.lockstep import play_together
from benchmarks.machine import machine
from training.evaluate import load_recognizer

TABLE_BYTES = 20 << 20  # as large as tiny.en's vocabulary in 8 bits: it stays in the last cache
WIDE = 2048  # sides of the product that tells how fast this machine multiplies


class Stopwatch:
    """Processor time of nested parts, each without what it calls."""

    def __init__(self) -> None:
        """Start with nothing measured."""
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._inner: list[float] = []

    def wrap(self, owner: Any, method: str, part: str, count: Callable[..., None] | None = None) -> None:
        """Measure a method of an object from now on.

        Args:
            owner: The object.
            method: Its method's name.
            part: What to call it.
            count: Gets the arguments of every call.
        """
        plain = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if count:
                count(*args)
            self._inner.append(0.0)
            started = time.process_time()
            try:
                return plain(*args, **kwargs)
            finally:
                took = time.process_time() - started
                self.seconds[part] += took - self._inner.pop()
                self.calls[part] += 1
                if self._inner:
                    self._inner[-1] += took

        setattr(owner, method, timed)


class Work:
    """How much there was to do; counted in positions."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.frames = self.frame_pairs = self.tokens = self.token_frames = self.logits = 0

    def encode(self, jobs: Sequence[EncoderJob]) -> None:
        """Count an encoder step."""
        for job in jobs:
            n_new = (job.mel.shape[-1] - 3) // 2
            self.frames += n_new
            self.frame_pairs += n_new * (min(job.state.position, job.left_context) + n_new)

    def decode(self, jobs: Sequence[DecoderJob]) -> None:
        """Count a decoder step."""
        for job in jobs:
            self.tokens += job.tokens.numel()
            self.token_frames += job.tokens.numel() * job.cross.n_frames
            self.logits += job.tokens.shape[0] * job.n_logits


def multiplications(model: Any, work: Work) -> dict[str, float]:
    """Multiply-adds of each part."""
    d, n_audio, n_text = model.dims.n_audio_state, model.dims.n_audio_layer, model.dims.n_text_layer
    convolutions = work.frames * (2 * 3 * model.dims.n_mels * d + 3 * d * d)
    return {
        "encoder": convolutions + n_audio * (12 * d * d * work.frames + 2 * d * work.frame_pairs),
        "decoder's blocks": n_text * 14 * d * d * work.tokens,
        "cross-attention": n_text
        * (2 * d * d * work.tokens + 2 * d * model.dims.n_text_head * work.token_frames),
        "vocabulary": model.dims.n_vocab * d * work.logits,
    }


def weight_bytes(model: Any, *, per_weight: int) -> dict[str, float]:
    """Bytes of weights that one step of each part reads."""
    d, n_audio, n_text = model.dims.n_audio_state, model.dims.n_audio_layer, model.dims.n_text_layer
    return {
        "encoder": per_weight * n_audio * 12 * d * d + 4 * (3 * model.dims.n_mels * d + 3 * d * d),
        "decoder's blocks": per_weight * n_text * 14 * d * d,
        "cross-attention": 4 * n_text * 2 * d * d,
        "vocabulary": per_weight * model.dims.n_vocab * d,
    }


def _fastest(work: Callable[[], object]) -> float:
    """Processor seconds of the fastest of a few calls."""
    took = []
    for _ in range(5):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return min(took)


def speeds(*, has_int8: bool) -> tuple[float, float, float]:
    """Multiply-adds per second in the weights' format and in fp32, and bytes per second."""
    with torch.inference_mode():
        x, weight = torch.randn(WIDE, WIDE), torch.randn(WIDE, WIDE)
        fp32 = WIDE**3 / _fastest(lambda: x @ weight)
        layer = Int8Linear(weight) if has_int8 else None
        own = WIDE**3 / _fastest(lambda: layer(x)) if layer else fp32
        large = torch.ones(TABLE_BYTES // 4)
        return own, fp32, large.nbytes / _fastest(large.sum)


def measure(recognizer: Recognizer, clips: Sequence[np.ndarray], *, chunk_ms: int) -> list[dict[str, Any]]:
    """Play clips together and sum up.

    Args:
        recognizer: Its parts are measured from now on.
        clips: One for each stream.
        chunk_ms: Chunk size.

    Returns:
        A row for each part; times in processor milliseconds per second of one stream.
    """
    play_together(recognizer, clips[:1], n_streams=1, chunk_ms=chunk_ms)  # the first calls are slow
    engine, watch, work = recognizer._engine, Stopwatch(), Work()
    watch.wrap(engine.vad, "step_jobs", "voice activity")
    watch.wrap(engine.log_mel, "step", "log-mel")
    watch.wrap(engine.encoder, "step", "encoder", work.encode)
    watch.wrap(engine.decoder, "step", "decoder's blocks", work.decode)
    watch.wrap(engine.decoder, "_look", "cross-attention")
    watch.wrap(engine.decoder, "_vocabulary", "vocabulary")
    played = play_together(recognizer, clips, n_streams=len(clips), chunk_ms=chunk_ms)
    watch.seconds["search, words, events"] = played.cpu_s - sum(watch.seconds.values())
    has_int8 = recognizer.weights == "int8"
    own, fp32, copying = speeds(has_int8=has_int8)
    products = multiplications(recognizer.base_model, work)
    weights = weight_bytes(recognizer.base_model, per_weight=1 if has_int8 else 4)
    rows = []
    for part, seconds in watch.seconds.most_common():
        row: dict[str, Any] = {"part": part, "ms": 1000 * seconds / played.audio_s, "floor_ms": None}
        row["share"] = seconds / played.cpu_s
        if part in products:
            speed = fp32 if part == "cross-attention" else own
            n_reads = watch.calls[part] // (recognizer.base_model.dims.n_text_layer if speed == fp32 else 1)
            floor_s = products[part] / speed + n_reads * weights[part] / copying
            row["floor_ms"] = 1000 * floor_s / played.audio_s
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    parser = argparse.ArgumentParser(description="Where the milliseconds of a tick go, against a floor.")
    add = parser.add_argument
    add("--manifest", type=Path, required=True, metavar="M.jsonl")
    add("--streams", type=int, default=16, metavar="N", help="at a time (default: 16)")
    add("--seconds", type=float, default=10.0, metavar="S", help="least length of each (default: 10)")
    add("--model", default="tiny.en")
    add("--weights", default="auto", help="auto, int8 or fp32 (default: auto)")
    add("--chunk-ms", type=int, default=300, metavar="N")
    args = parser.parse_args(argv)
    try:
        made = make_clips(args.manifest, n_clips=args.streams, seconds=args.seconds)
        recognizer = load_recognizer(args.model, "auto", "none", args.weights)
    except ForesoundError as error:
        print(f"ticks: {error}", file=sys.stderr)
        return 2
    clips = [clip.astype(np.float32) / 32768 for clip in made]
    rows = measure(recognizer, clips, chunk_ms=args.chunk_ms)
    print("part                       ms per s of a stream   share    floor ms")
    for row in rows:
        floor = "       -" if row["floor_ms"] is None else f"{row['floor_ms']:8.2f}"
        print(f"{row['part']:25s} {row['ms']:15.2f} {row['share']:14.0%}    {floor}")
    total = sum(row["ms"] for row in rows)
    floor = sum(row["floor_ms"] or 0.0 for row in rows)
    print(f"{'all':25s} {total:15.2f} {1:14.0%}    {floor:8.2f}")
    report = {"benchmark": "ticks", "model": args.model, "weights": recognizer.weights}
    report |= {"streams": args.streams, "chunk_ms": args.chunk_ms, "rows": rows}
    print(json.dumps(report | {"total_ms": total, "floor_ms": floor, **machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
