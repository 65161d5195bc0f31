"""Finetune Whisper into a chunk-causal recogniser: one flat, resumable loop.

Run as ``python -m training.loop --manifest M --aligned A --output RUN [...]``; the same command resumes from
the run's last checkpoint.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from tqdm import tqdm
from whisper.model import Whisper

from asr.adapters import AdapterCard, add_adapter, continue_adapter, save_adapter
from asr.checkpoint import Checkpoint, load_checkpoint
from asr.encoder import Chunking
from training.alignment import read_aligned, teacher_tokenizer
from training.config import DataConfig, LossConfig, TrainConfig
from training.dataset import StreamDataset
from training.evaluate import stream_wer
from training.losses import StreamLoss
from training.manifest import read_manifest
from training.runs import Position, every_nth, load_batches, log_row, parse_settings, warm_cosine


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    hours: float = 0.0  # audio seen
    best_wer: float = math.inf


def train(config: TrainConfig) -> None:
    """Train to ``config.steps``, from the run's last checkpoint if there is one.

    Args:
        config: The run. ``config.output`` receives ``checkpoint.pt``, ``log.csv``, and the adapter folders
            ``last`` and ``best`` (the lowest streaming WER on the dev manifest).
    """
    config.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    base = load_checkpoint(config.model, device=config.device)
    student = copy.deepcopy(base.model).requires_grad_(False)
    wrapped = _adapter(config, base, student)
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    progress = _resume(config, wrapped, optimizer)
    tokenizer = teacher_tokenizer(base.model)
    loss_of = StreamLoss(student, base.model, eot=tokenizer.eot, config=config.loss)
    dataset = _dataset(config, tokenizer)
    batches = load_batches(
        dataset,
        Position(progress.epoch, progress.batch),
        lambda items, _: [dataset.load(item) for item in items],
    )
    bar = tqdm(total=config.steps, initial=progress.step, unit="step", dynamic_ncols=True)
    while progress.step < config.steps:
        started = time.monotonic()
        rng = np.random.default_rng([config.seed, progress.step])
        chunking = Chunking.from_ms(
            int(rng.choice(config.chunk_ms)),
            initial=config.initial_chunks,
            left_context_s=config.left_context_s,
        )
        for _ in range(config.accumulate):
            loaded = next(batches)
            examples = loaded.content
            progress.epoch, progress.batch = loaded.following.epoch, loaded.following.batch
            parts = loss_of(examples, chunking=chunking, rng=rng)
            (parts.total / config.accumulate).backward()
            progress.hours += sum(len(e.clean) for e in examples) / 16_000 / 3600
        rate = config.learning_rate * warm_cosine(
            progress.step, warmup_steps=config.warmup_steps, steps=config.steps
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        if torch.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad()
        progress.step += 1
        row = {
            "step": progress.step,
            "epoch": progress.epoch,
            "hours": round(progress.hours, 3),
            "chunk_ms": chunking.size * 20,
            "loss": round(parts.total.item(), 4),
            "token": round(parts.token.item(), 4),
            "teacher": round(parts.teacher.item(), 4),
            "feature": round(parts.feature.item(), 4),
            "norm": round(norm.item(), 3),
            "rate": round(rate, 8),
            "seconds": round(time.monotonic() - started, 2),
        }
        log_row(config.output / "log.csv", row)
        bar.set_postfix(loss=row["loss"], token=row["token"], feature=row["feature"], refresh=False)
        bar.update()
        finished = progress.step == config.steps
        if progress.step % config.evaluate_every == 0 or finished:
            _evaluate(config, base, wrapped, progress)
        if progress.step % config.checkpoint_every == 0 or finished:
            _save(config, base, wrapped, optimizer, progress)
    bar.close()


def _adapter(config: TrainConfig, base: Checkpoint, student: Whisper) -> PeftModel:
    if config.start_from is None:
        return add_adapter(student, encoder_rank=config.encoder_rank, decoder_rank=config.decoder_rank)
    return continue_adapter(student, config.start_from, weights_hash=base.weights_hash)


def _dataset(config: TrainConfig, tokenizer: Any) -> StreamDataset:
    data = config.data
    return StreamDataset(
        data,
        utterances=read_manifest(data.manifest),
        aligned=read_aligned(data.aligned),
        noises=read_manifest(data.noise_manifest) if data.noise_manifest else [],
        tokenizer=tokenizer,
        margin_s=config.loss.margin_s,
        seed=config.seed,
    )


def _evaluate(config: TrainConfig, base: Checkpoint, wrapped: PeftModel, progress: Progress) -> None:
    """Stream the dev set; keep the adapter if it is the best so far."""
    if config.dev_manifest is None:
        return
    from asr.recognizer import Recognizer

    merged = copy.deepcopy(wrapped).merge_and_unload().eval()
    recognizer = Recognizer(
        base.model,
        merged,
        name=config.model,
        initial=config.initial_chunks,
        left_context_s=config.left_context_s,
    )
    utterances = every_nth(read_manifest(config.dev_manifest, require_text=True), config.dev_limit)
    result = stream_wer(recognizer, utterances, chunk_ms=config.dev_chunk_ms)
    row = {"step": progress.step, "chunk_ms": config.dev_chunk_ms, "n": len(utterances), "wer": result.wer}
    log_row(config.output / "dev.csv", row)
    tqdm.write(f"step {progress.step}: dev WER {100 * result.wer:.2f} % at {config.dev_chunk_ms} ms")
    if result.wer < progress.best_wer:
        progress.best_wer = result.wer
        save_adapter(wrapped, config.output / "best", _card(config, base, progress))


def _card(config: TrainConfig, base: Checkpoint, progress: Progress) -> AdapterCard:
    return AdapterCard(
        base_model=config.model,
        base_weights_hash=base.weights_hash,
        initial_chunks=config.initial_chunks,
        left_context_s=config.left_context_s,
        training={
            "steps": progress.step,
            "hours_of_audio_seen": round(progress.hours, 1),
            "learning_rate": config.learning_rate,
            "encoder_rank": config.encoder_rank,
            "decoder_rank": config.decoder_rank,
            "chunk_ms": list(config.chunk_ms),
        },
    )


def _save(
    config: TrainConfig,
    base: Checkpoint,
    wrapped: PeftModel,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write adapter and checkpoint; a cut in between leaves the older checkpoint whole."""
    save_adapter(wrapped, config.output / "last", _card(config, base, progress))
    state = {
        "adapter": {name: p for name, p in wrapped.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
    }
    temporary = config.output / "checkpoint.tmp"
    torch.save(state, temporary)
    os.replace(temporary, config.output / "checkpoint.pt")


def _resume(
    config: TrainConfig,
    wrapped: PeftModel,
    optimizer: torch.optim.Optimizer,
) -> Progress:
    path = config.output / "checkpoint.pt"
    if not path.exists():
        return Progress()
    state = torch.load(path, map_location=config.device, weights_only=True)
    parameters = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, value in state["adapter"].items():
            parameters[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])


def parse_config(arguments: Sequence[str] | None = None) -> TrainConfig:
    """The run that a command line describes; every field of the configs is an option."""
    given = parse_settings(
        (DataConfig, LossConfig, TrainConfig),
        description=(__doc__ or "").split("\n")[0],
        required=("manifest", "aligned", "output"),
        skipped=("data", "loss"),
        arguments=arguments,
    )
    return TrainConfig(
        data=DataConfig(**given[DataConfig]), loss=LossConfig(**given[LossConfig]), **given[TrainConfig]
    )


if __name__ == "__main__":
    train(parse_config())
