"""The work of ``foresound finetune``: adapter, head, export."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from asr.adapters import shipped_adapter
from asr.errors import OptionError
from training import head_loop, loop
from training.adapter_run import Progress
from training.average import average
from training.config import TrainConfig
from training.finetune.config import FinetuneConfig, dump_config, read_config
from training.finetune.export import export
from training.workers import Workers


def main(*, config: Path | None, settings: Sequence[str], smoke: bool, print_config: bool) -> int:
    """Run the subcommand.

    Args:
        config: The YAML file.
        settings: What the command line changes in it.
        smoke: Run the whole chain in a few small steps.
        print_config: Print the settings only.

    Returns:
        The exit code.

    Raises:
        ForesoundError: The configuration, the data or the model cannot be used.
    """
    if smoke:
        from training.finetune.smoke import run_smoke

        return run_smoke(read_config(config, settings) if config or settings else None)
    if config is None and not settings:
        raise OptionError("give a CONFIG.yaml, or --smoke; docs/finetune.md shows a first one")
    given = read_config(config, settings)
    if print_config:
        print(dump_config(given), end="")
        return 0
    finetune(given)
    return 0


def finetune(config: FinetuneConfig) -> Path:
    """Train what a configuration asks for, and export it.

    Args:
        config: The run.

    Returns:
        The model folder.

    Raises:
        ForesoundError: Something cannot be used.
    """
    if config.adapter is None and config.head is None:
        raise OptionError("adapter and head are both null: nothing is left to train")
    if config.blend < 1 and config.adapter is not None and config.adapter.start_from == "none":
        raise OptionError("blend below 1 needs an adapter to begin with: set adapter.start_from")
    workers = Workers(device=config.device, precision=config.precision)
    write_settings(config, workers)
    summary: dict[str, object] = {}
    adapter = _given_adapter(config)
    if config.adapter is not None:
        run = config.adapter_run()
        progress = loop.train(run)
        adapter = _blended(config, run, _chosen(run, progress), workers)
        summary |= _summary(progress)
    head: Path | None = None
    if config.head is not None:
        head_run = config.head_run("none" if adapter is None else str(adapter))
        head_loop.train(head_run)
        head = next(f for f in (head_run.output / "best", head_run.output / "last") if f.is_dir())
    folder = config.output / "model"
    if workers.is_main:
        export(config, adapter=adapter, head=head)
        print(f"use it with --model {folder}")
        print(json.dumps({"model": str(folder), "head": head is not None, **summary}))
    workers.wait()
    return folder


def write_settings(config: FinetuneConfig, workers: Workers) -> None:
    """Keep a run's settings beside it, and refuse to go on with a run of other weights or data.

    Raises:
        OptionError: The folder holds a run whose order of data or weights differs.
    """
    path = config.output / "settings.yaml"
    if path.is_file():
        before = read_config(path)
        for key in ("model", "seed", "data"):
            if getattr(before, key) != getattr(config, key):
                raise OptionError(
                    f"{config.output}: holds a run with another {key}; choose another output, or remove it"
                )
    workers.wait()
    if workers.is_main:
        config.output.mkdir(parents=True, exist_ok=True)
        path.write_text(dump_config(config), encoding="utf-8")


def _given_adapter(config: FinetuneConfig) -> Path | None:
    """The adapter that a head alone is trained on."""
    if config.head_adapter == "none":
        return None
    return shipped_adapter(config.model) if config.head_adapter == "auto" else Path(config.head_adapter)


def _chosen(run: TrainConfig, progress: Progress) -> Path:
    """The best adapter where a dev set was judged by, else the last."""
    is_judged = run.dev_manifest is not None or run.general_manifest is not None
    if is_judged and progress.best_step >= 0:
        return run.output / "best"
    return run.output / "last"


def _blended(config: FinetuneConfig, run: TrainConfig, trained: Path, workers: Workers) -> Path:
    """The trained adapter, or what lies between it and the one that training began with."""
    if config.blend == 1:
        return trained
    start = shipped_adapter(config.model) if run.start_from == "auto" else Path(run.start_from)
    assert start is not None, "a run from auto has begun with the shipped adapter"
    folder = run.output / "blended"
    if workers.is_main:
        average([start, trained], folder, weights=[1 - config.blend, config.blend])
    workers.wait()
    return folder


def _summary(progress: Progress) -> dict[str, object]:
    numbers = {
        "steps": progress.step,
        "best_step": progress.best_step,
        "hours_of_audio_seen": round(progress.hours, 3),
        "dev_wer_before": progress.first_wer,
        "dev_wer": progress.best_wer,
        "general_wer_before": progress.first_general_wer,
        "general_wer": progress.best_general_wer,
    }
    return {name: round(value, 5) if math.isfinite(value) else None for name, value in numbers.items()}
