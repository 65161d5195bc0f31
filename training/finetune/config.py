"""What a finetuning run's YAML file may say, and how the command line changes it.

Sections are the frozen dataclasses of :mod:`training.config`, so a key means the same everywhere. Unknown
keys are errors that name the valid ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asr.errors import OptionError
from training.config import (
    AdapterPlan,
    DataConfig,
    HeadLossConfig,
    HeadPlan,
    HeadTrainConfig,
    LossConfig,
    RobustConfig,
    RunConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class FinetunePlan(AdapterPlan):
    """How the adapter is trained; the defaults suit minutes to hours of recordings."""

    start_from: str = "auto"
    steps: int = 300
    warmup_steps: int = 20
    learning_rate: float = 2e-4
    checkpoint_every: int = 25
    evaluate_every: int = 50
    patience: int = 4


@dataclass(frozen=True)
class FinetuneHeadPlan(HeadPlan):
    """How the transducer head is trained; it takes longer than the adapter."""


def _numbers(value: Any) -> Any:
    """A number where YAML 1.1 sees a text, such as 1e-4."""
    return float(value) if isinstance(value, str) and "e" in value.lower() and _is_float(value) else value


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _deep_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _deep_numbers(each) for key, each in value.items()}
    return [_deep_numbers(each) for each in value] if isinstance(value, list) else _numbers(value)


class FinetuneConfig(BaseModel):
    """A finetuning run.

    Attributes:
        output: Folder of the run; the finished model is ``model`` in it.
        model: Base weights: a checkpoint's name or path.
        data: Recordings, word times, augmentation.
        license: Of what is trained, for its card.
        adapter: How the causal adapter is trained; null keeps ``head_adapter``.
        blend: How far the exported adapter lies from the one that training began with (0) to the trained
            one (1); less forgets less.
        loss: Parts of its loss.
        robust: Protection against wrong transcripts.
        head: How a transducer head is trained; null trains none.
        head_loss: Parts of its loss.
        head_adapter: Where no adapter is trained: the one that the head reads, as in ``--adapter``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: Path
    data: DataConfig
    model: str = "tiny.en"
    seed: int = 1
    device: str = "cpu"
    precision: Literal["bf16", "fp16", "no"] = "bf16"
    dev_manifest: Path | None = None
    general_manifest: Path | None = None
    general_tolerance: float = 0.02
    dev_limit: int = 60
    dev_chunk_ms: int = 300
    tensorboard: bool = True
    license: str = ""
    adapter: FinetunePlan | None = FinetunePlan()
    blend: float = Field(default=1.0, gt=0, le=1)
    loss: LossConfig = LossConfig()
    robust: RobustConfig = RobustConfig()
    head: FinetuneHeadPlan | None = None
    head_loss: HeadLossConfig = HeadLossConfig()
    head_adapter: str = "auto"

    def adapter_run(self) -> TrainConfig:
        """The run that trains the adapter."""
        assert self.adapter is not None, "the caller asks only where one is trained"
        plan = asdict(self.adapter)
        return TrainConfig(
            **self._shared(self.output / "adapter"),
            **plan,
            data=self.data,
            loss=self.loss,
            robust=self.robust,
        )

    def head_run(self, adapter: str) -> HeadTrainConfig:
        """The run that trains the head on an adapter's frames.

        Args:
            adapter: ``auto``, ``none`` or a folder.
        """
        assert self.head is not None, "the caller asks only where one is trained"
        return HeadTrainConfig(
            **self._shared(self.output / "head"),
            **asdict(self.head),
            data=self.data,
            loss=self.head_loss,
            adapter=adapter,
        )

    def _shared(self, output: Path) -> dict[str, Any]:
        names = {field.name for field in fields(RunConfig)} - {"output"}
        return {"output": output} | {name: getattr(self, name) for name in names}


def read_config(path: Path | None, settings: Sequence[str] = ()) -> FinetuneConfig:
    """Read a YAML file and what the command line changes in it.

    Args:
        path: The file; relative paths in it start at the working folder. None is an empty one.
        settings: Pairs ``--key.path VALUE``, or ``--key.path=VALUE``; values are YAML.

    Returns:
        The validated configuration.

    Raises:
        OptionError: The file cannot be read, or a key or value is wrong; all of them are named.
    """
    values = _read_yaml(path) if path is not None else {}
    for key, value in parse_settings(settings):
        _set(values, key, value)
    try:
        return FinetuneConfig.model_validate(_deep_numbers(values))
    except ValidationError as error:
        source = "the command line" if path is None else str(path)
        raise OptionError(f"{source}: {'; '.join(_explain(e) for e in error.errors())}") from error


def parse_settings(settings: Sequence[str]) -> list[tuple[str, Any]]:
    """Pairs of a key's path and its value, from a command line.

    Raises:
        OptionError: Something is no ``--key VALUE``.
    """
    pairs = []
    rest = list(settings)
    while rest:
        first = rest.pop(0)
        if not first.startswith("--"):
            raise OptionError(f"expected --key.path VALUE, found {first!r}")
        key, has_value, text = first[2:].partition("=")
        if not has_value:
            if not rest:
                raise OptionError(f"--{key} needs a value")
            text = rest.pop(0)
        try:
            pairs.append((key.replace("-", "_"), yaml.safe_load(text)))
        except yaml.YAMLError as error:
            raise OptionError(f"--{key}: {text!r} is not a YAML value ({error})") from error
    return pairs


def dump_config(config: FinetuneConfig) -> str:
    """All settings as YAML, those that were not given too."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not YAML ({error})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise OptionError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    values[last] = value


def _explain(error: Any) -> str:
    """One of pydantic's errors, with the nearest valid key where a key is unknown."""
    *sections, last = [str(part) for part in error["loc"]]
    key = ".".join([*sections, last])
    if error["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key}: {error['msg']}"
    valid = _keys(sections)
    near = difflib.get_close_matches(last, valid, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(valid)}"
    return f"{key}: unknown key; {hint}"


def _keys(sections: Sequence[str]) -> list[str]:
    """Valid keys of a section."""
    if not sections:
        return sorted(FinetuneConfig.model_fields)
    owners: dict[str, Any] = {
        "data": DataConfig,
        "adapter": FinetunePlan,
        "loss": LossConfig,
        "robust": RobustConfig,
        "head": FinetuneHeadPlan,
        "head_loss": HeadLossConfig,
    }
    owner = owners.get(sections[0])
    return sorted(field.name for field in fields(owner)) if owner else []
