"""Where errors are and what confidences are worth; the report shows it in one file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr import Word
from training.breakdown import break_down, calibrate, histogram, judge_words, top_errors
from training.html_report import MeasuredModel, mark, write_report
from training.manifest import Utterance
from training.metrics import Latencies, count_edits
from training.report import EvaluatedUtterance, JudgedWord, StreamedUtterance, format_table, summarize


def _words(text: str, confidence: float = 0.5) -> list[Word]:
    return [Word(word, 0, 0, confidence, stable=True) for word in text.split()]


def test_words_are_right_where_the_reference_has_them() -> None:
    """After normalising, at the right place; a word of two parts needs both."""
    judged = judge_words(_words("Hello, I'm nobody. um Ann"), reference="hello i am somebody ann")
    assert [(word.text, word.is_right) for word in judged] == [
        ("Hello,", True),
        ("I'm", True),
        ("nobody.", False),
        ("Ann", True),
    ]


def test_confidences_are_compared_with_what_is_right() -> None:
    """Words of 0.9 that are right in half of all cases are 0.4 off."""
    words = [JudgedWord("a", 0.9, is_right=i % 2 == 0) for i in range(10)]
    words += [JudgedWord("b", 1.0, is_right=True)] * 10
    found = calibrate(words)
    assert found["bins"] == [{"confidence": 0.95, "right": 0.75, "count": 20}]
    assert found["error"] == pytest.approx(0.2)
    assert calibrate([]) == {"bins": [], "error": None}


def test_errors_are_counted_by_word() -> None:
    """Each kind, the commonest first, after normalising."""
    pairs = [("Jimmie Dale said so", "Jimmy Dale said so")] * 3
    pairs += [("go on now", "go now"), ("stop", "stop it"), ("Jimmie", "Jenny")]
    found = top_errors(pairs)
    assert found["substitutions"][0] == {"said": "jimmie", "heard": "jimmy", "count": 3}
    assert found["deletions"] == [{"said": "on", "heard": "", "count": 1}]
    assert found["insertions"] == [{"said": "", "heard": "it", "count": 1}]


def test_latencies_fall_into_bars() -> None:
    """All are counted, negative ones too."""
    bars = histogram([-10.0, 5.0, 39.0, 40.0, 200.0])
    assert sum(bars["count"]) == 5
    assert bars["from_ms"][0] == -40
    assert bars["count"][:3] == [1, 2, 1]
    assert histogram([]) == {"from_ms": [], "count": []}


def test_pieces_of_a_hypothesis_are_marked() -> None:
    """What is the same, other, missing and too much."""
    kinds = [
        (p["kind"], p["said"], p["heard"])
        for p in mark("red green blue gold silver", "red pink gold silver grey")
    ]
    assert kinds[0] == ("equal", "red", "red")
    assert {kind for kind, _, _ in kinds} == {"equal", "substitute", "delete", "insert"}


def _result(folder: Path, number: int, heard: str, speaker: str) -> EvaluatedUtterance:
    path = folder / f"{number}.wav"
    soundfile.write(path, np.sin(np.arange(16_000) / 9) * 0.2, 16_000)
    said = "red green <b>blue</b> gold"
    utterance = Utterance(f"u{number}", path, 1.0, said, speaker, "colours", number)
    streamed = StreamedUtterance(
        300,
        heard,
        count_edits(said, hypothesis=heard),
        0.2,
        Latencies([100.0, 200.0], [120.0, 220.0], [300.0, 400.0]),
        judge_words(_words(heard, 0.8), reference=said),
    )
    return EvaluatedUtterance(
        utterance, None, 1.0, "weak", said, count_edits(said, hypothesis=said), (streamed,)
    )


def _model(folder: Path, title: str, *heard: str) -> MeasuredModel:
    results = [_result(folder, i, text, f"s{i}") for i, text in enumerate(heard)]
    return MeasuredModel(title, {**summarize(results, chunk_ms=[300])}, results)


def test_groups_have_their_own_errors(tmp_path: Path) -> None:
    """By set and by speaker, with offline beside; totals are those of the corpus."""
    model = _model(tmp_path, "a", "red green b blue b gold", "red pink b blue b")
    found = break_down(model.results, index=0)
    (row,) = found["sets"]
    assert (row["name"], row["n_utterances"]) == ("colours", 2)
    assert row["wer"] == pytest.approx(model.numbers["wer"])
    wer = {row["name"]: row["wer"] for row in found["speakers"]}
    assert wer["s0"] < wer["s1"]
    assert found["sets"][0]["offline_wer"] == 0.0


def test_several_models_share_a_table(tmp_path: Path) -> None:
    """One column names them, if there is more than one."""
    models = [_model(tmp_path, "one", "red"), _model(tmp_path, "other", "red green")]
    rows = [{"model": m.title, **run} for m in models for run in m.numbers["runs"]]
    table = format_table(rows).splitlines()
    assert table[0].split()[0] == "model"
    assert [line.split()[0] for line in table[2:]] == ["one", "other"]
    assert "model" not in format_table(rows[:1])


def test_a_report_is_one_file_with_everything_in_it(tmp_path: Path) -> None:
    """Tables, four pictures and playable clips, nothing from elsewhere; texts are escaped."""
    pytest.importorskip("matplotlib")
    folder = tmp_path / "report"
    folder.mkdir()
    write_report(folder, [_model(tmp_path, "one", "red pink"), _model(tmp_path, "other", "red green")])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    assert page.count("data:audio/mpeg;base64,") == 1
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "&lt;b&gt;blue" in page
    assert "<b>blue" not in page
    assert {path.name for path in folder.glob("*.png")} == {
        "wer.png",
        "latency.png",
        "calibration.png",
        "speakers.png",
    }
    report = json.loads((folder / "report.json").read_text())
    assert [model["title"] for model in report["models"]] == ["one", "other"]
    assert report["models"][0]["breakdown"][0]["errors"]["substitutions"]
