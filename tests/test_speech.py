"""What a run is trained on: checked before its first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asr.errors import ForesoundError
from training.config import DataConfig
from training.speech import read_speech


@pytest.fixture
def data(tmp_path: Path) -> Any:
    """Makes settings for two utterances with text, one without, and as many general ones."""

    def build(*, general: str = "g", **settings: Any) -> DataConfig:
        for name, prefix in (("own", "o"), ("general", general)):
            rows, words = [], []
            for i in range(3):
                audio = tmp_path / f"{prefix}{i}.wav"
                audio.touch()
                text = "ONE TWO" if i < 2 else None
                rows.append({"id": f"{prefix}{i}", "audio": str(audio), "duration": 2.0, "text": text})
                if text:
                    times = [["One", 0.1, 0.5, 0.9], ["two.", 0.6, 1.0, 0.9]]
                    words.append({"id": f"{prefix}{i}", "text": "One two.", "words": times})
            for suffix, lines in (("jsonl", rows), ("aligned.jsonl", words)):
                (tmp_path / f"{name}.{suffix}").write_text("".join(json.dumps(line) + "\n" for line in lines))
        replay = {"replay_manifest": "general.jsonl", "replay_aligned": "general.aligned.jsonl"}
        given = {
            key: tmp_path / value if isinstance(value, str) else value
            for key, value in {**replay, **settings}.items()
        }
        return DataConfig(tmp_path / "own.jsonl", tmp_path / "own.aligned.jsonl", **given)

    return build


def test_what_is_replayed_comes_with_its_word_times(data: Any) -> None:
    speech = read_speech(data())
    assert [u.id for u in speech.utterances] == ["o0", "o1", "o2"]
    assert [u.id for u in speech.replayed] == ["g0", "g1", "g2"]
    assert sorted(speech.aligned) == ["g0", "g1", "o0", "o1"]
    speech = read_speech(data(), with_text=True)
    assert [u.id for u in (*speech.utterances, *speech.replayed)] == ["o0", "o1", "g0", "g1"]


def test_nothing_is_replayed_unless_asked_for(data: Any) -> None:
    assert read_speech(data(replay_manifest=None, replay_aligned=None)).replayed == []


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"replay_aligned": None}, "replay_manifest and replay_aligned go together"),
        ({"replay_share": 1.0}, "replay_share must be above 0 and below 1, not 1.0"),
        ({"replay_share": 0.0}, "replay_share must be above 0 and below 1, not 0.0"),
        ({"general": "o"}, "3 ids are also in .*own.jsonl, such as 'o0'"),
        ({"replay_aligned": "own.aligned.jsonl"}, "general.jsonl: no utterance in it has word times"),
    ],
)
def test_wrong_replays_are_refused(data: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ForesoundError, match=text):
        read_speech(data(**settings))
