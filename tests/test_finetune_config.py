"""A finetuning run's settings: typed, every key on the command line, unknown keys refused with a hint."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from asr.errors import OptionError
from training.config import HeadTrainConfig, TrainConfig
from training.finetune.config import FinetuneConfig, dump_config, read_config
from training.finetune.run import main

FIRST = """
output: run
data: {manifest: train.jsonl, aligned: aligned.jsonl, speeds: [1.0, 1.1]}
adapter: {steps: 7, learning_rate: 1e-4, modules: [query, value]}
head: {n_blocks: 2}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(FIRST)
    return path


def test_a_file_is_read_and_the_command_line_wins(config: Path) -> None:
    """Nested keys with dashes or underscores, as two arguments or with an equals sign."""
    given = read_config(config, ["--adapter.steps", "9", "--robust.method=none", "--data.noise-share", "0.1"])
    assert given.adapter is not None
    assert (given.adapter.steps, given.robust.method, given.data.noise_share) == (9, "none", 0.1)
    assert given.adapter.learning_rate == 1e-4  # a text to YAML 1.1
    assert given.adapter.modules == ("query", "value")
    assert given.data.speeds == (1.0, 1.1)
    assert read_config(config, ["--head", "null"]).head is None
    assert (
        read_config(None, ["--output", "o", "--data.manifest", "m", "--data.aligned", "a"]).model == "tiny.en"
    )


def test_runs_get_every_setting(config: Path) -> None:
    """What the adapter's and the head's runs know can all be said in the file."""
    given = read_config(
        config, ["--seed", "5", "--general-manifest", "g.jsonl", "--head-loss.ctc-weight", "0"]
    )
    adapter, head = given.adapter_run(), given.head_run("none")
    assert (adapter.steps, adapter.seed, adapter.general_manifest) == (7, 5, Path("g.jsonl"))
    assert (head.n_blocks, head.seed, head.loss.ctc_weight, head.adapter) == (2, 5, 0.0, "none")
    assert adapter.output == Path("run/adapter")
    dumped = yaml.safe_load(dump_config(given))
    for run, section in ((TrainConfig, "adapter"), (HeadTrainConfig, "head")):
        sections = {**dumped[section], **dumped}
        assert {field.name for field in fields(run)} - {"adapter"} <= set(sections)


def test_a_dump_is_a_file_that_reads_the_same(config: Path, tmp_path: Path) -> None:
    """So that a run's settings can be used again."""
    given = read_config(config)
    (tmp_path / "again.yaml").write_text(dump_config(given))
    assert read_config(tmp_path / "again.yaml") == given


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--adapter.setps", "9"], "adapter.setps: unknown key; did you mean steps"),
        (["--colour", "red"], "colour: unknown key; choose from"),
        (["--adapter.steps", "many"], "adapter.steps: .*integer"),
        (["--precision", "int3"], "precision: .*bf16"),
        (["--data.manifest"], "needs a value"),
        (["steps", "9"], "expected --key.path VALUE"),
        (["--seed", "[1"], "not a YAML value"),
    ],
)
def test_wrong_keys_and_values_are_named(config: Path, settings: list[str], message: str) -> None:
    """All in one line, with the key's path."""
    with pytest.raises(OptionError, match=message):
        read_config(config, settings)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    """Missing, not YAML, a list, and one that lacks what a run needs."""
    for content, message in (("[1", "not YAML"), ("- a\n", "expected keys"), ("output: o\n", "data: ")):
        (tmp_path / "c.yaml").write_text(content)
        with pytest.raises(OptionError, match=message):
            read_config(tmp_path / "c.yaml")
    with pytest.raises(OptionError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(OptionError, match="CONFIG.yaml"):
        main(config=None, settings=[], smoke=False, print_config=False)


def test_settings_are_printed_whole(config: Path, capsys: Any) -> None:
    """Defaults included."""
    assert main(config=config, settings=["--adapter.steps", "3"], smoke=False, print_config=True) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["adapter"]["steps"] == 3
    assert set(printed) == set(FinetuneConfig.model_fields)
