"""What every training run has in common: its command line, its batches, its learning rate and its log."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from asr.errors import ForesoundError
from training.dataset import Item, StreamDataset
from training.manifest import Utterance

_T = TypeVar("_T")


@dataclass(frozen=True)
class Position:
    """A place in a dataset's endless sequence of batches."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Loaded(Generic[_T]):
    """A batch and where it lies."""

    content: _T
    position: Position
    following: Position


def load_batches(
    dataset: StreamDataset,
    start: Position,
    load: Callable[[Sequence[Item], Position], _T],
    *,
    drawn_epochs: int = 0,
    rank: int = 0,
    n_ranks: int = 1,
) -> Iterator[Loaded[_T]]:
    """Endless batches, loaded one ahead in a thread.

    Args:
        dataset: Draws the epochs.
        start: The first batch of all processes.
        load: Makes a batch of its streams, drawn for a place in the data.
        drawn_epochs: How many epochs are drawn before the first comes again; 0 draws every epoch anew.
        rank: This process; it gets the first of each ``n_ranks`` batches after ``rank`` others.
        n_ranks: Processes that share the batches.

    Yields:
        Loaded batches in order; ``following`` is where the next ones of all processes begin.
    """

    def positions() -> Iterator[tuple[Sequence[Item], Position, Position]]:
        epoch, first = start.epoch, start.batch
        while True:
            drawn = epoch % drawn_epochs if drawn_epochs else epoch
            plan = dataset.plan(drawn)
            for i in range(first, len(plan)):
                after = Position(epoch, i + 1) if i + 1 < len(plan) else Position(epoch + 1)
                yield plan[i], Position(drawn, i), after
            epoch, first = epoch + 1, 0

    def mine() -> Iterator[tuple[Sequence[Item], Position, Position]]:
        source = positions()
        while True:
            group = [next(source) for _ in range(n_ranks)]
            items, position, _ = group[rank]
            yield items, position, group[-1][2]

    with ThreadPoolExecutor(max_workers=1) as pool:
        source = mine()
        items, position, following = next(source)
        pending = pool.submit(load, items, position)
        while True:
            loaded = Loaded(pending.result(), position, following)
            items, position, following = next(source)
            pending = pool.submit(load, items, position)
            yield loaded


def warm_cosine(step: int, *, warmup_steps: int, steps: int) -> float:
    """Linear warm-up to 1, then a cosine down to one percent."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def exit_code(work: Callable[[], None]) -> int:
    """Do a small command's work: 0, or 1 once its error has been shown."""
    try:
        work()
    except ForesoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def every_nth(utterances: list[Utterance], limit: int) -> list[Utterance]:
    """At most ``limit`` utterances, spread evenly."""
    return utterances[:: max(1, -(-len(utterances) // limit))]


def parse_settings(
    owners: Sequence[type],
    *,
    description: str,
    required: Sequence[str],
    skipped: Sequence[str] = (),
    arguments: Sequence[str] | None = None,
) -> dict[type, dict[str, Any]]:
    """Settings of some dataclasses from a command line and, below it, a JSON file.

    Args:
        owners: The dataclasses; every field of theirs is an option.
        description: First line of the help text.
        required: Fields without which there is no run.
        skipped: Fields that are built from others.
        arguments: The command line; None is this process's.

    Returns:
        The given values by dataclass.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, help="JSON object with any of the options below")
    known = {field.name: owner for owner in owners for field in fields(owner) if field.name not in skipped}
    for name, owner in known.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{owner.__name__}.{name}")
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    if "config" in given:
        given = {**json.loads(given.pop("config").read_text()), **given}
    unknown = sorted(set(given) - set(known))
    if unknown:
        parser.error(f"unknown settings {', '.join(unknown)}; choose from {', '.join(sorted(known))}")
    missing = [f"--{name}" for name in required if name not in given]
    if missing:
        parser.error(f"{', '.join(missing)} must be given")
    return {
        owner: {name: _convert(owner, name, value) for name, value in given.items() if known[name] is owner}
        for owner in owners
    }


def _convert(owner: type, name: str, value: Any) -> Any:
    kind = str(next(field.type for field in fields(owner) if field.name == name))
    if kind.startswith("tuple"):
        of = int if "int" in kind else float if "float" in kind else str
        return tuple(of(x) for x in (value.split(",") if isinstance(value, str) else value))
    if "Path" in kind:
        return Path(value)
    if kind == "bool":
        if str(value).lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, not {value!r}")
        return str(value).lower() == "true"
    return {"int": int, "float": float}.get(kind, str)(value)
