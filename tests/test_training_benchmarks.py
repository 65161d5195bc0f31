"""What the benchmarks of training rest on: texts are really wrong, known ends are really known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import alignment
from benchmarks.wrong_labels import swap_texts, write_texts
from training.manifest import Utterance, WordTime, read_manifest


def _utterances(folder: Path, n: int) -> list[Utterance]:
    return [
        Utterance(f"u{i}", folder / f"{i}.wav", 1.0 + i, f"text number {i}", "s", "x", i + 1)
        for i in range(n)
    ]


def test_a_share_of_the_texts_is_swapped(tmp_path: Path) -> None:
    """Each chosen one gets another's text; the others keep theirs; the same seed chooses the same."""
    utterances = _utterances(tmp_path, 20)
    wrong = swap_texts(utterances, share=0.2, seed=3)
    assert len(wrong) == 4
    own = {utterance.id: utterance.text for utterance in utterances}
    assert all(text != own[id] for id, text in wrong.items())
    assert sorted(wrong.values()) == sorted(own[id] or "" for id in wrong)
    assert wrong == swap_texts(utterances, share=0.2, seed=3) != swap_texts(utterances, share=0.2, seed=4)
    write_texts(utterances, wrong, tmp_path / "m.jsonl")
    assert {u.id: u.text for u in read_manifest(tmp_path / "m.jsonl")} == own | wrong
    assert json.loads((tmp_path / "m.jsonl").read_text().splitlines()[0])["audio"] == "0.wav"


def test_phrases_end_where_silence_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An aligner that hears where sound ends makes no error on the last words of phrases."""
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "0.wav", rng.uniform(0.1, 0.3, 16_000 * 4), 16_000)
    words = [WordTime(f"w{i}", 0.4 * i, 0.4 * i + 0.3) for i in range(8)]

    def by_ear(model: object, samples: np.ndarray, text: str) -> list[WordTime]:
        silent = np.flatnonzero(np.diff((np.abs(samples) > 0).astype(int)) == -1)
        ends = [0.0] * 4 + [(silent[0] + 1) / 16_000] + [0.0] * 2 + [(silent[1] + 1) / 16_000]
        return [WordTime(word, 0.0, end) for word, end in zip(text.split(), ends, strict=True)]

    monkeypatch.setattr(alignment, "align_words", by_ear)
    errors = alignment.known_errors_ms(None, _utterances(tmp_path, 1)[0], words)  # type: ignore[arg-type]
    assert errors == pytest.approx([0.0, 0.0], abs=0.1)
