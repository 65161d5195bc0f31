"""What a run that trains an adapter consists of: checked before the first step, saved, judged, resumed."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from tqdm import tqdm
from whisper.model import Whisper

from asr.adapters import (
    TARGET_MODULES,
    AdapterCard,
    add_adapter,
    continue_adapter,
    save_adapter,
    shipped_adapter,
)
from asr.checkpoint import Checkpoint, load_checkpoint
from asr.chunking import Chunking
from asr.errors import AdapterError, OptionError
from asr.recognizer import Recognizer
from training.alignment import teacher_tokenizer
from training.cards import trained_on
from training.config import TrainConfig
from training.dataset import StreamDataset
from training.dev_sets import DevSet, load_dev_sets
from training.losses import StreamLoss
from training.manifest import read_manifest
from training.robust import WordBeliefs
from training.run_log import RunLog
from training.speech import read_speech
from training.workers import Workers

_ATTENTION = ("query", "key", "value", "out")


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    hours: float = 0.0  # audio seen
    best_wer: float = math.inf  # on the dev set, of the checkpoint that is kept as best
    best_step: int = -1
    best_general_wer: float = math.nan
    first_wer: float = math.nan  # before the first step
    first_general_wer: float = math.nan
    n_stale: int = 0  # evaluations since the best one


@dataclass(frozen=True)
class AdapterRun:
    """Everything that a run holds."""

    config: TrainConfig
    workers: Workers
    base: Checkpoint
    wrapped: PeftModel
    parameters: list[nn.Parameter]
    optimizer: Any
    dataset: StreamDataset
    beliefs: WordBeliefs
    dev_sets: list[DevSet]
    loss: StreamLoss
    log: RunLog


def prepare(config: TrainConfig) -> AdapterRun:
    """Read and check all that a run needs, so that it does not fail after hours.

    Args:
        config: The run.

    Returns:
        The run, before its first step.

    Raises:
        ForesoundError: Something cannot be used; the text says what.
    """
    workers = Workers(device=config.device, precision=config.precision)
    check_settings(config)
    config.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    dev_sets = load_dev_sets(config)
    speech = read_speech(config.data)
    base = load_checkpoint(config.model, device=workers.device)
    tokenizer = teacher_tokenizer(base.model)
    dataset = StreamDataset(
        config.data,
        utterances=speech.utterances,
        replayed=speech.replayed,
        aligned=speech.aligned,
        noises=read_manifest(config.data.noise_manifest) if config.data.noise_manifest else [],
        tokenizer=tokenizer,
        margin_s=config.loss.margin_s,
        seed=config.seed,
    )
    student = copy.deepcopy(base.model).requires_grad_(False)
    wrapped = _adapter(config, base, student)
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    loss = StreamLoss(
        student,
        base.model,
        eot=tokenizer.eot,
        config=config.loss,
        precision=config.precision,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    log = RunLog(config.output, tensorboard=config.tensorboard, is_writer=workers.is_main)
    beliefs = WordBeliefs(config.robust, speech.aligned)
    prepared = workers.prepare(optimizer)
    return AdapterRun(
        config, workers, base, wrapped, parameters, prepared, dataset, beliefs, dev_sets, loss, log
    )


def check_settings(config: TrainConfig) -> None:
    """Refuse values that would stop a run at some later step.

    Raises:
        OptionError: A value is outside its range.
    """
    for chunk_ms in (*config.chunk_ms, config.dev_chunk_ms):
        Chunking.from_ms(chunk_ms, initial=config.initial_chunks, left_context_s=config.left_context_s)
    if not config.chunk_ms:
        raise OptionError("chunk_ms names no chunk size; give at least one, such as 300")
    if config.chunk_weights and (
        len(config.chunk_weights) != len(config.chunk_ms)
        or min(config.chunk_weights) < 0
        or not sum(config.chunk_weights)
    ):
        raise OptionError(f"chunk_weights must hold {len(config.chunk_ms)} numbers, one per chunk size")
    for name in ("steps", "accumulate", "checkpoint_every", "evaluate_every", "dev_limit"):
        if getattr(config, name) < 1:
            raise OptionError(f"{name} must be at least 1, not {getattr(config, name)}")
    if config.learning_rate <= 0:
        raise OptionError(f"learning_rate must be above 0, not {config.learning_rate}")


def target_modules(config: TrainConfig) -> str:
    """Regular expression of the layers that get LoRA.

    Raises:
        OptionError: A module's name is unknown, or none is left.
    """
    known = (*_ATTENTION, "mlp")
    if unknown := set(config.modules) - set(known):
        raise OptionError(f"modules must be of {', '.join(known)}, not {', '.join(sorted(unknown))}")
    parts = [
        part
        for part, rank in (("encoder", config.encoder_rank), ("decoder", config.decoder_rank))
        if rank > 0
    ]
    layers = [rf"(attn|cross_attn)\.({'|'.join(m for m in config.modules if m in _ATTENTION)})"]
    layers = layers if set(config.modules) & set(_ATTENTION) else []
    layers += [r"mlp\.[02]"] if "mlp" in config.modules else []
    if not layers or not parts:
        raise OptionError("nothing is left to train: give a rank above 0 and at least one module")
    if len(parts) == 2 and set(config.modules) == set(known):
        return TARGET_MODULES
    return rf"({'|'.join(parts)})\.blocks\.\d+\.({'|'.join(layers)})"


def start_folder(start_from: str, base: Checkpoint) -> Path | None:
    """The adapter folder that training begins with, None for fresh layers.

    Raises:
        AdapterError: ``auto``, and none ships for the weights.
    """
    if start_from == "none":
        return None
    if start_from != "auto":
        return Path(start_from)
    folder = shipped_adapter(base.name)
    if folder is None:
        raise AdapterError(f"no adapter ships for {base.name}; set start_from to none or a folder")
    return folder


def _adapter(config: TrainConfig, base: Checkpoint, student: Whisper) -> PeftModel:
    folder = start_folder(config.start_from, base)
    if folder is not None:
        return continue_adapter(student, folder, weights_hash=base.weights_hash)
    return add_adapter(
        student,
        encoder_rank=config.encoder_rank,
        decoder_rank=config.decoder_rank,
        target_modules=target_modules(config),
    )


def evaluate(run: AdapterRun, progress: Progress) -> None:
    """Stream the dev sets; keep the adapter if it is the best so far and has not forgotten too much."""
    if not run.dev_sets:
        return
    config = run.config
    merged = copy.deepcopy(run.wrapped).merge_and_unload().eval()
    recognizer = Recognizer(
        run.base.model,
        merged,
        name=run.base.name,
        initial=config.initial_chunks,
        left_context_s=config.left_context_s,
    )
    wer = {
        each.name: each.wer(recognizer, chunk_ms=config.dev_chunk_ms, workers=run.workers).wer
        for each in run.dev_sets
    }
    row = {"step": progress.step, "chunk_ms": config.dev_chunk_ms}
    run.log.write("dev", row | {f"{name}_wer": round(value, 5) for name, value in wer.items()})
    if progress.step == 0:
        progress.first_wer = wer.get("dev", math.nan)
        progress.first_general_wer = wer.get("general", math.nan)
    judged, general = wer.get("dev", wer.get("general", math.nan)), wer.get("general", math.nan)
    limit = progress.first_general_wer * (1 + config.general_tolerance)
    forgets = general > limit  # False where either is unknown
    is_best = judged < progress.best_wer and not forgets
    progress.n_stale = 0 if is_best else progress.n_stale + 1
    if run.workers.is_main:
        shown = ", ".join(f"{name} WER {100 * value:.2f} %" for name, value in wer.items())
        note = " (best)" if is_best else f" (general WER above {100 * limit:.2f} %)" if forgets else ""
        tqdm.write(f"step {progress.step}: {shown} at {config.dev_chunk_ms} ms{note}")
    if is_best:
        progress.best_wer, progress.best_step = judged, progress.step
        progress.best_general_wer = general
        if run.workers.is_main:
            save_adapter(run.wrapped, config.output / "best", card(run, progress))


def card(run: AdapterRun, progress: Progress) -> AdapterCard:
    """What the adapter says of itself."""
    config = run.config
    names = ("start_from", "learning_rate", "encoder_rank", "decoder_rank", "chunk_ms", "seed")
    settings = {name: getattr(config, name) for name in names}
    results = {
        "dev_wer_before": progress.first_wer,
        "dev_wer": progress.best_wer,
        "general_wer_before": progress.first_general_wer,
        "general_wer": progress.best_general_wer,
    }
    return AdapterCard(
        base_model=run.base.name,
        base_weights_hash=run.base.weights_hash,
        initial_chunks=config.initial_chunks,
        left_context_s=config.left_context_s,
        language=teacher_tokenizer(run.base.model).language,
        license=config.license,
        data=trained_on(config.data),
        training={
            "steps": progress.step,
            "hours_of_audio_seen": round(progress.hours, 2),
            "robust": config.robust.method,
            **settings,
        },
        results={name: round(value, 5) for name, value in results.items() if math.isfinite(value)},
    )


def save(run: AdapterRun, progress: Progress) -> None:
    """Write adapter and checkpoint; a cut in between leaves the older checkpoint whole."""
    if run.workers.is_main:
        output = run.config.output
        save_adapter(run.wrapped, output / "last", card(run, progress))
        state = {
            "adapter": {name: p for name, p in run.wrapped.named_parameters() if p.requires_grad},
            "optimizer": run.optimizer.state_dict(),
            "progress": vars(progress),
            "beliefs": run.beliefs.state(),
        }
        temporary = output / "checkpoint.tmp"
        torch.save(state, temporary)
        os.replace(temporary, output / "checkpoint.pt")
    run.workers.wait()


def resume(run: AdapterRun) -> Progress:
    """Go on from the run's last checkpoint, if there is one.

    Raises:
        OptionError: It is of a run with other layers.
    """
    path = run.config.output / "checkpoint.pt"
    if not path.exists():
        return Progress()
    state = torch.load(path, map_location=run.workers.device, weights_only=True)
    parameters = {name: p for name, p in run.wrapped.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in parameters.items()} != {n: p.shape for n, p in state["adapter"].items()}:
        raise OptionError(f"{path}: from a run with other ranks or modules; choose another output folder")
    with torch.no_grad():
        for name, value in state["adapter"].items():
            parameters[name].copy_(value)
    run.optimizer.load_state_dict(state["optimizer"])
    run.beliefs.load(state.get("beliefs", {}))
    return Progress(**state["progress"])
