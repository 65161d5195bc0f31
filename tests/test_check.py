"""A check of data finds what is broken or suspicious, names the place, and keeps the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from training import check, split
from training.manifest import ManifestError, load_audio, read_manifest
from training.sources import SourceOptions

RATE = 16_000


def _tone(seconds: float, level: float = 0.3) -> np.ndarray:
    """A tone whose loudness goes up and down like syllables; each call another one."""
    at = np.arange(int(seconds * RATE)) / RATE
    return level * np.sin(2 * np.pi * (200 + 100 * seconds) * at) * (0.6 + 0.4 * np.sin(20 * at))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A manifest with one of everything that can be wrong."""
    audio = {
        "good.wav": _tone(2.0),
        "again.wav": _tone(2.0),
        "silent.wav": np.zeros(RATE * 2),
        "short.wav": _tone(0.01),
        "long.wav": _tone(30.5),
        "loud.wav": np.sign(_tone(2.5)),
        "long_text.wav": _tone(1.5),
        "short_text.wav": _tone(12.0),
        "mute.wav": _tone(3.0),
        "wrong_length.wav": _tone(2.2),
    }
    for name, samples in audio.items():
        soundfile.write(tmp_path / name, samples, RATE, subtype="FLOAT")
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    texts = {"long_text.wav": "far too many words " * 9, "short_text.wav": "two words", "mute.wav": None}
    lines = [
        json.dumps({"audio": name, "text": texts.get(name, "three good words"), "speaker": "s"})
        for name in [*audio, "broken.wav", "missing.wav"]
    ]
    lines[9] = lines[9].replace("}", ', "duration": 9.0}')
    lines.append("{not json")
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "m.jsonl"


def _run(source: Path, output: Path, **options: Any) -> int:
    defaults: dict[str, Any] = {
        "options": SourceOptions(),
        "teacher": None,
        "keep_suspicious": False,
        "workers": 2,
        "json_output": True,
    }
    return check.run(source=source, output=output, **{**defaults, **options})


def test_everything_is_found_and_the_rest_is_kept(source: Path, capsys: Any) -> None:
    """One problem of each kind, at its line; the clean manifest holds what can be used."""
    assert _run(source, source.with_name("clean.jsonl")) == 1
    report = json.loads(capsys.readouterr().out)
    found = {(problem["kind"], problem["place"].rsplit(":", 1)[-1]) for problem in report["problem_list"]}
    assert found == {
        ("duplicate", "2"),
        ("silent", "3"),
        ("too short", "4"),
        ("text too long", "4"),
        ("too long", "5"),
        ("text too short", "5"),
        ("clipped", "6"),
        ("text too long", "7"),
        ("text too short", "8"),
        ("without text", "9"),
        ("wrong duration", "10"),
        ("broken audio", "11"),
        ("missing audio", "12"),
        ("not readable", "13"),
    }
    kept = read_manifest(source.with_name("clean.jsonl"))
    assert [each.id for each in kept] == ["good", "loud", "mute", "wrong_length"]
    assert kept[3].duration_s == pytest.approx(2.2)
    assert (report["n_recordings"], report["n_kept"]) == (12, 4)
    assert report["speakers"] == {"s": 57.7}
    assert report["rates"] == {"16000 Hz": 10}
    table = source.with_name("clean.problems.tsv").read_text().splitlines()
    assert len(table) == 1 + len(report["problem_list"])


def test_suspicious_ones_can_be_kept(source: Path, capsys: Any) -> None:
    """Texts that hardly fit are left to people who know better."""
    _run(source, source.with_name("clean.jsonl"), keep_suspicious=True, json_output=False)
    assert {"long_text", "short_text"} <= {each.id for each in read_manifest(source.with_name("clean.jsonl"))}
    printed = capsys.readouterr().out
    assert "m.jsonl:11" in printed
    assert "usable     6 of 12" in printed


def test_a_source_without_anything_usable_is_an_error(tmp_path: Path, capsys: Any) -> None:
    """And says so, with the problems above."""
    (tmp_path / "m.jsonl").write_text('{"audio": "nothing.wav", "text": "x"}\n')
    with pytest.raises(ManifestError, match="nothing in it can be used"):
        _run(tmp_path / "m.jsonl", tmp_path / "clean.jsonl")
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(ManifestError, match="holds no recordings"):
        _run(tmp_path / "m.jsonl", tmp_path / "clean.jsonl")


def test_a_part_of_a_file_is_one_recording(tmp_path: Path, capsys: Any) -> None:
    """NeMo's offsets survive the check, and the part alone is heard."""
    soundfile.write(tmp_path / "a.wav", np.concatenate([_tone(2.0, 0.1), _tone(3.0, 0.4)]), RATE)
    rows = [
        {"audio_filepath": "a.wav", "offset": 0.0, "duration": 2.0, "text": "quiet words"},
        {"audio_filepath": "a.wav", "offset": 2.0, "duration": 3.0, "text": "louder words"},
    ]
    (tmp_path / "m.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _run(tmp_path / "m.json", tmp_path / "clean.jsonl") == 0
    first, second = read_manifest(tmp_path / "clean.jsonl")
    assert (first.id, second.id) == ("a", "a-2")
    assert len(load_audio(second)) == 3 * RATE
    assert np.abs(load_audio(first)).max() < 0.15 < np.abs(load_audio(second)).max()


@pytest.mark.slow
def test_the_teacher_finds_a_wrong_text(tmp_path: Path, capsys: Any) -> None:
    """The right text passes, another one is named with what was heard."""
    clip = Path(__file__).parent / "fixtures" / "jfk.flac"
    samples, rate = soundfile.read(clip)
    for name, text in (
        ("right", "And so my fellow Americans ask not what your country can do for you"),
        ("wrong", "The quick brown fox jumps over a lazy dog in the garden every day at noon"),
    ):
        cut = samples[: int(8.0 * rate)] * (1.0 if name == "right" else 0.9)
        soundfile.write(tmp_path / f"{name}.wav", cut, rate)
        (tmp_path / f"{name}.txt").write_text(text)
    assert _run(tmp_path, tmp_path / "clean.jsonl", teacher="tiny.en") == 1
    assert [each.id for each in read_manifest(tmp_path / "clean.jsonl")] == ["right"]
    (problem,) = json.loads(capsys.readouterr().out)["problem_list"]
    assert problem["kind"] == "teacher disagrees"
    assert "fellow americans" in problem["message"]


def test_a_manifest_is_split_at_its_end(tmp_path: Path, capsys: Any) -> None:
    """Stretches in order, nothing lost, paths that hold from the new folder."""
    lines = []
    for i in range(10):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(160), RATE)
        lines.append(json.dumps({"audio": f"{i}.wav", "duration": 6.0, "text": "x"}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    assert split.run(manifest=tmp_path / "m.jsonl", output=tmp_path / "out", dev_min=0.1, test_min=0.2) == 0
    parts = {name: read_manifest(tmp_path / "out" / f"{name}.jsonl") for name in split.PARTS}
    assert [len(part) for part in parts.values()] == [7, 1, 2]
    assert [u.id for part in parts.values() for u in part] == [str(i) for i in range(10)]
    assert all(u.audio.resolve().is_file() for part in parts.values() for u in part)
    with pytest.raises(ManifestError, match="too short"):
        split.run(manifest=tmp_path / "m.jsonl", output=tmp_path / "out", dev_min=1, test_min=1)
