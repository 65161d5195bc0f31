"""Train a transducer head on a frozen causal encoder: one flat, resumable loop.

Run as ``python -m training.head_loop --manifest M --aligned A --output RUN [...]``; the same command resumes
from the run's last checkpoint.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from whisper.model import Whisper

from asr.adapters import merge_adapter, shipped_adapter
from asr.bpe import TruncatedBpe
from asr.checkpoint import Checkpoint, load_checkpoint
from asr.encoder import CausalEncoder, Chunking
from asr.frontier import LookPolicy
from asr.head import HEAD_FRAME_MS, HeadConfig, TransducerHead
from asr.head_files import HeadCard, adapter_hash, load_head, save_head
from asr.words import Vocabulary
from training.alignment import AlignedUtterance, read_aligned, teacher_tokenizer
from training.config import DataConfig, HeadLossConfig, HeadTrainConfig
from training.dataset import StreamDataset
from training.head_data import FeatureMaker, FeatureStore, HeadBatch, fingerprint, load_batch
from training.head_evaluation import (
    Encoded,
    HeadResult,
    encode_utterances,
    measure_dial,
    measure_timing,
    stream,
    summarize,
)
from training.head_losses import HeadLoss, hard_delays
from training.manifest import read_manifest
from training.runs import Position, every_nth, load_batches, log_row, parse_settings, warm_cosine

N_TIMED = 40  # training utterances on which a card's timing is measured
MAX_DEV_S = 29.0  # longer ones do not fit the encoder's window


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    hours: float = 0.0  # audio seen
    best_wer: float = math.inf


@dataclass(frozen=True)
class Frozen:
    """What a run does not change."""

    base: Checkpoint
    adapter: Path | None
    encoder: CausalEncoder
    initial_chunks: int
    left_context_s: float

    @classmethod
    def load(cls, config: HeadTrainConfig) -> Frozen:
        """The base weights with the adapter merged in."""
        base = load_checkpoint(config.model, device=config.device)
        folder = shipped_adapter(base.name) if config.adapter == "auto" else Path(config.adapter)
        if folder is None or config.adapter == "none":
            return cls(base, None, CausalEncoder(base.model.encoder), 1, 10.0)
        merged, card = merge_adapter(base.model, folder, weights_hash=base.weights_hash)
        return cls(base, folder, CausalEncoder(merged.encoder), card.initial_chunks, card.left_context_s)

    @property
    def model(self) -> Whisper:
        """The base model."""
        return self.base.model

    def chunking(self, chunk_ms: int) -> Chunking:
        """Chunks as the adapter was trained with."""
        return Chunking.from_ms(chunk_ms, initial=self.initial_chunks, left_context_s=self.left_context_s)


@dataclass(frozen=True)
class DevSets:
    """What evaluations stream."""

    dev: list[Encoded]
    timed: list[Encoded]  # with word times


def train(config: HeadTrainConfig) -> None:
    """Train to ``config.steps``, from the run's last checkpoint if there is one.

    Args:
        config: The run. ``config.output`` receives ``checkpoint.pt``, ``log.csv``, ``lookahead.csv`` (how far
            frames look), ``dev.csv``, and the head folders ``last`` and ``best`` (the lowest streaming WER on
            the dev manifest).
    """
    config.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    frozen = Frozen.load(config)
    device = torch.device(config.device)
    head = _new_head(config, frozen).to(device)
    loss_of = HeadLoss(head, config.loss).to(device)
    parameters = [*head.parameters(), *loss_of.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    progress = _resume(config, head, loss_of, optimizer)
    aligned = read_aligned(config.data.aligned)
    maker = FeatureMaker(
        frozen.encoder,
        n_mels=frozen.model.dims.n_mels,
        chunkings=[frozen.chunking(ms) for ms in config.chunk_ms],
        seed=config.seed,
    )
    sets = _dev_sets(config, frozen, maker, aligned)
    batches = load_batches(
        (dataset := _dataset(config, frozen, aligned)),
        Position(progress.epoch, progress.batch),
        load_batch(maker, _store(config, frozen), dataset.load),
    )
    bar = tqdm(total=config.steps, initial=progress.step, unit="step", dynamic_ncols=True)
    while progress.step < config.steps:
        started = time.monotonic()
        rng = np.random.default_rng([config.seed, progress.step])
        torch.manual_seed(int(rng.integers(2**31)))
        loaded = next(batches)
        batch = loaded.content.to(device)
        waited = time.monotonic() - started
        temperature = _temperature(progress.step, config)
        policy = _policy(config, float(rng.uniform(-1, 1)) * config.bias_spread)
        parts = loss_of(
            head.train(), batch, temperature=temperature, policy=policy, masked_share=config.masked_share
        )
        parts.total.backward()
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
        progress.epoch, progress.batch = loaded.following.epoch, loaded.following.batch
        progress.hours += batch.seconds / 3600
        row = {
            "step": progress.step,
            "epoch": progress.epoch,
            "hours": round(progress.hours, 3),
            "chunk_ms": int(batch.chunk_frames[1]) * 20,
            "temperature": "hard" if temperature is None else round(temperature, 4),
            "loss": round(parts.total.item(), 4),
            "transducer": round(parts.transducer.item(), 4),
            "ctc": round(parts.ctc.item(), 4),
            "delay_s": round(parts.delay_s.item(), 4),
            "look": round(parts.look.item(), 4),
            "norm": round(norm.item(), 3),
            "rate": round(rate, 8),
            "seconds": round(time.monotonic() - started, 2),
            "waited": round(waited, 2),
        }
        log_row(config.output / "log.csv", row)
        bar.set_postfix(loss=row["transducer"], delay=row["delay_s"], refresh=False)
        bar.update()
        finished = progress.step == config.steps
        if progress.step % config.statistics_every == 0 or finished:
            _log_delays(config, head, batch, progress)
        if (progress.step % config.evaluate_every == 0 or finished) and sets.dev:
            _evaluate(config, frozen, head, sets, progress)
        if progress.step % config.checkpoint_every == 0 or finished:
            _save(config, frozen, head, loss_of, optimizer, progress)
    bar.close()


def _new_head(config: HeadTrainConfig, frozen: Frozen) -> TransducerHead:
    """A fresh head, or one to be trained further."""
    sizes = HeadConfig(
        encoder_width=frozen.encoder.width,
        n_tokens=config.n_tokens,
        width=config.width,
        n_blocks=config.n_blocks,
        n_head=config.n_head,
        max_look=config.max_look,
        left_context=config.left_context,
        embedding_width=config.embedding_width,
        joint_width=config.joint_width,
    )
    if config.start_from is None:
        head = TransducerHead(sizes, dropout=config.dropout)
        if config.whisper_embeddings:
            head.transducer.start_from_embeddings(frozen.model.decoder.token_embedding.weight.cpu())
        return head
    hashes = {"weights_hash": frozen.base.weights_hash, "adapter_hash": adapter_hash(frozen.adapter)}
    start, _ = load_head(config.start_from, **hashes)
    head = TransducerHead(start.config, dropout=config.dropout)
    head.load_state_dict(start.state_dict())
    return head


def _temperature(step: int, config: HeadTrainConfig) -> float | None:
    """From the first to the last temperature geometrically, then hard."""
    n_soft = round(config.steps * (1 - config.hard_share))
    if step >= n_soft:
        return None
    return float(
        config.temperature_first * (config.temperature_last / config.temperature_first) ** (step / n_soft)
    )


def _policy(config: HeadTrainConfig, bias: float) -> LookPolicy:
    return LookPolicy(fixed=config.fixed_look) if config.fixed_look else LookPolicy(bias)


def _dataset(config: HeadTrainConfig, frozen: Frozen, aligned: dict[str, AlignedUtterance]) -> StreamDataset:
    data, tokenizer = config.data, teacher_tokenizer(frozen.model)
    return StreamDataset(
        data,
        utterances=[u for u in read_manifest(data.manifest) if u.text is not None],
        aligned=aligned,
        noises=read_manifest(data.noise_manifest) if data.noise_manifest else [],
        tokenizer=tokenizer,
        margin_s=0.0,
        seed=config.seed,
        spelling=TruncatedBpe.of(tokenizer, config.n_tokens),
    )


def _store(config: HeadTrainConfig, frozen: Frozen) -> FeatureStore:
    if config.features is None:
        return FeatureStore(None, "")
    key = fingerprint(
        config.data,
        seed=config.seed,
        n_tokens=config.n_tokens,
        chunk_ms=config.chunk_ms,
        initial_chunks=frozen.initial_chunks,
        left_context_s=frozen.left_context_s,
        base=frozen.base.weights_hash,
        adapter=adapter_hash(frozen.adapter),
    )
    return FeatureStore(config.features, key)


def _dev_sets(
    config: HeadTrainConfig, frozen: Frozen, maker: FeatureMaker, aligned: dict[str, AlignedUtterance]
) -> DevSets:
    """Encode what evaluations stream, once."""
    if config.dev_manifest is None:
        return DevSets([], [])
    chunking = frozen.chunking(config.dev_chunk_ms)
    utterances = read_manifest(config.dev_manifest, require_text=True)
    dev = [u for u in every_nth(utterances, config.dev_limit) if u.duration_s < MAX_DEV_S]
    known = [u for u in read_manifest(config.data.manifest) if u.id in aligned and u.duration_s < MAX_DEV_S]
    words = {id: utterance.words for id, utterance in aligned.items()}
    timed = encode_utterances(maker, every_nth(known, N_TIMED), chunking, words=words)
    return DevSets(encode_utterances(maker, dev, chunking), timed)


def _log_delays(config: HeadTrainConfig, head: TransducerHead, batch: HeadBatch, progress: Progress) -> None:
    """Log how far frames would look in streaming: mean, percentiles, looks per block, and a histogram."""
    waits, looks = hard_delays(head.eval(), batch, _policy(config, 0.0))
    counts = torch.bincount(waits.long(), minlength=head.lookahead.latency + 1).tolist()
    waits_ms: Tensor = waits.double() * HEAD_FRAME_MS
    row = {
        "step": progress.step,
        "mean_ms": round(float(waits_ms.mean()), 1),
        "p50_ms": float(waits_ms.quantile(0.5)),
        "p95_ms": float(waits_ms.quantile(0.95)),
        **{f"look_{i}": round(look, 3) for i, look in enumerate(looks.tolist())},
        **{f"wait_{i * HEAD_FRAME_MS}_ms": count for i, count in enumerate(counts)},
    }
    log_row(config.output / "lookahead.csv", row)


def _evaluate(
    config: HeadTrainConfig, frozen: Frozen, head: TransducerHead, sets: DevSets, progress: Progress
) -> None:
    """Stream the dev set; keep the head, with dial and timing measured, if it is the best so far."""
    head.eval()
    chunking, policy = frozen.chunking(config.dev_chunk_ms), _policy(config, 0.0)
    vocabulary = Vocabulary(teacher_tokenizer(frozen.model))
    streamed = stream(head, sets.dev, chunking=chunking, policy=policy, vocabulary=vocabulary)
    result = summarize(sets.dev, streamed, vocabulary)
    row = {
        "step": progress.step,
        "chunk_ms": config.dev_chunk_ms,
        "n": len(sets.dev),
        "wer": round(result.edits.wer, 5),
        "mean_ms": round(result.mean_ms, 1),
        "p50_ms": result.p50_ms,
        "p95_ms": result.p95_ms,
    }
    log_row(config.output / "dev.csv", row)
    tqdm.write(
        f"step {progress.step}: dev WER {100 * result.edits.wer:.2f} % at {config.dev_chunk_ms} ms chunks, "
        f"lookahead {result.mean_ms:.0f} ms (p95 {result.p95_ms:.0f} ms)"
    )
    if result.edits.wer < progress.best_wer:
        progress.best_wer = result.edits.wer
        timed = stream(head, sets.timed, chunking=chunking, policy=policy, vocabulary=vocabulary)
        lead_ms, lag_ms = measure_timing(sets.timed, timed, vocabulary)
        card = _card(config, frozen, head, progress, result)
        dial = [] if config.fixed_look else measure_dial(head, sets.dev).to_json()
        measured = {"dial": dial, "lead_ms": round(lead_ms, 1), "lag_ms": round(lag_ms, 1)}
        save_head(head, config.output / "best", HeadCard(**{**asdict(card), **measured}))


def _card(
    config: HeadTrainConfig,
    frozen: Frozen,
    head: TransducerHead,
    progress: Progress,
    result: HeadResult | None = None,
) -> HeadCard:
    settings = asdict(config.loss) | {
        name: getattr(config, name)
        for name in (
            "fixed_look",
            "learning_rate",
            "temperature_last",
            "hard_share",
            "bias_spread",
            "chunk_ms",
        )
    }
    return HeadCard(
        base_model=config.model,
        base_weights_hash=frozen.base.weights_hash,
        adapter_hash=adapter_hash(frozen.adapter),
        config=head.config.to_json(),
        training={"steps": progress.step, "hours_of_audio_seen": round(progress.hours, 1), **settings},
        results={}
        if result is None
        else {"set": "dev", "wer": round(result.edits.wer, 4), "lookahead_mean_ms": round(result.mean_ms, 1)},
    )


def _save(
    config: HeadTrainConfig,
    frozen: Frozen,
    head: TransducerHead,
    loss_of: HeadLoss,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write head and checkpoint; a cut in between leaves the older checkpoint whole."""
    save_head(head, config.output / "last", _card(config, frozen, head, progress))
    state = {
        "head": head.state_dict(),
        "loss": loss_of.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
    }
    temporary = config.output / "checkpoint.tmp"
    torch.save(state, temporary)
    os.replace(temporary, config.output / "checkpoint.pt")


def _resume(
    config: HeadTrainConfig, head: TransducerHead, loss_of: HeadLoss, optimizer: torch.optim.Optimizer
) -> Progress:
    path = config.output / "checkpoint.pt"
    if not path.exists():
        return Progress()
    state = torch.load(path, map_location=config.device, weights_only=True)
    head.load_state_dict(state["head"])
    loss_of.load_state_dict(state["loss"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])


def parse_config(arguments: Sequence[str] | None = None) -> HeadTrainConfig:
    """The run that a command line describes; every field of the configs is an option."""
    given = parse_settings(
        (DataConfig, HeadLossConfig, HeadTrainConfig),
        description=(__doc__ or "").split("\n")[0],
        required=("manifest", "aligned", "output"),
        skipped=("data", "loss"),
        arguments=arguments,
    )
    return HeadTrainConfig(
        data=DataConfig(**given[DataConfig]),
        loss=HeadLossConfig(**given[HeadLossConfig]),
        **given[HeadTrainConfig],
    )


if __name__ == "__main__":
    train(parse_config())
