"""The side-by-side benchmark: its clock, its LocalAgreement and its counting, without any peer installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import benchmarks.peers.__main__ as peers
from training.manifest import WordTime

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


def test_words_count_from_when_they_stay() -> None:
    measured = peers.Measured("", 1, 0.0, audio_s=2.0)
    looks = [[1.0, "", " hello word"], [2.0, " hello", " world"], [2.5, " hello world", ""]]
    times = [WordTime("hello", 0.2, 0.6), WordTime("world", 0.8, 1.4)]
    peers.add(measured, {"looks": looks, "cpu_s": 0.5, "rss_bytes": 7}, text="hello world", times=times)
    assert measured.shown_ms == pytest.approx([400, 600])
    assert measured.committed_ms == pytest.approx([1400, 1100])
    row = measured.row()
    assert (row["wer"], row["cpu_per_s"], row["streams_per_core"]) == (0.0, 0.25, 4.0)


def test_batches_share_the_cost() -> None:
    measured = peers.Measured("", 16, 0.0, audio_s=2.0, cpu_s=3.2)
    measured.edits = peers.count_edits("one", hypothesis="one")
    assert measured.row()["streams_per_core"] == 10.0


def test_worker_that_does_not_start_says_why(tmp_path: Path) -> None:
    weights = peers.Weights("tiny.en", tmp_path, tmp_path / "none.pt")
    with pytest.raises(peers.ForesoundError, match="invalid choice"):
        peers.Worker("nobody", python=Path(sys.executable), weights=weights, log=tmp_path / "log")


def test_foresound_runs_in_its_worker(tmp_path: Path) -> None:
    weights = peers.Weights("tiny.en", tmp_path, tmp_path / "none.pt")  # it knows where its own are
    worker = peers.Worker("foresound", python=Path(sys.executable), weights=weights, log=tmp_path / "log")
    try:
        np.save(tmp_path / "samples.npy", np.zeros(RATE, np.float32))
        answer = worker.play(tmp_path / "samples.npy")
    finally:
        worker.close()
    assert "300 ms" in worker.ready["settings"]
    assert [look[1:] for look in answer["looks"]] == [["", ""]] * 5
    assert answer["cpu_s"] > 0 and answer["rss_bytes"] > 1 << 20
    assert json.dumps(answer)


def test_run_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    assert peers.read_answers(None) == peers.read_answers(path) == {}
    kept = {"looks": [[1.0, "", " a"]], "cpu_s": 0.5, "rss_bytes": 7}
    for id, system in (("u1", "foresound"), ("u1", "moonshine"), ("u2", "foresound")):
        peers.keep_answer(path, {"id": id, "system": system, **kept})
    with path.open("a") as file:
        file.write('{"id": "u2", "system": "moonsh')  # cut in the middle of a line
    answers = peers.read_answers(path)
    assert set(answers) == {("u1", "foresound"), ("u1", "moonshine"), ("u2", "foresound")}
    assert answers["u1", "moonshine"]["looks"] == kept["looks"]
    peers.keep_answer(path, {"id": "u2", "system": "moonshine", **kept})
    assert ("u2", "moonshine") in peers.read_answers(path)
