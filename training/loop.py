"""Finetune Whisper into a chunk-causal recogniser: one flat, resumable loop.

``foresound finetune`` runs it as a YAML file says; ``python -m training.loop --manifest M --aligned A
--output RUN [...]`` runs it alone. The same command resumes from the run's last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from asr.chunking import FRAME_MS, Chunking
from asr.events import SAMPLE_RATE
from training.adapter_run import AdapterRun, Progress, evaluate, prepare, resume, save
from training.config import DataConfig, LossConfig, RobustConfig, TrainConfig
from training.dataset import Example
from training.robust import observations
from training.runs import Loaded, Position, load_batches, parse_settings, warm_cosine


def train(config: TrainConfig) -> Progress:
    """Train to ``config.steps``, from the run's last checkpoint if there is one.

    Args:
        config: The run. ``config.output`` receives ``checkpoint.pt``, ``log.csv``, ``dev.csv``, and the
            adapter folders ``last`` and ``best`` (the lowest streaming WER on the dev manifest among those
            whose WER on the general one has not risen too much; where training starts from an adapter, that
            one is the first candidate).

    Returns:
        Where the run ended.

    Raises:
        ForesoundError: Something that the run needs cannot be used; said before the first step.
    """
    run = prepare(config)
    workers = run.workers
    progress = resume(run)
    batches = load_batches(
        run.dataset,
        Position(progress.epoch, progress.batch),
        lambda items, _: [run.dataset.load(item) for item in items],
        rank=workers.rank,
        n_ranks=workers.n_ranks,
    )
    bar = tqdm(total=config.steps, initial=progress.step, unit="step", disable=not workers.is_main or None)
    if progress.step == 0 and config.start_from != "none":
        evaluate(run, progress)
    while progress.step < config.steps and not _is_stale(config, progress):
        row = _step(run, progress, batches)
        run.log.write("log", row)
        bar.set_postfix(loss=row["loss"], token=row["token"], feature=row["feature"], refresh=False)
        bar.update()
        finished = progress.step == config.steps
        is_evaluated = progress.step % config.evaluate_every == 0 or finished
        if progress.step % config.checkpoint_every == 0 or is_evaluated:
            save(run, progress)
        if is_evaluated and run.dev_sets:
            evaluate(run, progress)
            save(run, progress)
    bar.close()
    run.log.close()
    _write_doubtful(run)
    return progress


def _step(run: AdapterRun, progress: Progress, batches: Iterator[Loaded[list[Example]]]) -> dict[str, Any]:
    """One step of the optimiser, on the next batches; returns its row of the log."""
    config, workers, started = run.config, run.workers, time.monotonic()
    rng = np.random.default_rng([config.seed, progress.step])
    chunking = _draw_chunking(config, rng)
    seen, counted, hours = [], [], 0.0
    for _ in range(config.accumulate):
        loaded = next(batches)
        examples = loaded.content
        weights = [run.beliefs.weights(example) for example in examples]
        parts = run.loss(examples, chunking=chunking, rng=rng, weights=weights)
        workers.backward(parts.total / config.accumulate)
        seen += observations(examples, parts.probabilities)
        counted += weights
        hours += sum(len(example.clean) for example in examples) / SAMPLE_RATE / 3600
    run.beliefs.observe(workers.gather(seen))
    rate = config.learning_rate * warm_cosine(
        progress.step, warmup_steps=config.warmup_steps, steps=config.steps
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    workers.average_gradients(run.parameters)
    norm = workers.clip(run.parameters, config.clip_norm)
    workers.step(run.optimizer, norm)
    progress.step += 1
    progress.epoch, progress.batch = loaded.following.epoch, loaded.following.batch
    progress.hours += workers.sum([hours])[0]
    return {
        "step": progress.step,
        "epoch": progress.epoch,
        "hours": round(progress.hours, 3),
        "chunk_ms": chunking.size * FRAME_MS,
        "loss": round(parts.total.item(), 4),
        "token": round(parts.token.item(), 4),
        "teacher": round(parts.teacher.item(), 4),
        "feature": round(parts.feature.item(), 4),
        "norm": round(norm.item(), 3),
        "rate": round(rate, 8),
        "counted": round(float(np.concatenate(counted).mean()), 4),  # mean weight of a token
        "seconds": round(time.monotonic() - started, 2),
    }


def _is_stale(config: TrainConfig, progress: Progress) -> bool:
    """Whether nothing has become better for too long."""
    return config.patience > 0 and progress.n_stale >= config.patience


def _draw_chunking(config: TrainConfig, rng: np.random.Generator) -> Chunking:
    weights = np.array(config.chunk_weights or [1.0] * len(config.chunk_ms))
    size_ms = int(rng.choice(config.chunk_ms, p=weights / weights.sum()))
    return Chunking.from_ms(size_ms, initial=config.initial_chunks, left_context_s=config.left_context_s)


def _write_doubtful(run: AdapterRun) -> None:
    """List the words that count less than half in the end, for people to look at."""
    if not run.workers.is_main or run.config.robust.method == "none":
        return
    rows = ["id\tword\tnumber\tweight\n"]
    for id, index, weight in run.beliefs.find_doubtful():
        rows.append(f"{id}\t{run.dataset.word(id, index)}\t{index}\t{weight:.3f}\n")
    (run.config.output / "doubtful.tsv").write_text("".join(rows), encoding="utf-8")


def parse_config(arguments: Sequence[str] | None = None) -> TrainConfig:
    """The run that a command line describes; every field of the configs is an option."""
    given = parse_settings(
        (DataConfig, LossConfig, TrainConfig),
        description=(__doc__ or "").split("\n")[0],
        required=("manifest", "aligned", "output"),
        skipped=("data", "loss", "robust"),
        arguments=arguments,
    )
    return TrainConfig(
        data=DataConfig(**given[DataConfig]),
        loss=LossConfig(**given[LossConfig]),
        robust=RobustConfig(method="none"),
        **given[TrainConfig],
    )


if __name__ == "__main__":
    train(parse_config())
