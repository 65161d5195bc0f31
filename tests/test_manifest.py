"""Tests of training.manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import AudioError, ForesoundError
from training.manifest import (
    ManifestError,
    Utterance,
    WordTime,
    load_audio,
    read_alignments,
    read_manifest,
)

GOOD = {"id": "a", "audio": "a.wav", "duration": 1.5, "text": "HELLO", "speaker": "7", "set": "corpus"}


def write_lines(path: Path, *records: Any) -> Path:
    """Write records as JSON lines; texts are written as they are."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def utterance_of(audio: Path) -> Utterance:
    """An utterance that only has audio."""
    return Utterance(id="a", audio=audio, duration_s=1.0, text=None, speaker=None, set="s", line=1)


def test_own_line(tmp_path: Path) -> None:
    """A line with our keys gives every field and an absolute path beside the manifest."""
    manifest = write_lines(tmp_path / "m.jsonl", "", GOOD | {"license": "CC BY 4.0"})
    assert read_manifest(manifest) == [
        Utterance(
            id="a",
            audio=tmp_path / "a.wav",
            duration_s=1.5,
            text="HELLO",
            speaker="7",
            set="corpus",
            line=2,
            license="CC BY 4.0",
        )
    ]


def test_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest named relative to the working folder still gives absolute audio paths."""
    write_lines(tmp_path / "m.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    assert read_manifest("m.jsonl")[0].audio == tmp_path / "a.wav"


def test_nemo_line(tmp_path: Path) -> None:
    """NeMo's keys are read; id and set come from the file names."""
    record = {"audio_filepath": "/clips/b.flac", "duration": 2, "text": "hi"}
    (utterance,) = read_manifest(write_lines(tmp_path / "m.jsonl", record))
    assert (utterance.id, utterance.set, utterance.audio) == ("b", "m", Path("/clips/b.flac"))
    assert utterance.duration_s == 2.0 and utterance.speaker is None


def test_text_may_be_missing_null_or_empty(tmp_path: Path) -> None:
    """No text is None, which is not the same as nothing said."""
    without = {key: GOOD[key] for key in ("audio", "duration")}
    manifest = write_lines(
        tmp_path / "m.jsonl", without | {"id": "x"}, GOOD | {"text": None}, GOOD | {"id": "z", "text": ""}
    )
    assert [utterance.text for utterance in read_manifest(manifest)] == [None, None, ""]
    with pytest.raises(ManifestError, match=r"m\.jsonl:1: 'x' has no text"):
        read_manifest(manifest, require_text=True)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ("[" * 100_000, "not JSON"),
        (GOOD | {"id": "b", "audio": None}, '"audio"'),
        (GOOD | {"id": "b", "audio": 3}, '"audio"'),
        (GOOD | {"id": "b", "duration": "long"}, '"duration"'),
        (GOOD | {"id": "b", "duration": 0}, '"duration"'),
        (GOOD | {"id": "b", "duration": True}, '"duration"'),
        ('{"id": "b", "audio": "b.wav", "duration": NaN}', '"duration"'),
        ('{"id": "b", "audio": "b.wav", "duration": 1e999}', '"duration"'),
        (GOOD | {"id": "b", "text": ["HELLO"]}, '"text"'),
        (GOOD | {"id": "b", "offset": -3.0}, "offset"),
        (GOOD, "already used in line 1"),
    ],
)
def test_broken_line(tmp_path: Path, line: Any, problem: str) -> None:
    """A broken line is refused with the file, its number and what was expected."""
    manifest = write_lines(tmp_path / "m.jsonl", GOOD, line)
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest)
    assert str(caught.value).startswith(f"{manifest}:2: ")
    assert problem in str(caught.value)


def test_unusable_file(tmp_path: Path) -> None:
    """A missing, empty or binary manifest is a ForesoundError that names it."""
    empty = write_lines(tmp_path / "empty.jsonl", "")
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.jsonl", tmp_path, empty, binary):
        with pytest.raises(ForesoundError, match=path.name):
            read_manifest(path)


@settings(deadline=None)
@given(st.text())
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Texts with any characters, line separators included, come back as they were written."""
    manifest = tmp_path_factory.mktemp("manifest") / "m.jsonl"
    manifest.write_bytes(json.dumps(GOOD | {"text": text}, ensure_ascii=True).encode())
    assert read_manifest(manifest)[0].text == text


def test_line_separator_inside_a_text(tmp_path: Path) -> None:
    """U+2028 is a legal character of a JSON text and does not end a line."""
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps(GOOD | {"text": "a\u2028b"}, ensure_ascii=False), encoding="utf-8")
    assert read_manifest(manifest)[0].text == "a\u2028b"


def test_alignments(tmp_path: Path) -> None:
    """Word times are read with and without a confidence."""
    record = {"id": "a", "words": [["the", 0.1, 0.25], ["war", 0.25, 0.5, 0.75]]}
    alignments = read_alignments(write_lines(tmp_path / "a.jsonl", record))
    assert alignments == {"a": [WordTime("the", 0.1, 0.25, 1.0), WordTime("war", 0.25, 0.5, 0.75)]}


@pytest.mark.parametrize(
    "record",
    [
        {"words": []},
        {"id": "a", "words": None},
        {"id": "a", "words": [["the", 0.1]]},
        {"id": "a", "words": [["the", 0.5, 0.1]]},
        {"id": "a", "words": [["the", -0.5, 0.1]]},
        {"id": "a", "words": [["the", "0.1", 0.2]]},
        {"id": "a", "words": [["the", 0.1, 0.2, 1.5]]},
        {"id": "a", "words": [[3, 0.1, 0.2]]},
    ],
)
def test_broken_alignment(tmp_path: Path, record: Any) -> None:
    """A broken line of word times is refused with its number."""
    path = write_lines(tmp_path / "a.jsonl", {"id": "first", "words": []}, record)
    with pytest.raises(ManifestError, match=r"a\.jsonl:2: "):
        read_alignments(path)


def test_load_audio_resamples_and_mixes(tmp_path: Path) -> None:
    """44.1 kHz stereo becomes mono at 16 kHz with the same tone in it."""
    time_s = np.arange(44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * time_s)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, np.zeros_like(tone)], axis=1), 44_100)
    samples = load_audio(utterance_of(tmp_path / "a.wav"))
    assert samples.dtype == np.float32 and samples.shape == (16_000,)
    spectrum = np.abs(np.fft.rfft(samples))
    assert int(spectrum.argmax()) == 440
    assert np.abs(samples[1000:-1000]).max() == pytest.approx(0.25, abs=0.01)


def test_load_audio_refuses(tmp_path: Path) -> None:
    """Missing, foreign, empty and non-finite audio raise an AudioError that names the file."""
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    broken = np.zeros(1600, dtype=np.float32)
    broken[800] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 16_000, subtype="FLOAT")
    for name, problem in [
        ("missing.wav", "no such"),
        ("text.wav", "not audio"),
        ("empty.wav", "no samples"),
        ("nan.wav", "0.050 s"),
    ]:
        with pytest.raises(AudioError, match=problem) as caught:
            load_audio(utterance_of(tmp_path / name))
        assert name in str(caught.value)
