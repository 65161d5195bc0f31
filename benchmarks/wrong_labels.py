"""What wrong transcripts do to a finetuning run, with and without protection.

A share of the training utterances gets the text of others of similar length. Three runs start from the same
adapter and see the same audio in the same order: with the right texts, with the wrong ones, and with the
wrong ones while improbable words count less (``robust.method: downweight``). Nothing else protects any of
them: no transcript is dropped by the aligner, none by its confidence.

Measured on held-out recordings with right texts: cross-entropy per token at 300 ms chunks, which short runs
already move, and the word error rate of really streaming them. On the training data: the average of the
probabilities that each run gave to words of wrong and of right transcripts, which says how far it learned the
wrong ones by heart. What ``foresound align`` would have found is counted besides.

    python -m benchmarks.wrong_labels --manifest train.jsonl --test-manifest test.jsonl --output wrong

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr import Recognizer
from asr.chunking import Chunking
from benchmarks.machine import machine
from training import align
from training.alignment import read_aligned, teacher_tokenizer
from training.config import DataConfig, LossConfig, RobustConfig, TrainConfig
from training.dataset import StreamDataset
from training.evaluate import stream_wer
from training.judge import Limits
from training.loop import train
from training.losses import StreamLoss
from training.manifest import Utterance, read_manifest

ARMS = {"right": "none", "wrong": "none", "wrong, protected": "downweight"}


def swap_texts(utterances: Sequence[Utterance], *, share: float, seed: int) -> dict[str, str]:
    """Wrong texts for a share of utterances: each gets that of the chosen one next in length.

    Args:
        utterances: All with texts.
        share: How many of them get a wrong one.
        seed: Of the choice.

    Returns:
        Wrong texts by id.
    """
    rng = np.random.default_rng(seed)
    n_wrong = max(2, round(share * len(utterances)))
    chosen = [utterances[i] for i in rng.choice(len(utterances), n_wrong, replace=False)]
    chosen.sort(key=lambda utterance: utterance.duration_s)
    others = [*chosen[1:], chosen[0]]
    return {mine.id: other.text or "" for mine, other in zip(chosen, others, strict=True)}


def write_texts(utterances: Sequence[Utterance], texts: dict[str, str], path: Path) -> None:
    """Write a manifest in which some utterances have other texts."""
    lines = []
    for utterance in utterances:
        record = {
            "id": utterance.id,
            "audio": os.path.relpath(utterance.audio, path.absolute().parent),
            "duration": utterance.duration_s,
            "text": texts.get(utterance.id, utterance.text),
            "speaker": utterance.speaker,
            "set": utterance.set,
        }
        lines.append(json.dumps(record) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def run_arm(args: argparse.Namespace, name: str, manifest: Path, aligned: Path) -> Path:
    """Train one arm; returns its adapter."""
    output = args.output / name.replace(", ", "-")
    config = TrainConfig(
        output=output,
        data=DataConfig(manifest, aligned, batch_s=args.batch_s, min_confidence=0.0),
        loss=LossConfig(teacher_weight=args.teacher_weight, teacher_share=args.teacher_share),
        robust=RobustConfig(method=ARMS[name]),
        model=args.model,
        start_from="auto",
        steps=args.steps,
        warmup_steps=min(10, args.steps),
        learning_rate=args.learning_rate,
        checkpoint_every=20,
        evaluate_every=args.steps,
    )
    train(config)
    return output / "last"


def measure(args: argparse.Namespace, adapter: str | Path) -> dict[str, float]:
    """Cross-entropy and, unless left out, word error rate of an adapter on the held-out recordings."""
    recognizer = Recognizer.load(args.model, adapter=adapter)
    tests = read_manifest(args.test_manifest)
    aligned = args.output / "test.aligned.jsonl"
    numbers = {"token_loss": token_loss(recognizer, tests, args.test_manifest, aligned)}
    if args.wer:
        numbers["wer"] = round(stream_wer(recognizer, tests, chunk_ms=300).wer, 5)
    return numbers


@torch.no_grad()
def token_loss(recognizer: Recognizer, tests: list[Utterance], manifest: Path, aligned: Path) -> float:
    """Mean cross-entropy per token, in nats, of streams without augmentation."""
    data = DataConfig(
        manifest,
        aligned,
        batch_s=60.0,
        speeds=(1.0,),
        noise_share=0,
        cut_share=0,
        prompt_share=0,
        short_share=0,
    )
    tokenizer = teacher_tokenizer(recognizer.base_model)
    dataset = StreamDataset(
        data,
        utterances=tests,
        aligned=read_aligned(aligned),
        noises=[],
        tokenizer=tokenizer,
        margin_s=LossConfig().margin_s,
        seed=1,
    )
    config = LossConfig(full_share=0.0, teacher_weight=0.0)
    loss = StreamLoss(recognizer.streaming_model, recognizer.base_model, eot=tokenizer.eot, config=config)
    total, n_tokens = 0.0, 0
    for number, batch in enumerate(dataset.plan(0)):
        examples = [dataset.load(item) for item in batch]
        parts = loss(examples, chunking=Chunking.from_ms(300), rng=np.random.default_rng(number))
        count = sum(len(example.tokens or ()) for example in examples)
        total += parts.token.item() * count
        n_tokens += count
    return round(total / n_tokens, 4)


def beliefs(output: Path, wrong: set[str]) -> dict[str, float]:
    """Mean belief of a run in the words of wrong and of right transcripts."""
    kept = torch.load(output / "checkpoint.pt", weights_only=True)["beliefs"]
    parts = {
        "believed_wrong": [values for id, values in kept.items() if id in wrong],
        "believed_right": [values for id, values in kept.items() if id not in wrong],
    }
    return {name: round(float(torch.cat(values).mean()), 4) for name, values in parts.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the three arms."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True, help="training utterances with right texts")
    parser.add_argument("--test-manifest", type=Path, required=True, help="held-out utterances")
    parser.add_argument("--output", type=Path, required=True, help="folder for manifests and runs")
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-s", type=float, default=40.0)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--teacher-weight", type=float, default=LossConfig.teacher_weight)
    parser.add_argument("--teacher-share", type=float, default=LossConfig.teacher_share)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-wer", dest="wer", action="store_false", help="cross-entropies only")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    utterances = [utterance for utterance in read_manifest(args.manifest) if utterance.text]
    wrong = swap_texts(utterances, share=args.share, seed=args.seed)
    listen = align.AlignOptions(model=args.model, limits=None)
    align.run(
        manifest=args.test_manifest, output=args.output / "test.aligned.jsonl", times=None, options=listen
    )
    manifests = {}
    for name, texts in (("right", {}), ("wrong", wrong)):
        manifests[name] = args.output / f"{name}.jsonl"
        write_texts(utterances, texts, manifests[name])
        for limits, suffix in ((None, "aligned"), (Limits(), "judged")):
            aligned = args.output / f"{name}.{suffix}.jsonl"
            options = align.AlignOptions(model=args.model, limits=limits)
            align.run(manifest=manifests[name], output=aligned, times=None, options=options)
    found = {
        id: each
        for id, each in read_aligned(args.output / "wrong.judged.jsonl", with_wrong=True).items()
        if each.wrong
    }
    report: dict[str, Any] = {
        "n_utterances": len(utterances),
        "n_wrong": len(wrong),
        "n_found_by_align": len(set(found) & set(wrong)),
        "n_false_alarms": len(set(found) - set(wrong)),
    }
    arms: dict[str, dict[str, float]] = {"before": measure(args, "auto")}
    print(f"before: {arms['before']}", flush=True)
    for name in ARMS:
        kind = name.split(",")[0]
        adapter = run_arm(args, name, manifests[kind], args.output / f"{kind}.aligned.jsonl")
        arms[name] = measure(args, adapter)
        print(f"{name}: {arms[name]}", flush=True)
    for name in ("wrong", "wrong, protected"):
        arms[name] |= beliefs(args.output / name.replace(", ", "-"), set(wrong))
    report |= {"arms": arms, "steps": args.steps, "learning_rate": args.learning_rate, **machine()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
