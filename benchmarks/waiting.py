"""Which frames need right context: word errors against waiting, by an oracle, by rule and as learned.

``python -m benchmarks.waiting --manifest dev.jsonl --limit 40`` encodes utterances once, step by step, and
chooses a version of every frame in several ways: always with so much future; as soon as the head's next-token
probabilities are within some nats of those with the final version, which nobody can know (the oracle); and as
the head's wait scheduler says at several positions of its dial. The head then reads what was chosen.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from asr import ForesoundError
from asr.dial import LATENCY_MS, Dial
from asr.frontier import LookPolicy
from asr.head import HEAD_FRAME_MS, STACK, TransducerHead
from asr.head_files import shipped_head
from asr.recognizer import WAITING_CONTEXT_MS
from asr.waiting import WaitScheduler, hard_stays, waiting_delays
from asr.words import Vocabulary
from benchmarks.machine import machine
from benchmarks.utterances import evenly_spread
from training.alignment import teacher_tokenizer
from training.head_data import FeatureMaker
from training.head_evaluation import Encoded, stream
from training.head_setup import Frozen
from training.manifest import load_audio
from training.metrics import WerResult, count_edits
from training.wait_loop import Lesson, Versions, make_lesson, split_versions

Way = Callable[[Lesson], Tensor]

FUTURES_MS = (0, 40, 80, 160, 240, 320)
NATS = (1.0, 0.5, 0.25, 0.1)


@dataclass(frozen=True)
class Heard:
    """One utterance, version by version."""

    text: str
    versions: Versions
    lesson: Lesson


def listen(head: TransducerHead, frozen: Frozen, manifest: Path, *, chunk_ms: int, limit: int) -> list[Heard]:
    """Encode utterances step by step, and let the head judge every version."""
    chunking = frozen.chunking(chunk_ms, right_context_ms=WAITING_CONTEXT_MS)
    maker = FeatureMaker(frozen.encoder, n_mels=frozen.model.dims.n_mels, chunkings=[chunking], seed=0)
    heard = []
    for each in tqdm(evenly_spread(manifest, limit=limit), desc="versions", file=sys.stderr):
        versions = split_versions(maker.encode_steps([load_audio(each)], chunking), 0)
        heard.append(Heard(each.text or "", versions, make_lesson(head, versions)))
    return heard


def ways(head: TransducerHead, dial: Dial | None) -> dict[str, Way]:
    """Ways of waiting, by name.

    Args:
        head: The head.
        dial: Of its wait scheduler; None leaves that out.

    Returns:
        Each gives for all versions but the last ``[V - 1, T]`` 1 where a frame waits for a later one, else 0.
    """
    found = {f"always {ms} ms": _always(ms // HEAD_FRAME_MS) for ms in FUTURES_MS}
    found |= {f"oracle, {nats} nats": _oracle(nats) for nats in NATS}
    if dial and head.waiting:
        found |= {
            f"learned, {ms} ms": _learned(head.waiting, dial.bias(ms)) for ms in (10, *LATENCY_MS.values())
        }
    return found


def _always(n_future: int) -> Way:
    return lambda lesson: (lesson.future()[:-1] < n_future).cumprod(dim=0).float()


def _oracle(nats: float) -> Way:
    return lambda lesson: (lesson.costs[:-1] > nats).cumprod(dim=0).float()


def _learned(scheduler: WaitScheduler, bias: float) -> Way:
    return lambda lesson: hard_stays(scheduler(lesson.frames, lesson.future())[:-1], bias)


@torch.no_grad()
def measure(
    head: TransducerHead,
    heard: Sequence[Heard],
    way: Way,
    *,
    vocabulary: Vocabulary,
    frozen: Frozen,
    beam_size: int,
) -> dict[str, Any]:
    """Word errors and waits in one way of waiting."""
    chosen, waits = [], []
    for each in heard:
        stays = way(each.lesson)
        index = stays.sum(dim=0).long()[None, :, None].expand(1, -1, each.versions.frames.shape[-1])
        frames = each.versions.frames.gather(0, index)[0].float().reshape(1, index.shape[1] * STACK, -1)
        chosen.append(Encoded(each.text, frames))
        waits.append(waiting_delays(stays, each.lesson.heard))
    policy = LookPolicy(fixed=(0,) * head.config.n_blocks)
    streamed = stream(
        head,
        chosen,
        chunking=frozen.chunking(80),
        policy=policy,
        vocabulary=vocabulary,
        beam_size=beam_size,
    )
    edits = WerResult()
    for each, result in zip(heard, streamed, strict=True):
        edits += count_edits(each.text, hypothesis=vocabulary.text(token.id for token in result.tokens))
    waits_ms = HEAD_FRAME_MS * torch.cat(waits).double()
    return {
        "wer": round(edits.wer, 4),
        "n_words": edits.n_words,
        "mean_ms": round(float(waits_ms.mean()), 1),
        "p95_ms": round(float(waits_ms.quantile(0.95))),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.waiting``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True, help="utterances with texts, JSON lines")
    parser.add_argument("--limit", type=int, default=40, help="how many, evenly spread (default: 40)")
    parser.add_argument("--model", default="tiny.en", help="checkpoint name or path (default: tiny.en)")
    parser.add_argument("--adapter", default="auto", help="auto, none or a folder (default: auto)")
    parser.add_argument("--head", type=Path, help="a head's folder (default: the shipped one)")
    parser.add_argument("--chunk-ms", type=int, default=80, help="chunk size (default: 80)")
    parser.add_argument("--beam", type=int, default=4, help="hypotheses (default: 4)")
    args = parser.parse_args(arguments)
    try:
        frozen = Frozen.load(args.model, args.adapter, torch.device("cpu"))
        folder = args.head or shipped_head(frozen.base.name)
        if folder is None:
            raise ForesoundError(f"no head ships for {args.model}; give one with --head")
        head, card = frozen.read_head(folder)
        heard = listen(head, frozen, args.manifest, chunk_ms=args.chunk_ms, limit=args.limit)
    except ForesoundError as error:
        print(f"waiting: {error}", file=sys.stderr)
        return 2
    dial = card.read_dial(chunk_ms=args.chunk_ms)
    vocabulary = Vocabulary(teacher_tokenizer(frozen.model))
    rows = {}
    print("| a frame is read | mean wait, ms | p95 | WER, % |\n|---|---|---|---|")
    for name, way in ways(head, dial).items():
        row = measure(head, heard, way, vocabulary=vocabulary, frozen=frozen, beam_size=args.beam)
        rows[name] = row
        print(f"| {name} | {row['mean_ms']:.0f} | {row['p95_ms']} | {100 * row['wer']:.2f} |", flush=True)
    print(json.dumps({"chunk_ms": args.chunk_ms, "rows": rows, **machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
