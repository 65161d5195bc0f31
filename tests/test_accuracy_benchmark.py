"""The benchmark of word errors against latency: its modes, its going on and its picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.recognizer import Recognizer
from benchmarks import accuracy
from benchmarks.accuracy import Mode, list_modes
from benchmarks.utterances import evenly_spread
from training.manifest import Utterance


def _manifest(folder: Path, jfk: np.ndarray, *, n: int) -> list[Utterance]:
    soundfile.write(folder / "a.wav", jfk[:16_000], 16_000)
    line = {"audio": str(folder / "a.wav"), "duration": 1.0, "text": "and so"}
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps({"id": f"u{i}", **line}) + "\n" for i in range(n)))
    return evenly_spread(path, limit=n)


def test_fewer_utterances_are_among_more(tmp_path: Path, jfk: np.ndarray) -> None:
    _manifest(tmp_path, jfk, n=11)
    many, few = ([each.id for each in evenly_spread(tmp_path / "m.jsonl", limit=n)] for n in (6, 3))
    assert few == many[::2] == ["u0", "u3", "u7"]


def test_each_way_is_a_mode_of_its_own() -> None:
    modes = list_modes([80, 300, 600], formats=["int8", "fp32"], has_head=True)
    names = [mode.name for mode in modes]
    assert names == [
        *(f"greedy, int8, {chunk_ms} ms" for chunk_ms in (80, 300, 600)),
        "greedy, fp32, 300 ms",
        "beam 4, int8, 300 ms",
        "second pass, int8, 300 ms",
        "offline Whisper",
        *(f"transducer, int8 {latency}, 300 ms" for latency in ("minimal", "low", "medium", "high")),
    ]
    assert {mode.weights for mode in modes} == {"int8", "fp32"}
    assert len(list_modes([300], formats=["fp32"], has_head=False)) == 4


def test_run_goes_on_and_adds_modes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jfk: np.ndarray, tiny_recognizer: Recognizer
) -> None:
    monkeypatch.setattr(accuracy, "reference_times", lambda *args, **kwargs: ([], "none"))
    utterances, output = _manifest(tmp_path, jfk, n=2), tmp_path / "lines.jsonl"
    recognizers = {"fp32": tiny_recognizer}
    modes = list_modes([300], formats=["fp32"], has_head=False)
    first = accuracy.run(modes[:1], recognizers, utterances[:1], output)
    with output.open("a") as file:
        file.write('{"id": "u1", "mo')  # cut in the middle of a line
    lines = accuracy.run(modes, recognizers, utterances, output)
    assert lines[0] == first[0]
    assert {(line["id"], line["mode"]) for line in lines} == {
        (utterance.id, mode.name) for utterance in utterances for mode in modes
    }
    assert len(lines) == len(output.read_text().splitlines()) == 8
    rows = accuracy.summarize(lines)
    assert [(row["mode"], row["n"], row["n_words"]) for row in rows] == [(mode.name, 2, 4) for mode in modes]
    assert rows[0]["cpu_per_s"] == pytest.approx(sum(lines[i]["cpu_s"] for i in (0, 4)) / 2)


def test_picture_shows_lines_points_and_marks(tmp_path: Path) -> None:
    def row(mode: Mode, wer: float, p50: float | None) -> dict[str, object]:
        late = None if p50 is None else {"p50": p50, "p95": 2 * p50}
        about = {"mode": mode.name, "family": mode.family, "chunk_ms": mode.chunk_ms, "latency": mode.latency}
        return {**about, "n": 1, "wer": wer, "latency_ms": late, "commit_latency_ms": late, "cpu_per_s": 0.1}

    rows = [
        row(Mode("greedy, int8", "int8", 80), 0.14, 100.0),
        row(Mode("greedy, int8", "int8", 300), 0.09, 220.0),
        row(Mode("transducer, int8", "int8", 300, latency="low"), 0.1, 150.0),
        row(Mode("offline Whisper", "fp32", 0), 0.05, None),
    ]
    accuracy.draw(rows, tmp_path / "a.svg")
    picture = (tmp_path / "a.svg").read_text()
    for text in ("greedy, int8", "80", "300", "low", "offline Whisper"):
        assert f"<!-- {text} -->" in picture
    assert "| offline Whisper | 1 | 5.00 | - | - | 0.100 |" in accuracy.format_rows(rows)
