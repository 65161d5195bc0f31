"""What the future is worth to a head: its loss by how far frames always look, and which frames it heeds.

For each chunk size the first table has nats per token of a manifest's utterances, without noise, when every
block always looks so many frames ahead. The second one says by how much, relative to itself, a frame of the
head changes when one of its input frames is replaced by another of the recording, by how far that one lies
after it. The last line of the output is one JSON object.

Run as ``python -m benchmarks.lookahead_worth --head runs/head/last --manifest M --aligned A``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from asr import ForesoundError, OptionError
from asr.bpe import TruncatedBpe
from asr.frontier import LookPolicy
from asr.head import STACK, TransducerHead
from benchmarks.machine import machine
from training.alignment import read_aligned, teacher_tokenizer
from training.config import DataConfig, HeadLossConfig
from training.dataset import StreamDataset
from training.head_data import FeatureMaker, HeadBatch
from training.head_losses import HeadLoss
from training.head_setup import Frozen
from training.manifest import read_manifest
from training.runs import Position, every_nth

OFFSETS = (-20, -10, -5, -3, -2, -1, 0, 1, 2, 3)
PLAIN = {
    "speeds": (1.0,),
    "noise_share": 0.0,
    "reverb_share": 0.0,
    "noise_only_share": 0.0,
    "prompt_share": 0.0,
    "cut_share": 0.0,
    "joined_max_s": 0.0,
    "short_share": 0.0,
    "batch_s": 0.0,
}
"""Every utterance is a batch of its own, as it was recorded."""


def plain_batches(
    frozen: Frozen, head: TransducerHead, *, manifest: Path, aligned: Path, limit: int, chunk_ms: int
) -> list[HeadBatch]:
    """Encode utterances, each by itself.

    Args:
        frozen: The encoder.
        head: Decides tokens.
        manifest: Utterances.
        aligned: Their words, from ``foresound align``.
        limit: How many, evenly spaced.
        chunk_ms: The encoder's chunks.

    Returns:
        A batch per utterance.

    Raises:
        OptionError: No utterance of the manifest is aligned.
    """
    words = read_aligned(aligned)
    known = every_nth([each for each in read_manifest(manifest) if each.id in words], limit)
    if not known:
        raise OptionError(f"{aligned}: no utterance of {manifest} is aligned")
    tokenizer = teacher_tokenizer(frozen.model)
    data = StreamDataset(
        DataConfig(manifest=manifest, aligned=aligned, **PLAIN),
        utterances=known,
        aligned=words,
        noises=[],
        tokenizer=tokenizer,
        margin_s=0.0,
        seed=0,
        spelling=TruncatedBpe.of(tokenizer, head.config.n_tokens),
    )
    chunkings = [frozen.chunking(chunk_ms)]
    maker = FeatureMaker(frozen.encoder, n_mels=frozen.model.dims.n_mels, chunkings=chunkings, seed=0)
    return [maker.batch([data.load(item) for item in items], Position()) for items in data.plan(0)]


@torch.no_grad()
def loss_by_look(
    head: TransducerHead, batches: Sequence[HeadBatch], looks: Sequence[int], config: HeadLossConfig
) -> dict[int, float]:
    """Nats per token when every block always looks equally far.

    Args:
        head: In eval mode.
        batches: Utterances.
        looks: Head frames.
        config: When tokens may come out.
    """
    loss_of, n_tokens = HeadLoss(head, config), sum(int(batch.n_tokens.sum()) for batch in batches)
    found = {}
    for look in looks:
        policy = LookPolicy(fixed=(look,) * head.config.n_blocks)
        parts = [loss_of(head, batch, temperature=None, policy=policy, masked_share=0.0) for batch in batches]
        pairs = zip(parts, batches, strict=True)
        found[look] = (
            sum(part.transducer.item() * int(batch.n_tokens.sum()) for part, batch in pairs) / n_tokens
        )
    return found


@torch.no_grad()
def influence(head: TransducerHead, frames: Tensor) -> dict[int, float]:
    """How much a frame of the head changes with the input frames around it, on average over a recording.

    Args:
        head: In eval mode.
        frames: ``[1, F, E]`` encoder frames of one recording, a few seconds at least.

    Returns:
        Relative change by the distance of the replaced head frame; every block may look as far as it can.

    Raises:
        OptionError: The recording is too short.
    """
    n_frames = frames.shape[1] // STACK
    policy = LookPolicy(fixed=(head.config.max_look,) * head.config.n_blocks)
    lengths = torch.tensor([n_frames])
    before = head(frames, lengths, policy=policy).frames[0]
    margin = max(map(abs, OFFSETS))
    if n_frames <= 2 * margin:
        raise OptionError(f"{n_frames} head frames are too few; give a recording of more than {2 * margin}")
    changes: dict[int, list[float]] = {offset: [] for offset in OFFSETS}
    for replaced in range(margin, n_frames - margin, 7):
        other = STACK * ((replaced + n_frames // 2) % n_frames)
        changed = frames.clone()
        changed[:, STACK * replaced : STACK * (replaced + 1)] = frames[:, other : other + STACK]
        after = head(changed, lengths, policy=policy).frames[0]
        for offset in OFFSETS:
            at = replaced - offset
            changes[offset].append(float((after[at] - before[at]).norm() / before[at].norm()))
    return {offset: sum(each) / len(each) for offset, each in changes.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.lookahead_worth``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--head", type=Path, required=True, help="folder of a head")
    add("--manifest", type=Path, required=True, help="utterances, JSON lines")
    add("--aligned", type=Path, required=True, help="their words, from foresound align")
    add("--limit", type=int, default=20, help="how many utterances, evenly spaced (default: 20)")
    add("--model", default="tiny.en", help="checkpoint name or path (default: tiny.en)")
    add("--adapter", default="auto", help="auto, none or a folder (default: auto)")
    add("--late-s", type=float, default=0.1, help="tokens may come this long after their word (default: 0.1)")
    args = parser.parse_args(argv)
    try:
        frozen = Frozen.load(args.model, args.adapter, torch.device("cpu"))
        head, _ = frozen.read_head(args.head)
        looks = sorted({0, 1, head.config.max_look // 2, head.config.max_look})
        config, losses = HeadLossConfig(late_s=args.late_s), {}
        for chunk_ms in (80, 300):
            source = {"manifest": args.manifest, "aligned": args.aligned, "limit": args.limit}
            batches = plain_batches(frozen, head, **source, chunk_ms=chunk_ms)
            losses[chunk_ms] = loss_by_look(head, batches, looks, config)
            values = "".join(f"  {look}: {loss:.3f}" for look, loss in losses[chunk_ms].items())
            print(f"{chunk_ms} ms chunks, nats per token by look {values}")
        changes = influence(head, max((batch.frames for batch in batches), key=lambda x: x.shape[1]).float())
    except ForesoundError as error:
        print(f"lookahead_worth: {error}", file=sys.stderr)
        return 2
    print("change by distance " + "".join(f"  {offset:+d}: {part:.3f}" for offset, part in changes.items()))
    numbers = {"nats_per_token": losses, "influence": changes, "n_utterances": len(batches)}
    print(json.dumps({"head": str(args.head), **numbers, **machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
