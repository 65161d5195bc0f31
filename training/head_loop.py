"""Train a transducer head on a frozen causal encoder: one flat, resumable loop.

Run as ``python -m training.head_loop --manifest M --aligned A --output RUN [...]``; the same command resumes
from the run's last checkpoint.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from asr.chunking import FRAME_MS
from asr.frontier import LookPolicy
from asr.head import HEAD_FRAME_MS, TransducerHead
from asr.head_files import HeadCard, adapter_hash, save_head
from asr.words import Vocabulary
from training.alignment import teacher_tokenizer
from training.cards import trained_on
from training.config import DataConfig, HeadLossConfig, HeadTrainConfig
from training.head_data import HeadBatch, load_batch
from training.head_evaluation import HeadResult, measure_dial, measure_timing, stream, summarize
from training.head_losses import HeadLoss, HeadLossParts, hard_delays
from training.head_setup import DevSets, Frozen, dataset, dev_sets, feature_maker, new_head, store
from training.run_log import RunLog
from training.runs import Loaded, Position, load_batches, parse_settings, warm_cosine
from training.speech import read_speech
from training.workers import Workers


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    hours: float = 0.0  # audio seen
    best_wer: float = math.inf


def train(config: HeadTrainConfig) -> None:
    """Train to ``config.steps``, from the run's last checkpoint if there is one.

    Args:
        config: The run. ``config.output`` receives ``checkpoint.pt``, ``log.csv``, ``lookahead.csv`` (how far
            frames look), ``dev.csv``, and the head folders ``last`` and ``best`` (the lowest streaming WER on
            the dev manifest, once gates are hard).
    """
    run = _Run.begin(config)
    steps, progress = config.steps, run.progress
    with tqdm(
        total=steps, initial=progress.step, unit="step", disable=not run.workers.is_main or None
    ) as bar:
        while progress.step < steps:
            batch, parts = run.step()
            bar.set_postfix(loss=parts.transducer.item(), delay_s=parts.delay_s.item(), refresh=False)
            bar.update()
            run.watch(batch)
    run.log.close()


@dataclass
class _Run:
    """What a run works with."""

    config: HeadTrainConfig
    workers: Workers
    frozen: Frozen
    head: TransducerHead
    loss_of: HeadLoss
    optimizer: torch.optim.Optimizer
    progress: Progress
    sets: DevSets
    batches: Iterator[Loaded[HeadBatch]]
    log: RunLog

    @classmethod
    def begin(cls, config: HeadTrainConfig) -> _Run:
        """Load everything, and go back to where the run was."""
        workers = Workers(device=config.device, precision=config.precision)
        config.output.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        frozen = Frozen.load(config.model, config.adapter, workers.device)
        head = new_head(config, frozen).to(workers.device)
        loss_of = HeadLoss(head, config.loss).to(workers.device)
        optimizer = workers.prepare(_optimizer(config, head, loss_of))
        log = RunLog(config.output, tensorboard=config.tensorboard, is_writer=workers.is_main)
        progress = _resume(config, head, loss_of, optimizer)
        speech = read_speech(config.data, with_text=True)
        maker = feature_maker(config, frozen)
        sets = dev_sets(config, frozen, maker, speech)
        data = dataset(config, frozen, speech)
        batches = load_batches(
            data,
            Position(progress.epoch, progress.batch),
            load_batch(maker, store(config, frozen), data.load),
            drawn_epochs=config.drawn_epochs,
            rank=workers.rank,
            n_ranks=workers.n_ranks,
        )
        return cls(config, workers, frozen, head, loss_of, optimizer, progress, sets, batches, log)

    def step(self) -> tuple[HeadBatch, HeadLossParts]:
        """Learn from the next batch, and log what it showed."""
        config, workers, progress = self.config, self.workers, self.progress
        started = time.monotonic()
        rng = np.random.default_rng([config.seed, progress.step])
        torch.manual_seed(int(rng.integers(2**31)) + workers.rank)
        loaded = next(self.batches)
        batch = loaded.content.to(workers.device)
        waited = time.monotonic() - started
        temperature = _temperature(progress.step, config)
        parts = self.loss_of(
            self.head.train(),
            batch,
            temperature=temperature,
            policy=_policy(config, self.head, rng),
            masked_share=config.masked_share,
            penalty_share=_penalty_share(progress.step, config),
        )
        workers.backward(parts.total)
        norm = self._descend()
        progress.step += 1
        progress.epoch, progress.batch = loaded.following.epoch, loaded.following.batch
        progress.hours += workers.sum([batch.seconds / 3600])[0]
        timing = {"seconds": round(time.monotonic() - started, 2), "waited": round(waited, 2)}
        _log_step(self.log, batch, parts, progress, norm=norm, temperature=temperature, **timing)
        return batch, parts

    def _descend(self) -> float:
        """Move the weights along their gradients, whose norm is returned."""
        config, workers = self.config, self.workers
        rate = warm_cosine(self.progress.step, warmup_steps=config.warmup_steps, steps=config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["full_rate"]
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        workers.average_gradients(parameters)
        norm = workers.clip(parameters, config.clip_norm)
        workers.step(self.optimizer, norm)
        return norm.item()

    def watch(self, batch: HeadBatch) -> None:
        """Log delays, evaluate and save, each in its turn."""
        config, step, is_main = self.config, self.progress.step, self.workers.is_main
        is_last = step == config.steps
        if step % config.statistics_every == 0 or is_last:
            _log_delays(config, self.head, batch, self.progress, self.log)
        is_evaluated = bool(self.sets.dev) and (step % config.evaluate_every == 0 or is_last)
        if is_main and (is_evaluated or step % config.checkpoint_every == 0 or is_last):
            _save(config, self.frozen, self.head, self.loss_of, self.optimizer, self.progress)
        if is_main and is_evaluated:
            _evaluate(config, self.frozen, self.head, self.sets, self.progress, self.log)
            _save(config, self.frozen, self.head, self.loss_of, self.optimizer, self.progress)
        self.workers.wait()


def _optimizer(config: HeadTrainConfig, head: TransducerHead, loss_of: HeadLoss) -> torch.optim.Optimizer:
    """AdamW whose schedulers go slower: what to look at must be learned before how far to look."""
    named = [*head.named_parameters(), *loss_of.named_parameters()]
    groups = [
        {"params": [p for name, p in named if (".scheduler." in name) == is_scheduler], "full_rate": rate}
        for is_scheduler, rate in (
            (False, config.learning_rate),
            (True, config.learning_rate * config.scheduler_rate),
        )
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)


def _temperature(step: int, config: HeadTrainConfig) -> float | None:
    """The first one, from the ramp's end geometrically to the last one, then hard."""
    first, last = config.temperature_first, config.temperature_last
    start, end = config.penalty_ramp[1], 1 - config.hard_share
    done = step / config.steps
    if done >= end:
        return None
    return float(first * (last / first) ** (max(0.0, done - start) / max(1e-9, end - start)))


