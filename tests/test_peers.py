"""The side-by-side benchmark: its clock, its LocalAgreement and its counting, without any peer installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import benchmarks.peers.__main__ as peers
from benchmarks.peers.answers import BASELINE, Answers
from benchmarks.peers.report import draw, format_rows

RATE = 16_000


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that runs as a file in a peer's environment."""
    monkeypatch.syspath_prepend(str(peers.HERE))
    import worker

    return worker


@pytest.fixture
def systems(worker: ModuleType) -> ModuleType:
    return sys.modules["systems"]


class Clockwork:
    """Takes a fixed time per call and says how much it has heard."""

    settings, step_s, n_streams = "", 1.0, 1

    def __init__(self, monkeypatch: pytest.MonkeyPatch, worker: ModuleType, took_s: float) -> None:
        self.now_s, self.took_s, self.heard = 0.0, took_s, []
        monkeypatch.setattr(worker.time, "process_time", lambda: self.now_s)

    def begin(self) -> None:
        self.heard = []

    def hear(self, samples: np.ndarray) -> tuple[str, str]:
        self.heard.append(len(samples) / RATE)
        self.now_s += self.took_s
        return "", f" {len(self.heard)}"

    def finish(self) -> str:
        self.now_s += self.took_s
        return " done"


def test_fast_system_waits_for_its_audio(monkeypatch: pytest.MonkeyPatch, worker: ModuleType) -> None:
    system = Clockwork(monkeypatch, worker, 0.25)
    played = worker.play(system, np.zeros(round(2.5 * RATE), np.float32), step_s=1.0)
    assert system.heard == [1.0, 1.0, 0.5]
    assert [look[0] for look in played["looks"]] == pytest.approx([1.25, 2.25, 2.75, 3.0])
    assert played["cpu_s"] == pytest.approx(1.0)


def test_slow_system_falls_behind_and_hears_what_has_piled_up(
    monkeypatch: pytest.MonkeyPatch, worker: ModuleType
) -> None:
    system = Clockwork(monkeypatch, worker, 2.0)
    played = worker.play(system, np.zeros(4 * RATE, np.float32), step_s=1.0)
    assert system.heard == [1.0, 2.0, 1.0]
    assert [look[0] for look in played["looks"]] == pytest.approx([3.0, 5.0, 7.0, 9.0])


def test_local_agreement_commits_what_two_runs_share(systems: ModuleType) -> None:
    runs = iter(
        [
            [(" a", 0.0, 0.3), (" bee", 0.3, 0.8)],
            [(" a", 0.0, 0.3), (" be", 0.3, 0.9), (" see", 1.0, 1.6)],
            [(" a", 0.0, 0.3), (" be", 0.3, 0.9), (" sea", 1.0, 1.8)],
        ]
    )
    system = systems.LocalAgreement(lambda samples, prompt: next(runs))
    second = np.zeros(RATE, np.float32)
    assert system.hear(second) == ("", " a bee")
    assert system.hear(second) == (" a", " be see")
    assert system.hear(second) == (" a be", " sea")
    assert system.finish() == " a be sea"


def test_local_agreement_cuts_its_buffer_and_moves_times(systems: ModuleType) -> None:
    lengths, prompts = [], []

    def decode(samples: np.ndarray, prompt: str) -> list[tuple[str, float, float]]:
        lengths.append(len(samples) / RATE)
        prompts.append(prompt)
        return [(" same", 0.0, 0.5)] if len(lengths) < 17 else [(" more", 1.0, 2.0)]

    system = systems.LocalAgreement(decode)
    for _ in range(18):
        committed, _ = system.hear(np.zeros(RATE, np.float32))
    assert lengths[15:] == [16.0, 16.5, 17.5]
    assert prompts[16] == " same"
    assert committed == " same more"


READY = {"settings": "as they are", "n_streams": 1, "start_s": 0.5, "rss_bytes": 7, "commit": "abc"}
UTTERANCE = {"text": "hello world", "audio_s": 2.0, "times": [["hello", 0.2, 0.6], ["world", 0.8, 1.4]]}
LOOKS = [[1.0, "", " hello word"], [2.0, " hello", " world"], [2.5, " hello world", ""]]


def test_words_count_from_when_they_stay() -> None:
    answers = Answers(None, model="tiny.en")
    answers.keep({"id": "u1", **UTTERANCE})
    answers.keep({"id": "u1", "system": "moonshine", "looks": LOOKS, "cpu_s": 0.5, **READY})
    row = answers.rows()["moonshine"]
    assert (row["word_ms"]["p50"], row["committed_ms"]["p50"]) == pytest.approx((500, 1250))
    assert (row["wer"], row["cpu_per_s"], row["streams_per_core"]) == (0.0, 0.25, 4.0)


