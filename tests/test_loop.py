"""The training loop resumes exactly, and its command line reaches every setting."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.corpus import write_corpus
from training.config import TrainConfig
from training.loop import parse_config, train


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


def _config(corpus: Path, output: str, steps: int) -> TrainConfig:
    arguments = (
        f"--manifest {corpus}/m.jsonl --aligned {corpus}/a.jsonl --model {corpus}/w.pt --encoder-rank 2"
    )
    arguments += (
        f" --decoder-rank 2 --output {corpus}/{output} --steps {steps} --batch-s 4 --checkpoint-every 1"
    )
    config = parse_config([*arguments.split(), "--chunk-ms", "80,300", "--joined-max-s", "3"])
    return dataclasses.replace(config, warmup_steps=2)


def _losses(folder: Path) -> list[float]:
    with (folder / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_resumed_run_equals_uninterrupted_run(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was cut goes on with the same data, optimiser and rates, to the same adapter."""
    whole, cut = _config(corpus, "whole", 4), _config(corpus, "cut", 4)
    train(whole)
    monkeypatch.setattr("training.run_log.log_row", _stop_after(2))
    with pytest.raises(KeyboardInterrupt):
        train(cut)
    monkeypatch.undo()
    train(cut)
    assert _losses(corpus / "cut")[-2:] == pytest.approx(_losses(corpus / "whole")[-2:], rel=1e-3)
    a, b = (load_file(corpus / name / "last" / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.allclose(a[name], b[name], atol=1e-3) for name in a)
    assert any(tensor.abs().max() > 0 for name, tensor in a.items() if "lora_B" in name)


def _stop_after(n_steps: int):  # noqa: ANN202
    """A logger that behaves like Ctrl-C in the step after ``n_steps``."""
    seen = []

    def log(path: Path, row: dict[str, object]) -> None:
        seen.append(row)
        if len(seen) > n_steps:
            raise KeyboardInterrupt

    return log


def test_every_setting_is_an_option(corpus: Path, tmp_path: Path) -> None:
    """A JSON file and the command line set nested settings; the command line wins."""
    (tmp_path / "c.json").write_text(
        json.dumps({"steps": 7, "margin_s": 0.2, "speeds": [1.0, 1.1], "model": "base"})
    )
    config = parse_config(
        f"--config {tmp_path}/c.json --steps 9 --manifest m --aligned a --output o --noise-share 0.1".split()
    )
    assert (config.steps, config.loss.margin_s, config.model) == (9, 0.2, "base")
    assert (config.data.speeds, config.data.noise_share) == ((1.0, 1.1), 0.1)


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    """A misspelt key is an error that names it."""
    (tmp_path / "c.json").write_text(json.dumps({"setps": 7}))
    with pytest.raises(SystemExit):
        parse_config(f"--config {tmp_path}/c.json --manifest m --aligned a --output o".split())
