"""The table, the plot and the picture of lookahead, with a small random head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr import SAMPLE_RATE, OptionError, Recognizer
from asr.checkpoint import Checkpoint, load_checkpoint
from asr.encoder import CausalEncoder
from asr.head_files import save_head
from benchmarks import lookahead, lookahead_live, lookahead_picture, lookahead_worth
from tests.corpus import write_corpus
from tests.tiny import tiny_whisper
from tests.transducers import FIXTURES, head_card, speaking_head, transducer_recognizer
from training.head_data import FeatureMaker
from training.head_setup import Frozen
from training.manifest import WordTime
from training.metrics import ShownWord, play


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return transducer_recognizer()


@pytest.fixture
def files(tmp_path: Path, jfk: np.ndarray) -> Path:
    """A folder with a manifest of three clips, their word times and a plan."""
    lines, times = [], []
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", jfk[: (number + 2) * SAMPLE_RATE], SAMPLE_RATE)
        lines.append({"id": str(number), "audio": f"{number}.wav", "duration": number + 2, "text": "and so"})
        times.append({"id": str(number), "words": [["and", 0.3, 0.5], ["so", 0.6, 0.9]]})
    rows = [
        {"name": "adaptive", "head": "h", "latency": 0, "chunk_ms": 80, "right_context_ms": 0},
        {"name": "adaptive", "head": "h", "latency": "high", "chunk_ms": 80, "right_context_ms": 0},
        {"name": "Whisper", "chunk_ms": 300},
    ]
    for name, records in (("m", lines), ("a", times), ("plan", rows)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path


def test_a_table_of_rows_that_goes_on_where_it_stopped(
    files: Path, recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line of numbers for each row; finished rows are read from the output."""
    loaded: list[str] = []

    def load(model: str, adapter: str, head: str) -> Any:
        loaded.append(head)
        return recognizer

    monkeypatch.setattr(lookahead, "load_recognizer", load)
    command = [f"--{name}={files}/{file}" for name, file in (("manifest", "m.jsonl"), ("plan", "plan.jsonl"))]
    command += [f"--alignments={files}/a.jsonl", f"--output={files}/out.jsonl", f"--plot={files}/plot.png"]
    assert lookahead.main([*command, "--together", "2"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert len(table) == 5 and len(report["rows"]) == 3 and loaded == ["none", "h", "none"]
    near, far, whisper = report["rows"]
    assert near["lookahead_ms"]["frame"]["mean"] == 0 < far["lookahead_ms"]["frame"]["mean"]
    assert whisper["lookahead_ms"] is None and whisper["n_words"] == 6 and whisper["cpu_s_per_s"] > 0
    assert (files / "plot.png").stat().st_size > 10_000
    assert lookahead.main([*command, "--together", "2"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == report["rows"]
    assert loaded == ["none", "h", "none"]


def test_heads_are_compared_on_frames_that_are_encoded_once(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a head folder, adaptive and fixed; frames are made once per chunk size; rows are kept."""
    checkpoint = Checkpoint(tiny_whisper(), "tiny-random", "made here", "f" * 64)
    frozen = Frozen(checkpoint, None, CausalEncoder(checkpoint.model.encoder), 1, 5.0)
    monkeypatch.setattr(lookahead.Frozen, "load", lambda *_: frozen)
    monkeypatch.setattr(lookahead, "load_recognizer", lambda *_: transducer_recognizer())
    encoded: list[int] = []
    encode = FeatureMaker.encode
    monkeypatch.setattr(FeatureMaker, "encode", lambda *args: encoded.append(1) or encode(*args))
    save_head(speaking_head(), files / "head", head_card("f" * 64))
    settings: list[dict[str, Any]] = [{"latency": 0}, {"fixed_look": 0}, {"fixed_look": 3}]
    rows = [{"name": f"{s}", "head": f"{files}/head", "chunk_ms": 80, **s} for s in settings]
    (files / "plan.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [f"--manifest={files}/m.jsonl", f"--plan={files}/plan.jsonl", f"--alignments={files}/a.jsonl"]
    command += [f"--output={files}/once.jsonl", "--encode-once"]
    assert lookahead.main(command) == 0
    *_, last = capsys.readouterr().out.splitlines()
    closed, never, always = json.loads(last)["rows"]
    assert closed["lookahead_ms"]["frame"]["mean"] == never["lookahead_ms"]["frame"]["mean"] == 0
    assert closed["wer"] == never["wer"] and always["lookahead_ms"]["frame"]["p95"] > 0
    assert len(encoded) == 3
    assert lookahead.main(command) == 0 and len(encoded) == 3


def test_what_the_future_is_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Losses by look, and influence that ends where frames cannot look; a strange head is refused."""
    corpus = write_corpus(tmp_path)
    weights_hash = load_checkpoint(corpus / "w.pt").weights_hash
    save_head(speaking_head(), corpus / "head", head_card(weights_hash))
    command = [
        "--head",
        f"{corpus}/head",
        "--manifest",
        f"{corpus}/m.jsonl",
        "--aligned",
        f"{corpus}/a.jsonl",
    ]
    command += ["--model", f"{corpus}/w.pt", "--adapter", "none"]
    assert lookahead_worth.main(command) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["n_utterances"] == 6
    for losses in report["nats_per_token"].values():
        assert losses["0"] > 0 and losses["0"] != losses[str(speaking_head().config.max_look)]
    influence, config = report["influence"], speaking_head().config
    reach = config.n_blocks * config.max_look
    assert influence["0"] > influence["-1"] > 0 and influence["1"] > 0
    assert all(influence[str(offset)] == 0 for offset in lookahead_worth.OFFSETS if offset > reach)
    save_head(speaking_head(), corpus / "other", head_card("f" * 64))
    assert lookahead_worth.main([*command[:1], f"{corpus}/other", *command[2:]]) == 2
    assert "made for base weights" in capsys.readouterr().err


def test_words_are_shown_when_an_evaluation_sees_them(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Streams fed together from chunk to chunk show words at the times of blocks of 20 ms."""
    clips = [jfk[: 3 * SAMPLE_RATE + 100], jfk[2 * SAMPLE_RATE : 4 * SAMPLE_RATE]]
    row = lookahead.Row("", head="h", latency="low", chunk_ms=300)
    logs = lookahead.play_together(recognizer, [row.stream(recognizer) for _ in clips], clips)
    for clip, log in zip(clips, logs, strict=True):
        alone = play(row.stream(recognizer), clip).words
        assert (
            [(word.text, word.emitted_s) for word in log.words()]
            == [(word.text, word.emitted_s) for word in alone]
            != []
        )


def test_a_wrong_plan_is_refused(tmp_path: Path) -> None:
    """With the line that is wrong."""
    plan = tmp_path / "plan.jsonl"
    plan.write_text('{"name": "a"}\n\n{"nom": "b"}\n')
    with pytest.raises(OptionError, match=r"plan.jsonl:3: no row"):
        lookahead.read_plan(plan)


def test_the_picture(
    tmp_path: Path,
    recognizer: Recognizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A clip's words and waits become a picture; a recogniser without a head is one line of error."""
    monkeypatch.setattr(lookahead_picture, "load_recognizer", lambda *_: recognizer)
    command = ["--audio", str(FIXTURES / "jfk.flac"), "--latency", "medium", "-o", str(tmp_path / "p.png")]
    assert lookahead_picture.main(command) == 0
    assert (tmp_path / "p.png").stat().st_size > 30_000
    model = recognizer.base_model
    monkeypatch.setattr(
        lookahead_picture, "load_recognizer", lambda *_: Recognizer(model, model, name="bare")
    )
    assert lookahead_picture.main(command) == 2
    assert "needs a head" in capsys.readouterr().err


def test_lateness_is_of_words_that_were_heard() -> None:
    reference = [WordTime("I'm", 0.0, 0.4), WordTime("late,", 0.5, 1.0), WordTime("again", 1.2, 1.5)]
    shown = [
        ShownWord("I", 0.5, 0.5, 0.5),
        ShownWord("am", 0.7, 0.7, 0.9),
        ShownWord("again.", 1.8, 1.8, 1.8),
    ]
    assert lookahead_live.lateness(shown, reference) == [pytest.approx(300), None, pytest.approx(300)]
