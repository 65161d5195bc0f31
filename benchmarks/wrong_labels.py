"""What wrong transcripts do to a finetuning run, with and without protection.

A share of the training utterances gets the text of others of similar length. Three runs start from the same
adapter and see the same audio in the same order: with the right texts, with the wrong ones, and with the
wrong ones while improbable words count less (``robust.method: downweight``). Nothing else protects any of
them: no transcript is dropped by the aligner, none by its confidence. Word error rates are those of really
streaming held-out recordings. What ``foresound align`` would have found is counted besides.

    python -m benchmarks.wrong_labels --manifest train.jsonl --test-manifest test.jsonl --output wrong

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from asr import Recognizer
from benchmarks.machine import machine
from training import align
from training.alignment import read_aligned
from training.config import DataConfig, LossConfig, RobustConfig, TrainConfig
from training.dataset import Example
from training.evaluate import stream_wer
from training.judge import Limits
from training.loop import train
from training.manifest import Utterance, read_manifest
from training.robust import WordBeliefs

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


def run_arm(args: argparse.Namespace, name: str, manifest: Path, aligned: Path) -> dict[str, float]:
    """Train one arm and measure it."""
    output = args.output / name.replace(", ", "-")
    config = TrainConfig(
        output=output,
        data=DataConfig(manifest, aligned, batch_s=args.batch_s, min_confidence=0.0),
        loss=LossConfig(),
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
    recognizer = Recognizer.load(args.model, adapter=output / "last")
    return {"wer": round(stream_wer(recognizer, read_manifest(args.test_manifest), chunk_ms=300).wer, 5)}


def weigh(output: Path, aligned: Path, wrong: set[str]) -> dict[str, float]:
    """Mean weight of words in wrong and in right transcripts at the end of the protected run."""
    texts = read_aligned(aligned)
    beliefs = WordBeliefs(RobustConfig(), texts)
    before = _mean_weights(beliefs, texts, wrong)
    beliefs.load(torch.load(output / "checkpoint.pt", weights_only=True)["beliefs"])
    after = _mean_weights(beliefs, texts, wrong)
    names = ("weight_wrong", "weight_right")
    first = {f"{name}_first": value for name, value in zip(names, before, strict=True)}
    return first | dict(zip(names, after, strict=True))


def _mean_weights(beliefs: WordBeliefs, texts: dict, wrong: set[str]) -> tuple[float, float]:  # type: ignore[type-arg]
    weights: dict[bool, list[float]] = {True: [], False: []}
    empty = Example(np.zeros(0), np.zeros(0), (), (), np.zeros(0))
    for id, each in texts.items():
        n_words = len(each.words)
        words = replace(
            empty, words=tuple((id, i) for i in range(n_words)), word_of=tuple(range(n_words)), tokens=(0,)
        )
        weights[id in wrong] += beliefs.weights(words)[:-1].tolist()
    return round(float(np.mean(weights[True])), 4), round(float(np.mean(weights[False])), 4)


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
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    utterances = [utterance for utterance in read_manifest(args.manifest) if utterance.text]
    wrong = swap_texts(utterances, share=args.share, seed=args.seed)
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
    report = {
        "n_utterances": len(utterances),
        "n_wrong": len(wrong),
        "n_found_by_align": len(set(found) & set(wrong)),
        "n_false_alarms": len(set(found) - set(wrong)),
    }
    for name in ARMS:
        kind = name.split(",")[0]
        report[name] = run_arm(args, name, manifests[kind], args.output / f"{kind}.aligned.jsonl")["wer"]
        print(f"{name}: WER {100 * report[name]:.2f} %", flush=True)
    start = Recognizer.load(args.model)
    report["before"] = round(stream_wer(start, read_manifest(args.test_manifest), chunk_ms=300).wer, 5)
    protected = args.output / "wrong-protected"
    report |= weigh(protected, args.output / "wrong.aligned.jsonl", set(wrong))
    report |= {"steps": args.steps, "learning_rate": args.learning_rate, **machine()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
