"""Aligning manifests: resumable, in processes, with wrong transcripts found and forced times taken over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import FIXTURES
from tests.corpus import write_corpus
from training import align, alignment
from training.alignment import AlignedUtterance, read_aligned
from training.manifest import ManifestError, WordTime

RIGHT = "AND SO MY FELLOW AMERICANS ASK NOT WHAT YOUR COUNTRY CAN DO FOR YOU"
WRONG = "THE QUICK BROWN FOX JUMPS OVER A LAZY DOG IN THE GARDEN EVERY DAY"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


@pytest.fixture
def silent_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights never stop talking, which takes its time."""
    monkeypatch.setattr(alignment, "transcribe_greedily", lambda model, tokenizer, x: [""] * len(x))


def _align(corpus: Path, output: str, times: Path | None = None, **options: Any) -> int:
    settings = align.AlignOptions(model=str(corpus / "w.pt"), limits=None, **options)
    return align.run(manifest=corpus / "m.jsonl", output=corpus / output, times=times, options=settings)


@pytest.mark.usefixtures("silent_teacher")
def test_aligning_goes_on_where_it_was_cut(corpus: Path, capsys: Any) -> None:
    """Lines that are there are kept, half a line is not, and nothing is done twice."""
    assert _align(corpus, "whole.jsonl") == 0
    lines = (corpus / "whole.jsonl").read_text().splitlines(keepends=True)
    kept = json.loads(lines[0])
    kept["text"] = "Kept as it was"
    (corpus / "cut.jsonl").write_text(json.dumps(kept) + "\n" + lines[1] + lines[2][:30])
    assert _align(corpus, "cut.jsonl") == 0
    again = (corpus / "cut.jsonl").read_text().splitlines()
    assert len(again) == 6
    assert json.loads(again[0])["text"] == "Kept as it was"
    assert set(read_aligned(corpus / "cut.jsonl")) == set(read_aligned(corpus / "whole.jsonl"))
    before = (corpus / "cut.jsonl").read_text()
    assert _align(corpus, "cut.jsonl") == 0
    assert (corpus / "cut.jsonl").read_text() == before


@pytest.mark.slow
def test_several_processes_find_the_same(corpus: Path, capsys: Any) -> None:
    """Order and results do not depend on how many there are."""
    _align(corpus, "one.jsonl", batch_size=1)
    _align(corpus, "two.jsonl", batch_size=1, processes=2)
    one, two = (read_aligned(corpus / f"{name}.jsonl") for name in ("one", "two"))
    assert list(one) == list(two)
    for id, each in one.items():
        assert [w.end_s for w in each.words] == pytest.approx([w.end_s for w in two[id].words], abs=0.05)


@pytest.mark.usefixtures("silent_teacher")
def test_broken_audio_and_long_audio_do_not_stop_the_rest(corpus: Path, capsys: Any) -> None:
    """They are named with their line, and the exit code says so."""
    (corpus / "s-c-0002.wav").write_bytes(b"broken")
    rows = [json.loads(line) for line in (corpus / "m.jsonl").read_text().splitlines()]
    rows[4]["duration"] = 40.0
    rows[5]["text"] = ""
    (corpus / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="s-c-0002"):
        assert _align(corpus, "a2.jsonl") == 1
    aligned = read_aligned(corpus / "a2.jsonl")
    assert set(aligned) == {"s-c-0000", "s-c-0001", "s-c-0003", "s-c-0005"}
    assert aligned["s-c-0005"].words == ()  # nothing is said there, which can be trained on
    printed = capsys.readouterr().out
    assert "m.jsonl:3: its audio cannot be read" in printed
    assert "m.jsonl:5: above 29.5 s" in printed


@pytest.mark.usefixtures("silent_teacher")
def test_forced_times_replace_weak_ones(corpus: Path, capsys: Any) -> None:
    """A CTM's ends are taken over, the spelling stays."""
    rows = ["s-c-0000 1 0.25 0.5 hello\n", "s-c-0000 1 0.9 0.35 world\n"]
    (corpus / "w.ctm").write_text("".join(rows))
    _align(corpus, "a2.jsonl", times=corpus / "w.ctm")
    aligned = read_aligned(corpus / "a2.jsonl")
    words = [(word.word, word.start_s, word.end_s) for word in aligned["s-c-0000"].words]
    assert words == [("Hello", 0.25, 0.75), ("world", 0.9, 1.25)]
    assert [word.end_s for word in aligned["s-c-0001"].words] != [0.75, 1.25]


def test_a_line_that_is_not_ours_is_named(tmp_path: Path) -> None:
    """File and line, and what to do."""
    good = AlignedUtterance("a", "Hi", (WordTime("Hi", 0.0, 0.5, 0.9),)).to_json()
    (tmp_path / "a.jsonl").write_text(f'{good}\n{{"id": "b"}}\n')
    with pytest.raises(ManifestError, match="a.jsonl:2"):
        read_aligned(tmp_path / "a.jsonl")


@pytest.mark.slow
def test_a_wrong_transcript_is_found_and_its_neighbour_is_not_hurt(tmp_path: Path, capsys: Any) -> None:
    """Real speech: the swapped text is kept out; the right one beside it in the window gets its times."""
    samples, rate = soundfile.read(FIXTURES / "jfk.flac")
    rows = []
    for id, text in (("right", RIGHT), ("wrong", WRONG)):
        soundfile.write(tmp_path / f"{id}.wav", samples[: int(7.8 * rate)], rate)
        rows.append({"id": id, "audio": f"{id}.wav", "duration": 7.8, "text": text, "speaker": "jfk"})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = align.AlignOptions()
    output = tmp_path / "a.jsonl"
    assert align.run(manifest=tmp_path / "m.jsonl", output=output, times=None, options=options) == 0
    assert set(read_aligned(output)) == {"right"}
    every = read_aligned(output, with_wrong=True)
    assert every["wrong"].wrong is not None
    right = every["right"]
    assert right.text.lower().startswith("and so my fellow americans")
    assert right.confidence > 0.6
    ends = [word.end_s for word in right.words]
    assert ends == sorted(ends)
    fellow = next(word for word in right.words if word.word == "fellow")
    assert np.abs(fellow.end_s - 1.7) < 0.4
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["n_aligned"], summary["n_wrong"]) == (1, 1)
    assert "m.jsonl:2" in (tmp_path / "a.wrong.tsv").read_text()
