"""Every format is read back by a reader that is not ours."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pysubs2
import pytest
import webvtt

from asr.events import SAMPLE_RATE, Final, SpeechStarted, Transcript, Word
from asr.subtitles import one_line
from clients.formats import AtomicFile, event_line, output_stems, render

LONG = (
    "And so, my fellow Americans, ask not what your country can do for you. Ask what you can do "
    "for your country, & that is <all> there is -> to say about it tonight, is it not? Yes."
)


def final(text: str, *, segment: int = 0, start_s: float = 0.0, word_s: float = 0.4) -> Final:
    words, at = [], round(start_s * SAMPLE_RATE)
    for word in text.split():
        end = at + round(0.8 * word_s * SAMPLE_RATE)
        words.append(Word(text=word, start=at, end=end, confidence=0.87654321, stable=True))
        at += round(word_s * SAMPLE_RATE)
    start, end = round(start_s * SAMPLE_RATE), at
    return Final(segment, text, tuple(words), start=start, end=end, second_pass=False, time=end)


@pytest.fixture
def transcript() -> Transcript:
    first = final(LONG)
    silence = final("", segment=1, start_s=first.end_s)
    second = final('He said "hi"\tand left.', segment=2, start_s=3661.5)
    return Transcript((first, silence, second), duration=second.end + 8000)


def document(transcript: Transcript, output_format: str) -> str:
    return render(transcript, output_format, file="a.wav", model="tiny.en", language="en")


def test_txt(transcript: Transcript) -> None:
    """One line per segment that says something."""
    assert document(transcript, "txt").splitlines() == [LONG, 'He said "hi" and left.']


def test_json(transcript: Transcript) -> None:
    """Segments and words carry their times in seconds under Whisper's keys."""
    result = json.loads(document(transcript, "json"))
    assert result["text"] == LONG + ' He said "hi" and left.'
    assert (result["file"], result["model"], result["language"]) == ("a.wav", "tiny.en", "en")
    assert result["duration"] == pytest.approx(transcript.duration_s)
    assert [segment["id"] for segment in result["segments"]] == [0, 2]
    assert result["segments"][1]["start"] == 3661.5
    words = result["segments"][1]["words"]
    assert words[0] == {"word": "He", "start": 3661.5, "end": 3661.82, "probability": 0.8765}


def test_tsv(transcript: Transcript) -> None:
    """Times are whole milliseconds; a tab in the text breaks no column."""
    text = document(transcript, "tsv")
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [(int(row["start"]), row["text"]) for row in rows] == [
        (0, LONG),
        (3_661_500, 'He said "hi" and left.'),
    ]


def check_cues(cues: list[tuple[int, int, str]], transcript: Transcript) -> None:
    """Cues are [start_ms, end_ms, text], in order, short, and say every word once."""
    assert " ".join(text for _, _, text in cues).split() == transcript.text.split()
    for (start, end, text), (next_start, _, _) in zip(cues, [*cues[1:], (10**9, 0, "")], strict=True):
        assert start < end <= next_start
        lines = text.split("\n")
        assert len(lines) <= 2 and max(map(len, lines)) <= 50
    assert cues[0][0] == 0 and cues[-1][0] == 3_661_500


def test_srt(transcript: Transcript) -> None:
    """pysubs2 reads short cues that hold the whole text."""
    subtitles = pysubs2.SSAFile.from_string(document(transcript, "srt"), format_="srt", keep_html_tags=True)
    check_cues([(cue.start, cue.end, cue.text.replace("\\N", "\n")) for cue in subtitles], transcript)


def test_vtt(transcript: Transcript) -> None:
    """webvtt reads the same cues, with markup characters escaped as the format demands."""
    text = document(transcript, "vtt")
    assert "&amp; that is &lt;all&gt; there is -&gt; to" in one_line(text)
    cues = webvtt.from_buffer(io.StringIO(text))
    plain = [cue.raw_text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for cue in cues]
    times = [(cue.start_in_seconds, cue.end_in_seconds) for cue in cues]
    assert times[-1][0] == pytest.approx(3661, abs=1)
    starts = [round(1000 * pysubs_time(cue.start)) for cue in cues]
    ends = [round(1000 * pysubs_time(cue.end)) for cue in cues]
    check_cues(list(zip(starts, ends, plain, strict=True)), transcript)


