"""A head's training run resumes exactly, logs how far frames look, and leaves a head that streams."""

import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asr.checkpoint import load_checkpoint
from asr.errors import OptionError
from asr.head_files import NO_ADAPTER, HeadCard, load_head
from asr.lookahead import INITIAL_LOGIT
from tests.corpus import write_corpus
from training.config import HeadTrainConfig
from training.head_loop import parse_config, train

SIZES = "--n-tokens 300 --width 32 --n-blocks 2 --n-head 2 --max-look 3 --left-context 12"
SIZES += " --embedding-width 16 --joint-width 24"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


def _config(corpus: Path, output: str, steps: int, more: str = "") -> HeadTrainConfig:
    arguments = f"--manifest {corpus}/m.jsonl --aligned {corpus}/a.jsonl --model {corpus}/w.pt {SIZES} "
    arguments += f"--output {corpus}/{output} --steps {steps} --batch-s 4 --joined-max-s 3 --adapter none "
    arguments += f"--checkpoint-every 1 --statistics-every 2 --chunk-ms 80,300 --warmup-steps 2 {more}"
    return parse_config(arguments.split())


def _column(path: Path, name: str) -> list[str]:
    with path.open() as file:
        return [row[name] for row in csv.DictReader(file)]


def _losses(folder: Path) -> list[float]:
    return [float(value) for value in _column(folder / "log.csv", "loss")]


