"""Every layout in which recordings come is read with its texts, speakers and places; bad parts are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.manifest import ManifestError
from training.sources import Entry, Problem, SourceOptions, read_source
from training.sources.detect import find_layout
from training.sources.times import read_ctm, read_textgrid, read_times

TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "hello"
        intervals [2]:
            xmin = 0.5
            xmax = 0.7
            text = ""
        intervals [3]:
            xmin = 0.7
            xmax = 1.5
            text = "world"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1.5
            text = "HH"
"""


def _audio(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(8000, 0.1), 16_000)
    return path


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _json_lines(folder: Path) -> Path:
    rows = [{"id": "a", "audio": "a.wav", "text": "hello"}, {"audio_filepath": "b.wav", "text": "world"}]
    return _write(folder / "m.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _common_voice(folder: Path) -> Path:
    _audio(folder / "clips" / "a.wav")
    _audio(folder / "clips" / "b.wav")
    rows = 'client_id\tpath\tsentence\ns1\ta.wav\thello\ns1\tb.wav\tworld, "quoted\n'
    return _write(folder / "train.tsv", rows)


def _librispeech(folder: Path) -> Path:
    for name in ("a", "b"):
        _audio(folder / "19" / "198" / f"19-198-{name}.flac")
    _write(folder / "19" / "198" / "19-198.trans.txt", "19-198-a hello\n19-198-b world\n")
    return folder


def _ljspeech(folder: Path) -> Path:
    _audio(folder / "wavs" / "a.wav")
    _audio(folder / "wavs" / "b.wav")
    _write(folder / "metadata.csv", "a|hello|hello\nb|World 1|world one\n")
    return folder


def _audiofolder(folder: Path) -> Path:
    _audio(folder / "train" / "x" / "a.wav")
    _audio(folder / "train" / "b.wav")
    _write(folder / "train" / "metadata.csv", 'file_name,transcription\nx/a.wav,"hello, you"\nb.wav,world\n')
    return folder


def _beside(folder: Path) -> Path:
    _write(_audio(folder / "ann" / "a.wav").with_suffix(".txt"), "hello\n")
    _write(_audio(folder / "ann" / "b.wav").with_suffix(".lab"), "world")
    return folder


def _textgrids(folder: Path) -> Path:
    for name in ("a", "b"):
        _write(_audio(folder / "ann" / f"{name}.wav").with_suffix(".TextGrid"), TEXTGRID)
    return folder


def _ctm(folder: Path) -> Path:
    _audio(folder / "a.wav")
    _audio(folder / "b.wav")
    return _write(folder / "words.ctm", ";; comment\na 1 0.2 0.3 hello 0.9\nb 1 0.1 0.2 world\n")


@pytest.mark.parametrize(
    ("make", "layout", "texts", "speaker"),
    [
        (_json_lines, "jsonl", ["hello", "world"], None),
        (_common_voice, "table", ["hello", 'world, "quoted'], "s1"),
        (_librispeech, "librispeech", ["hello", "world"], "19"),
        (_ljspeech, "ljspeech", ["hello", "world one"], "corpus"),
        (_audiofolder, "audiofolder", ["hello, you", "world"], None),
        (_beside, "folder", ["hello\n", "world"], "ann"),
        (_textgrids, "textgrid", ["hello world", "hello world"], "ann"),
        (_ctm, "ctm", ["hello", "world"], None),
    ],
)
def test_a_layout_is_recognised_and_read(
    tmp_path: Path, make: Callable[[Path], Path], layout: str, texts: list[str], speaker: str | None
) -> None:
    """Found by its names, with texts in order and the speaker where the layout tells one."""
    source = make(tmp_path / "corpus")
    assert find_layout(source) == layout
    entries = list(read_source(source, SourceOptions()))
    assert [entry.text for entry in entries if isinstance(entry, Entry)] == texts
    assert {entry.speaker for entry in entries if isinstance(entry, Entry)} == {speaker}
    if layout != "jsonl":
        assert all(isinstance(entry, Entry) and entry.audio.is_file() for entry in entries)


def test_columns_are_mapped_by_options(tmp_path: Path) -> None:
    """Names or, without a header, numbers; audio lies where the option says."""
    _audio(tmp_path / "sounds" / "a.wav")
    named = _write(tmp_path / "named.csv", "Datei;Satz;Wer\na.wav;hallo;ann\n")
    options = SourceOptions(
        audio_column="Datei", text_column="Satz", speaker_column="Wer", audio_folder=tmp_path / "sounds"
    )
    (entry,) = read_source(named, options)
    assert isinstance(entry, Entry)
    assert (entry.text, entry.speaker, entry.audio.is_file()) == ("hallo", "ann", True)
    bare = _write(tmp_path / "bare.csv", "a.wav,hallo\n")
    options = SourceOptions(
        audio_column="1", text_column="2", has_header=False, audio_folder=tmp_path / "sounds"
    )
    (entry,) = read_source(bare, options)
    assert isinstance(entry, Entry)
    assert (entry.text, entry.place) == ("hallo", f"{bare}:1")


def test_bad_lines_are_named_and_do_not_stop_the_rest(tmp_path: Path) -> None:
    """File and line, in every kind of file."""
    lines = '{"audio": "a.wav"}\nnot json\n[1]\n{"text": "x"}\n{"audio": "b.wav", "text": "y"}\n'
    found = list(read_source(_write(tmp_path / "m.jsonl", lines), SourceOptions()))
    assert [type(each) for each in found] == [Entry, Problem, Problem, Problem, Entry]
    assert [each.place.rsplit(":", 1)[1] for each in found] == ["1", "2", "3", "4", "5"]
    rows = "audio,text\na.wav,hello\nb.wav\nc.wav,x\n"
    found = list(read_source(_write(tmp_path / "t.csv", rows), SourceOptions()))
    assert [type(each) for each in found] == [Entry, Problem, Entry]
    folder = _librispeech(tmp_path / "libri")
    (folder / "19" / "198" / "19-198-a.flac").unlink()
    missing, good = read_source(folder, SourceOptions())
    assert isinstance(missing, Problem)
    assert missing.place.endswith("trans.txt:1")
    assert isinstance(good, Entry)


def test_texts_without_audio_are_named(tmp_path: Path) -> None:
    """A transcript alone is a problem of its own."""
    _beside(tmp_path)
    _write(tmp_path / "ann" / "c.txt", "alone")
    *_, last = read_source(tmp_path, SourceOptions())
    assert isinstance(last, Problem)
    assert last.kind == "missing audio"
    assert last.place.endswith("c.txt")


def test_word_times_are_read(tmp_path: Path) -> None:
    """TextGrids leave out silence; CTM keeps confidences; a folder gives times by name."""
    grid = _write(tmp_path / "x" / "a.TextGrid", TEXTGRID)
    words = [(word.word, word.start_s, word.end_s) for word in read_textgrid(grid)]
    assert words == [("hello", 0.0, 0.5), ("world", 0.7, 1.5)]
    assert list(read_times(tmp_path)) == ["a"]
    ctm = read_ctm(_write(tmp_path / "w.ctm", "a 1 0.2 0.3 hello 0.9\na 1 0.0 0.1 oh\na 1 0.6 0.1 <eps>\n"))
    assert [(word.word, word.end_s, word.confidence) for word in ctm["a"]] == [
        ("oh", 0.1, 1.0),
        ("hello", 0.5, 0.9),
    ]


@pytest.mark.parametrize("content", ["a 1 0.2 hello\n", "a 1 x 0.3 hello\n", "a 1 -1 0.3 hello\n"])
def test_a_wrong_ctm_line_is_named(tmp_path: Path, content: str) -> None:
    """With file and line."""
    with pytest.raises(ManifestError, match="w.ctm:1"):
        read_ctm(_write(tmp_path / "w.ctm", content))


def test_a_damaged_textgrid_and_one_without_words_are_errors(tmp_path: Path) -> None:
    """The message tells which tiers there are."""
    with pytest.raises(ManifestError, match="not a readable TextGrid"):
        read_textgrid(_write(tmp_path / "a.TextGrid", "File type = nonsense"))
    other = TEXTGRID.replace('"words"', '"tones"')
    with pytest.raises(ManifestError, match="tones, phones"):
        read_textgrid(_write(tmp_path / "b.TextGrid", other))


def test_a_source_that_is_not_there_or_not_known(tmp_path: Path) -> None:
    """Said before anything is read."""
    with pytest.raises(ManifestError, match="no such file"):
        read_source(tmp_path / "nothing", SourceOptions())
    with pytest.raises(ManifestError, match="which layout"):
        read_source(_write(tmp_path / "a.xyz", ""), SourceOptions())
    with pytest.raises(ManifestError, match="wants a file"):
        read_source(tmp_path, SourceOptions(layout="table"))