def pysubs_time(stamp: str) -> float:
    hours, minutes, seconds = stamp.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def test_cues_break_at_pauses_and_keep_scripts_without_blanks() -> None:
    """A silence ends a cue; words are cut out of the segment's text with its own spacing."""
    words = [Word("你好", 0, 8000, 1, True), Word("世界。", 8000, 16000, 1, True)]
    words += [Word("再见", 48000, 56000, 1, True)]
    segment = Final(0, "你好世界。再见", tuple(words), start=0, end=56000, second_pass=False, time=56000)
    text = document(Transcript((segment,), 56000), "srt")
    cues = pysubs2.SSAFile.from_string(text, format_="srt")
    assert [(cue.start, cue.end, cue.text) for cue in cues] == [(0, 1000, "你好世界。"), (3000, 3500, "再见")]


def test_words_that_disagree_with_the_text_and_words_that_lack() -> None:
    """A second pass may have other words than its text, or none with times."""
    odd = Final(0, "one two", (Word("eleven", 0, 8000, 1, True),), 0, 16000, True, 16000)
    none = Final(1, "three four", (), 16000, 32000, True, 32000)
    cues = pysubs2.SSAFile.from_string(document(Transcript((odd, none), 32000), "srt"), format_="srt")
    assert [cue.text for cue in cues] == ["eleven", "three four"]
    assert (cues[1].start, cues[1].end) == (1000, 2000)


def test_words_of_one_moment_make_no_empty_cue() -> None:
    """A burst of words with the same time becomes one cue that lasts, not many that last nothing."""
    words = tuple(Word(f"word{n}", 8000, 8000, 1, True) for n in range(40))
    text = " ".join(word.text for word in words)
    segment = Final(0, text, words, start=0, end=8000, second_pass=False, time=8000)
    cues = pysubs2.SSAFile.from_string(document(Transcript((segment,), 8000), "srt"), format_="srt")
    assert [(cue.start, cue.end) for cue in cues] == [(500, 600)]


@pytest.mark.parametrize("output_format", ["txt", "srt", "vtt", "tsv", "json"])
def test_an_empty_transcript_is_a_valid_document(output_format: str) -> None:
    """Ten milliseconds of nothing make files that readers accept."""
    text = document(Transcript((), 160), output_format)
    if output_format == "json":
        assert json.loads(text)["segments"] == []
    elif output_format == "vtt":
        assert list(webvtt.from_buffer(io.StringIO(text))) == []
    else:
        assert text.strip() == ("start\tend\ttext" if output_format == "tsv" else "")


def test_unknown_format() -> None:
    """jsonl is no document: its lines are events."""
    with pytest.raises(ValueError, match="jsonl"):
        document(Transcript((), 0), "jsonl")


def test_event_line() -> None:
    """An event is one line of JSON; the file's name comes first if it is told."""
    event = SpeechStarted(time=8000)
    assert json.loads(event_line(event)) == {"type": "speech_started", "time": 0.5}
    assert event_line(event, file="a b.wav").startswith('{"file": "a b.wav"')


def test_one_line_keeps_joiners_and_drops_controls() -> None:
    """Escape sequences cannot reach the terminal; scripts that need joiners stay whole."""
    assert one_line(" a\x1b[31m\nb\t می‌روم ") == "a [31m b می‌روم"


def test_output_stems_never_clash() -> None:
    """Inputs of one stem keep their suffix, and are numbered if that is not enough."""
    assert output_stems(["x/a.wav", "b.flac"]) == ["a", "b"]
    assert output_stems(["a.wav", "a.flac", "b.wav"]) == ["a.wav", "a.flac", "b"]
    assert output_stems(["x/a.wav", "y/A.wav", "y/A.wav"]) == ["a.wav", "A.wav-2", "A.wav-3"]
    tricky = ["a.wav.wav", "x/a.wav", "a.mp3", ".", "-"]
    stems = output_stems(tricky)
    assert len({stem.casefold() for stem in stems}) == len(tricky)


def test_atomic_file_appears_only_when_committed(tmp_path: Path) -> None:
    """An old file survives a failed write, and no temporary file stays."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), AtomicFile(path) as output:
        output.file.write("new")
        raise RuntimeError
    assert path.read_text() == "old"
    with AtomicFile(path) as output:
        output.file.write("new")
        output.commit()
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