def test_batches_share_the_cost_and_ratios_are_of_what_both_heard() -> None:
    answers = Answers(None, model="tiny.en")
    for id in ("u1", "u2"):
        answers.keep({"id": id, **UTTERANCE})
    many = {**READY, "n_streams": 16}
    answers.keep({"id": "u1", "system": "foresound-16", "looks": LOOKS, "cpu_s": 3.2, **many})
    answers.keep({"id": "u2", "system": "foresound-16", "looks": LOOKS, "cpu_s": 32.0, **many})
    answers.keep({"id": "u1", "system": BASELINE, "looks": LOOKS, "cpu_s": 1.0, **READY})
    rows = answers.rows()
    assert rows["foresound-16"]["streams_per_core"] == pytest.approx(4.0 / 2.2, abs=0.01)
    assert (rows["foresound-16"]["ratio"], rows[BASELINE]["ratio"]) == (5.0, 1.0)
    assert f"| {BASELINE} | 1 | 0.0 | 500 / 590 |" in format_rows(rows)


def test_words_without_adapter_are_not_counted() -> None:
    answers = Answers(None, model="base")
    answers.keep({"id": "u1", **UTTERANCE})
    deaf = {**READY, "hears": False}
    answers.keep({"id": "u1", "system": "foresound", "looks": LOOKS, "cpu_s": 1.0, **deaf})
    rows = answers.rows()
    assert rows["foresound"]["wer"] is rows["foresound"]["word_ms"] is None
    assert "| foresound | 1 | - | - | - | 0.500 | 2.0 | - |" in format_rows(rows)


def test_picture_names_every_system(tmp_path: Path) -> None:
    answers = Answers(None, model="tiny.en")
    answers.keep({"id": "u1", **UTTERANCE})
    for name in ("foresound", "moonshine"):
        answers.keep({"id": "u1", "system": name, "looks": LOOKS, "cpu_s": 1.0, **READY})
    draw(answers.rows(), tmp_path / "peers.svg", title="tiny.en")
    picture = (tmp_path / "peers.svg").read_text()
    assert "<!-- foresound -->" in picture and "<!-- moonshine -->" in picture


def test_weights_in_packages_become_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = []
    for i, beside in enumerate(("vocabulary.txt", "config.json")):
        package = tmp_path / f"part{i}"
        package.mkdir()
        (package / f"model.bin.part{i}").write_bytes(bytes([i]))
        (package / beside).write_text(beside)
        parts.append(package / f"model.bin.part{i}")
    monkeypatch.setattr(peers, "package_files", lambda model: parts if model == "base" else None)
    folder = peers.join_package("base", tmp_path)
    assert (folder / "model.bin").read_bytes() == b"\0\1"
    assert {file.name for file in folder.iterdir()} == {"model.bin", "vocabulary.txt", "config.json"}
    with pytest.raises(peers.ForesoundError, match="--ct2"):
        peers.join_package("small", tmp_path)


def test_worker_that_does_not_start_says_why(tmp_path: Path) -> None:
    weights = peers.Weights("tiny.en", tmp_path, tmp_path / "none.pt")
    with pytest.raises(peers.ForesoundError, match="invalid choice"):
        peers.Worker("nobody", python=Path(sys.executable), weights=weights, log=tmp_path / "log")


def test_foresound_runs_in_its_worker(tmp_path: Path) -> None:
    weights = peers.Weights("tiny.en", tmp_path, tmp_path / "none.pt")  # it knows where its own are
    python, log = Path(sys.executable), tmp_path / "log"
    worker = peers.Worker("foresound@0.2", python=python, weights=weights, log=log)
    try:
        np.save(tmp_path / "samples.npy", np.zeros(RATE, np.float32))
        answer = worker.play(tmp_path / "samples.npy")
    finally:
        worker.close()
    assert "whisper decoder, shipped adapter" in worker.ready["settings"]
    assert worker.ready["hears"] is True
    assert [look[1:] for look in answer["looks"]] == [["", ""]] * 6
    assert answer["cpu_s"] > 0 and answer["rss_bytes"] > 1 << 20
    assert json.dumps(answer)


def test_run_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answers = Answers(path, model="tiny.en")
    kept = {"looks": LOOKS, "cpu_s": 0.5, **READY}
    for id in ("u1", "u2"):
        answers.keep({"id": id, **UTTERANCE})
        answers.keep({"id": id, "system": "foresound", **kept})
    with path.open("a") as file:
        file.write('{"id": "u2", "system": "moonsh')  # cut in the middle of a line
    again = Answers(path, model="tiny.en")
    assert again.rows() == answers.rows()
    again.keep({"id": "u2", "system": "moonshine", **kept})
    assert {name: set(each) for name, each in Answers(path, model="tiny.en").played.items()} == {
        "foresound": {"u1", "u2"},
        "moonshine": {"u2"},
    }
    with pytest.raises(peers.ForesoundError, match=r"about tiny.en, not base"):
        Answers(path, model="base")


def test_known_answers_start_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    manifest, path = tmp_path / "m.jsonl", tmp_path / "answers.jsonl"
    manifest.write_text(json.dumps({"id": "u1", "audio": "a.wav", "duration": 1.0, "text": "a"}) + "\n")
    answers = Answers(path, model="tiny.en")
    answers.keep({"id": "u1", **UTTERANCE})
    answers.keep({"id": "u1", "system": "moonshine", "looks": LOOKS, "cpu_s": 0.5, **READY})
    monkeypatch.setattr(peers, "Worker", None)
    command = ["run", "--manifest", str(manifest), "--answers", str(path), "--systems", "moonshine"]
    assert peers.main(command) == 0
