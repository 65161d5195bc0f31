"""A finetuning run: refused early, resumed exactly, guarded against forgetting, shared, exported."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from asr.errors import ForesoundError, OptionError
from asr.recognizer import Recognizer
from clients import cli
from tests.corpus import write_corpus
from training import adapter_run, dev_sets, loop
from training.finetune.config import FinetuneConfig, read_config
from training.finetune.run import finetune
from training.manifest import ManifestError
from training.metrics import WerResult

ROOT = Path(__file__).parents[1]
HEAD = "{steps: 2, warmup_steps: 1, n_tokens: 300, width: 32, n_blocks: 2, n_head: 2, max_look: 3,"
HEAD += " left_context: 12, embedding_width: 16, joint_width: 24, hard_share: 0.5, evaluate_every: 2}"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


def _config(corpus: Path, output: str, *settings: str) -> FinetuneConfig:
    given = [
        *("--output", str(corpus / output), "--model", str(corpus / "w.pt"), "--tensorboard", "false"),
        *("--data.manifest", str(corpus / "m.jsonl"), "--data.aligned", str(corpus / "a.jsonl")),
        *("--data.batch-s", "4", "--data.joined-max-s", "3"),
        *("--adapter", "{start_from: none, encoder_rank: 2, decoder_rank: 2, steps: 3, evaluate_every: 1}"),
        *(
            "--adapter.chunk-ms",
            "[80, 300]",
            "--adapter.checkpoint-every",
            "1",
            "--adapter.warmup-steps",
            "1",
        ),
    ]
    return read_config(None, [*given, *settings])


def _column(path: Path, name: str) -> list[str]:
    with path.open() as file:
        return [row[name] for row in csv.DictReader(file)]


def _weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "adapter" / "adapter_model.safetensors")


def _without_text(corpus: Path, *lines: int) -> Path:
    rows = [json.loads(line) for line in (corpus / "m.jsonl").read_text().splitlines()]
    for line in lines:
        rows[line]["text"] = None
    path = corpus / "dev.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_adapter_and_head_become_one_folder_for_model(corpus: Path, capsys: Any) -> None:
    """The folder streams with both decoders; with the adapter off it is the original, bit for bit."""
    config = _config(corpus, "run", "--head", HEAD, "--dev-manifest", str(corpus / "m.jsonl"))
    config = config.model_copy(update={"dev_limit": 2, "tensorboard": True})
    folder = finetune(config)
    recognizer = Recognizer.load(folder)
    assert recognizer.name == "model"
    assert recognizer.decoders == ("whisper", "transducer")
    original = torch.load(corpus / "w.pt", weights_only=True)["model_state_dict"]
    kept = recognizer.base_model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in original.items())
    changed = recognizer.streaming_model.state_dict()
    assert any(not torch.equal(changed[name], original[name]) for name in original if "blocks.0" in name)
    for decoder in recognizer.decoders:
        stream = recognizer.stream(decoder=decoder)
        stream.feed(np.zeros(16_000, np.float32))
        stream.finish()
    bare = Recognizer.load(folder, adapter="none")
    assert bare.decoders == ("whisper",)
    assert torch.equal(
        bare.streaming_model.state_dict()["encoder.conv1.weight"], kept["encoder.conv1.weight"]
    )
    card = json.loads((folder / "adapter" / "card.json").read_text())
    assert card["training"]["steps"] >= 1
    assert [line.partition(",")[0] for line in card["data"]] == ["m"]
    assert json.loads((folder / "head" / "card.json").read_text())["data"] == card["data"]
    assert list((corpus / "run" / "adapter" / "tensorboard").iterdir())
    assert read_config(folder / "finetune.yaml") == config
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["head"] is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--adapter.chunk-ms", "[80, 30]"], "chunk_ms"),
        (["--adapter.chunk-weights", "[1]"], "chunk_weights"),
        (["--adapter.modules", "[keys]"], "modules"),
        (["--adapter.start-from", "auto"], "no adapter ships"),
        (["--device", "cuda"], "no GPU"),
        (["--precision", "fp16"], "needs a GPU"),
        (["--robust.method", "hope"], "robust.method"),
        (["--adapter", "null"], "nothing is left to train"),
        (["--blend", "0.5"], "blend below 1"),
        (["--blend", "0"], "blend: .*greater than 0"),
        (["--dev-manifest", "nothing.jsonl"], "nothing.jsonl"),
        (["--adapter.encoder-rank", "0", "--adapter.decoder-rank", "0"], "rank"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], message: str
) -> None:
    """Nothing is trained for nothing."""
    if "cuda" in settings and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(loop, "load_batches", _unreachable)
    with pytest.raises(ForesoundError, match=message):
        finetune(_config(corpus, "run", *settings))


def _unreachable(*_: object, **__: object) -> None:
    raise AssertionError("training has begun")


def test_dev_lines_without_text_or_audio_are_left_out_and_counted(corpus: Path) -> None:
    """Said when the run begins; a set with nothing else is refused."""
    dev = _without_text(corpus, 1, 3)
    (corpus / "s-c-0004.wav").write_bytes(b"broken")
    with pytest.warns(UserWarning) as warned:
        found = dev_sets.load_dev_set("dev", dev, limit=60)
    assert [utterance.line for utterance in found.utterances] == [1, 3, 6]
    messages = [str(warning.message) for warning in warned]
    assert any("2 lines without text" in message for message in messages)
    assert any("dev.jsonl:5" in message for message in messages)
    with pytest.raises(ManifestError, match="no line has a text"):
        dev_sets.load_dev_set("dev", _without_text(corpus, 0, 1, 2, 3, 4, 5), limit=60)


def test_an_evaluation_that_fails_loses_nothing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is written first."""

    def fail(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(loop, "evaluate", fail)
    config = _config(
        corpus, "run", "--dev-manifest", str(corpus / "m.jsonl"), "--adapter.evaluate-every", "9"
    )
    with pytest.raises(RuntimeError, match="no room"):
        finetune(config)
    state = torch.load(corpus / "run" / "adapter" / "checkpoint.pt", weights_only=True)
    assert state["progress"]["step"] == 3
    assert (corpus / "run" / "adapter" / "last" / "adapter_model.safetensors").is_file()


def _scripted(monkeypatch: pytest.MonkeyPatch, scores: dict[str, list[float]]) -> None:
    """Dev sets whose word error rates are given beforehand."""

    def wer(self: dev_sets.DevSet, recognizer: object, **_: object) -> WerResult:
        return WerResult(n_words=1000, substitutions=round(1000 * scores[self.name].pop(0)))

    monkeypatch.setattr(dev_sets.DevSet, "wer", wer)


def test_what_forgets_is_not_the_best(corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A lower error on the domain does not count if the general one has risen by more than is tolerated."""
    finetune(_config(corpus, "first", "--adapter.steps", "1"))
    start = corpus / "first" / "adapter" / "last"
    _scripted(monkeypatch, {"dev": [0.5, 0.4, 0.2, 0.3], "general": [0.1, 0.101, 0.2, 0.102]})
    sets = ("--dev-manifest", str(corpus / "m.jsonl"), "--general-manifest", str(corpus / "m.jsonl"))
    folder = finetune(_config(corpus, "run", *sets, "--adapter.start-from", str(start)))
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (numbers["dev_wer_before"], numbers["dev_wer"], numbers["best_step"]) == (0.5, 0.3, 3)
    assert (numbers["general_wer_before"], numbers["general_wer"]) == (0.1, 0.102)
    exported, last = (
        load_file(path / "adapter_model.safetensors")
        for path in (folder / "adapter", corpus / "run" / "adapter" / "last")
    )
    assert all(torch.equal(exported[name], last[name]) for name in last)


def test_a_run_that_only_gets_worse_stops_and_keeps_its_start(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Patience ends it; what is exported is the adapter that training began with."""
    finetune(_config(corpus, "first", "--adapter.steps", "1"))
    start = corpus / "first" / "adapter" / "last"
    _scripted(monkeypatch, {"dev": [0.3, 0.4, 0.4, 0.4, 0.4, 0.4]})
    settings = ("--adapter.start-from", str(start), "--adapter.steps", "5", "--adapter.patience", "2")
    folder = finetune(_config(corpus, "run", "--dev-manifest", str(corpus / "m.jsonl"), *settings))
    assert _column(corpus / "run" / "adapter" / "log.csv", "step") == ["1", "2"]
    before, kept = (load_file(path / "adapter_model.safetensors") for path in (start, folder / "adapter"))
    assert all(torch.equal(before[name], kept[name]) for name in before)


def test_a_resumed_run_sees_what_it_would_have_seen(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams, chunk sizes, probes and beliefs go on bit by bit where the run was cut."""
    seen: dict[str, list[Any]] = {"whole": [], "cut": []}
    real = adapter_run.StreamLoss.__call__

    def watch(name: str, limit: int) -> None:
        def call(self: Any, examples: Any, *, chunking: Any, rng: Any, weights: Any) -> Any:
            if len(seen[name]) == limit:
                raise KeyboardInterrupt
            audio = [example.noisy.tobytes() for example in examples]
            seen[name].append((audio, chunking, rng.bit_generator.state, [w.tolist() for w in weights]))
            return real(self, examples, chunking=chunking, rng=rng, weights=weights)

        monkeypatch.setattr(adapter_run.StreamLoss, "__call__", call)

    watch("whole", 99)
    finetune(_config(corpus, "whole"))
    watch("cut", 2)
    with pytest.raises(KeyboardInterrupt):
        finetune(_config(corpus, "cut"))
    watch("cut", 99)
    finetune(_config(corpus, "cut"))
    assert len(seen["whole"]) == 3
    for one, other in zip(seen["whole"], seen["cut"], strict=True):
        assert one[:3] == other[:3]
        for mine, theirs in zip(one[3], other[3], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)


def test_part_of_the_way_is_exported(corpus: Path) -> None:
    """A finished run is exported anew, half way back to what it began with."""
    first = finetune(_config(corpus, "first", "--adapter.steps", "1"))
    settings = ("--adapter.start-from", str(first / "adapter"), "--adapter.learning-rate", "0.01")
    start = _weights(first)
    trained = _weights(finetune(_config(corpus, "run", *settings)))
    half = _weights(finetune(_config(corpus, "run", *settings, "--blend", "0.5")))
    assert any(not torch.equal(start[name], trained[name]) for name in start)
    for name, value in half.items():
        middle = (start[name].float() + trained[name].float()) / 2
        assert torch.allclose(value.float(), middle, atol=1e-3)
    Recognizer.load(corpus / "run" / "model")


def test_another_run_is_not_gone_on_with(corpus: Path) -> None:
    """A folder with other data or another seed is left alone."""
    finetune(_config(corpus, "run", "--adapter.steps", "1"))
    with pytest.raises(OptionError, match="another seed"):
        finetune(_config(corpus, "run", "--seed", "2"))


def test_gradient_checkpointing_changes_nothing_but_memory(corpus: Path) -> None:
    """The same losses."""
    for name in ("plain", "saving"):
        finetune(_config(corpus, name, "--adapter.gradient-checkpointing", str(name == "saving")))
    plain, saving = (_column(corpus / name / "adapter" / "log.csv", "loss") for name in ("plain", "saving"))
    assert [float(x) for x in plain] == pytest.approx([float(x) for x in saving], rel=2e-3)


def test_layers_are_chosen(corpus: Path) -> None:
    """Modules and a rank of 0."""
    folder = finetune(
        _config(corpus, "run", "--adapter.modules", "[query, mlp]", "--adapter.decoder-rank", "0")
    )
    names = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert names
    assert all("encoder" in name and ("query" in name or "mlp" in name) for name in names)
    assert Recognizer.load(folder).decoders == ("whisper",)


@pytest.mark.slow
def test_two_processes_share_the_batches(corpus: Path) -> None:
    """torchrun with two CPU processes: the adapter is that of one process with both batches in each step."""
    # Every frame visible and every stream taught: nothing is left that two processes would draw differently.
    both = {"robust": {"method": "none"}, "loss": {"full_share": 1.0, "teacher_share": 1.0}}
    alone = _config(corpus, "alone", "--adapter.accumulate", "2", *_flat(both))
    finetune(alone)
    shared = _config(corpus, "shared", *_flat(both), "--dev-manifest", str(corpus / "m.jsonl"))
    path = corpus / "shared.yaml"
    path.write_text(json.dumps(shared.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "clients.cli", "finetune", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("use it with --model") == 1
    assert _column(corpus / "shared" / "adapter" / "log.csv", "step") == ["1", "2", "3"]
    hours = [_column(corpus / name / "adapter" / "log.csv", "hours")[-1] for name in ("alone", "shared")]
    assert hours[0] == hours[1]
    one, two = (
        load_file(corpus / name / "adapter" / "last" / "adapter_model.safetensors")
        for name in ("alone", "shared")
    )
    joined = [
        torch.cat([each[name].float().flatten() for name in sorted(each) if "lora_B" in name])
        for each in (one, two)
    ]
    assert joined[0].abs().max() > 1e-4
    assert torch.cosine_similarity(*joined, dim=0) > 0.98


def _flat(values: dict[str, Any]) -> list[str]:
    return [text for key, value in values.items() for text in _pairs(key, value)]


def _pairs(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner, each in value.items() for text in _pairs(f"{key}.{inner}", each)]
    return [f"--{key}", json.dumps(value)]


@pytest.mark.slow
def test_the_whole_chain_runs_on_noise(capsys: Any) -> None:
    """``foresound finetune --smoke`` goes from a folder to an evaluated model with both decoders."""
    pytest.importorskip("matplotlib")
    assert cli.main(["finetune", "--smoke"]) == 0
    printed = capsys.readouterr().out
    for step in ("check", "align", "finetune", "stream", "evaluate"):
        assert f"--- {step}:" in printed
    assert "transducer: " in printed