def test_resumed_run_equals_uninterrupted_run(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was cut goes on with the same data, masks, dial and temperature, to the same head."""
    train(_config(corpus, "whole", 4))
    monkeypatch.setattr("training.head_loop._log_delays", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(_config(corpus, "cut", 4))
    monkeypatch.undo()
    train(_config(corpus, "cut", 4))
    # The step that was cut had been logged but not saved, so it is there twice.
    losses = _losses(corpus / "cut")
    assert losses[1] == pytest.approx(losses[2], rel=1e-3)
    assert [*losses[:1], *losses[2:]] == pytest.approx(_losses(corpus / "whole"), rel=1e-3)
    a, b = (load_file(corpus / name / "last" / "head.safetensors") for name in ("whole", "cut"))
    assert all(torch.allclose(a[name], b[name], atol=2e-3) for name in a)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_gates_harden_and_are_logged(corpus: Path) -> None:
    """The temperature falls and ends in hard gates; every frame is in the histogram."""
    more = "--hard-share 0.4 --temperature-first 2 --temperature-last 0.5 --penalty-ramp 0,0"
    train(_config(corpus, "run", 5, more))
    assert _column(corpus / "run" / "log.csv", "temperature") == ["2.0", "1.2599", "0.7937", "hard", "hard"]
    path = corpus / "run" / "lookahead.csv"
    assert _column(path, "step") == ["2", "4", "5"]
    counts = [float(_column(path, f"wait_{wait}_ms")[0]) for wait in range(0, 241, 40)]
    mean_ms = sum(count * wait for count, wait in zip(counts, range(0, 241, 40), strict=True)) / sum(counts)
    assert float(_column(path, "mean_ms")[0]) == pytest.approx(mean_ms, abs=0.1)


def test_the_best_head_is_kept_with_its_dial(corpus: Path) -> None:
    """The dev set is streamed; the head that comes back says what it fits and where its dial stands."""
    more = f"--dev-manifest {corpus}/m.jsonl --evaluate-every 1 --dev-limit 3 --hard-share 0.5"
    train(_config(corpus, "run", 2, more))
    assert len(_column(corpus / "run" / "dev.csv", "wer")) == 2
    weights_hash = load_checkpoint(corpus / "w.pt").weights_hash
    head, card = load_head(corpus / "run" / "best", weights_hash=weights_hash, adapter_hash=NO_ADAPTER)
    dial = card.read_dial()
    assert dial is not None
    assert dial.points[0].mean_ms == 0
    assert head.config.n_blocks == 2
    assert card.training["steps"] == 2, "gates were soft before"
    assert card.results["wer"] >= 0


def test_features_are_shared_between_runs(corpus: Path) -> None:
    """A second run on the same data reads what the first one encoded, and sees the same."""
    more = f"--features {corpus}/features"
    train(_config(corpus, "first", 2, more))
    kept = {path: path.stat().st_mtime_ns for path in (corpus / "features").rglob("*.safetensors")}
    assert len(kept) >= 2
    train(_config(corpus, "second", 2, more + " --latency-weight 1"))
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in kept}.items()
    a, b = (_column(corpus / name / "log.csv", "transducer")[0] for name in ("first", "second"))
    assert float(a) == pytest.approx(float(b), rel=1e-3)


def test_a_head_can_be_trained_further(corpus: Path) -> None:
    """With its own sizes, under another policy; a fixed look has no dial."""
    train(_config(corpus, "first", 2))
    further = _config(corpus, "second", 1, f"--start-from {corpus}/first/last --fixed-look 1,0")
    further = dataclasses.replace(further, width=48, dev_manifest=corpus / "m.jsonl", dev_limit=2)
    train(further)
    card = HeadCard.read(corpus / "second" / "best")
    assert card.config["width"] == 32
    assert card.dial == []
    mean_ms = float(_column(corpus / "second" / "lookahead.csv", "mean_ms")[0])
    assert 35 < mean_ms <= 40


@pytest.mark.slow
def test_the_loss_falls_on_the_real_encoder(corpus: Path, jfk) -> None:  # noqa: ANN001
    """tiny.en with the shipped adapter: a head learns one clip's words within some steps."""
    import json

    import soundfile

    soundfile.write(corpus / "jfk.wav", jfk, 16_000)
    text = "And so my fellow Americans ask not what your country can do for you"
    times = [0.4, 0.9, 1.3, 1.6, 2.2, 3.9, 4.5, 5.9, 6.2, 6.7, 6.9, 7.1, 7.4, 7.8]
    words = [[word, max(0.0, end - 0.3), end, 0.9] for word, end in zip(text.split(), times, strict=True)]
    (corpus / "j.jsonl").write_text(
        json.dumps({"id": "jfk", "audio": "jfk.wav", "duration": 11.0, "text": text, "speaker": "k"}) + "\n"
    )
    (corpus / "ja.jsonl").write_text(json.dumps({"id": "jfk", "text": text, "words": words}) + "\n")
    arguments = f"--manifest {corpus}/j.jsonl --aligned {corpus}/ja.jsonl --output {corpus}/real --steps 25 "
    arguments += "--warmup-steps 5 --learning-rate 2e-3 --noise-only-share 0 --cut-share 0 --speeds 1.0"
    train(parse_config(arguments.split()))
    losses = [float(value) for value in _column(corpus / "real" / "log.csv", "transducer")]
    assert losses[-1] < 0.4 * losses[0]
    assert losses[-1] < 8


def test_the_penalty_sets_in_before_gates_harden(corpus: Path) -> None:
    """Nothing at first, then a ramp at the first temperature, then all of it while the temperature falls."""
    train(_config(corpus, "run", 8, "--latency-weight 10 --penalty-ramp 0.25,0.5 --hard-share 0.25"))
    path = corpus / "run" / "log.csv"
    columns = [map(float, _column(path, name)) for name in ("loss", "transducer", "ctc", "delay_s")]
    shares = [
        (loss - transducer - 0.3 * ctc) / (10 * delay_s)
        for loss, transducer, ctc, delay_s in zip(*columns, strict=True)
    ]
    assert shares == pytest.approx([0, 0, 0, 0.5, 1, 1, 1, 1], abs=0.01)
    temperatures = _column(path, "temperature")
    assert temperatures[:5] == ["1.0"] * 5
    assert temperatures[5:] == ["0.3162", "hard", "hard"]


def test_schedulers_have_a_rate_of_their_own(corpus: Path) -> None:
    """At rate 0 their biases stay as they began, at a high one they move; the rest learns in both runs."""
    for rate in (0, 50):
        train(_config(corpus, f"rate{rate}", 2, f"--scheduler-rate {rate}"))
        weights = load_file(corpus / f"rate{rate}" / "last" / "head.safetensors")
        biases = [value for name, value in weights.items() if name.endswith("scheduler.gates.bias")]
        assert all(bool((value == INITIAL_LOGIT).all()) == (rate == 0) for value in biases)
        assert weights["lookahead.blocks.0.attn_ln.weight"].ne(1).any()


@pytest.mark.parametrize("look", ["1", "0,4", "1,-1"])
def test_impossible_looks_are_refused(corpus: Path, look: str) -> None:
    """The message says how many numbers there are to be, and which."""
    with pytest.raises(OptionError, match="2 numbers from 0 to 3"):
        train(_config(corpus, "run", 1, f"--fixed-look={look}"))


def test_one_run_makes_all_fixed_references(corpus: Path) -> None:
    """Each batch draws how far all frames look; the head has no dial and may look at any of them."""
    train(_config(corpus, "drawn", 6, f"--drawn-looks 0,2 --dev-manifest {corpus}/m.jsonl"))
    looks = [float(value) for value in _column(corpus / "drawn" / "log.csv", "look")]
    assert set(looks) == {0.0, 0.6667}
    card = HeadCard.read(corpus / "drawn" / "best")
    assert card.dial == [] and card.training["drawn_looks"] == [0, 2]
    assert card.policy(fixed_look=2).fixed == (2, 2)


def test_drawn_looks_must_be_possible(corpus: Path) -> None:
    with pytest.raises(OptionError, match="drawn_looks"):
        train(_config(corpus, "drawn", 1, "--drawn-looks 0,4"))