def _penalty_share(step: int, config: HeadTrainConfig) -> float:
    """How much of the regularisers' weights counts.

    Before the head has learned to use the future, a penalty closes every gate, and a closed gate gets no
    gradient that could open it again.
    """
    start, end = (share * config.steps for share in config.penalty_ramp)
    return min(1.0, max(0.0, (step - start) / max(1.0, end - start)))


def _policy(
    config: HeadTrainConfig, head: TransducerHead, rng: np.random.Generator | None = None
) -> LookPolicy:
    """How far a batch's frames look; without a generator, as they will after training."""
    if config.drawn_looks:
        looks = config.drawn_looks
        return LookPolicy(fixed=(int(rng.choice(looks) if rng else np.median(looks)),) * head.config.n_blocks)
    if config.fixed_look:
        return LookPolicy(fixed=config.fixed_look)
    return LookPolicy(float(rng.uniform(-1, 1)) * config.bias_spread if rng else 0.0)


def _log_step(
    log: RunLog,
    batch: HeadBatch,
    parts: HeadLossParts,
    progress: Progress,
    *,
    norm: float,
    temperature: float | None,
    seconds: float,
    waited: float,
) -> None:
    row = {
        "step": progress.step,
        "epoch": progress.epoch,
        "hours": round(progress.hours, 3),
        "chunk_ms": int(batch.chunk_frames[1]) * FRAME_MS,
        "temperature": "hard" if temperature is None else round(temperature, 4),
        "loss": round(parts.total.item(), 4),
        "transducer": round(parts.transducer.item(), 4),
        "ctc": round(parts.ctc.item(), 4),
        "delay_s": round(parts.delay_s.item(), 4),
        "look": round(parts.look.item(), 4),
        "norm": round(norm, 3),
        "seconds": seconds,
        "waited": waited,  # of them, for the batch
    }
    log.write("log", row)


def _log_delays(
    config: HeadTrainConfig, head: TransducerHead, batch: HeadBatch, progress: Progress, log: RunLog
) -> None:
    """Log how far frames would look in streaming: mean, percentiles, looks per block, and a histogram."""
    waits, looks = hard_delays(head.eval(), batch, _policy(config, head))
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
    log.write("lookahead", row)


def _evaluate(
    config: HeadTrainConfig,
    frozen: Frozen,
    head: TransducerHead,
    sets: DevSets,
    progress: Progress,
    log: RunLog,
) -> None:
    """Stream the dev set; keep the head, with dial and timing measured, if it is the best so far.

    Soft gates say little about the delays of hard ones, so an adaptive head counts once its gates are hard.
    """
    head.eval()
    chunking, policy = frozen.chunking(config.dev_chunk_ms), _policy(config, head)
    vocabulary = Vocabulary(teacher_tokenizer(frozen.model))
    read = partial(
        stream, head, chunking=chunking, policy=policy, vocabulary=vocabulary, beam_size=config.dev_beam_size
    )
    result = summarize(sets.dev, read(sets.dev), vocabulary)
    row = {
        "step": progress.step,
        "chunk_ms": config.dev_chunk_ms,
        "n": len(sets.dev),
        "wer": round(result.edits.wer, 5),
        "mean_ms": round(result.mean_ms, 1),
        "p50_ms": result.p50_ms,
        "p95_ms": result.p95_ms,
    }
    log.write("dev", row)
    tqdm.write(
        f"step {progress.step}: dev WER {100 * result.edits.wer:.2f} % at {config.dev_chunk_ms} ms chunks, "
        f"lookahead {result.mean_ms:.0f} ms (p95 {result.p95_ms:.0f} ms)"
    )
    is_fixed = policy.fixed is not None
    is_settled = is_fixed or _temperature(progress.step - 1, config) is None
    if is_settled and result.edits.wer < progress.best_wer:
        progress.best_wer = result.edits.wer
        lead_ms, lag_ms = measure_timing(sets.timed, read(sets.timed), vocabulary)
        card = _card(config, frozen, head, progress, result)
        dial = [] if is_fixed else measure_dial(head, sets.dev).to_json()
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
            "drawn_looks",
            "learning_rate",
            "temperature_last",
            "hard_share",
            "bias_spread",
            "chunk_ms",
        )
    }
    return HeadCard(
        base_model=frozen.base.name,
        base_weights_hash=frozen.base.weights_hash,
        adapter_hash=adapter_hash(frozen.adapter),
        config=head.config.to_json(),
        license=config.license,
        data=trained_on(config.data, with_text=True),
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
