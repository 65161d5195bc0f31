"""Subtitles from segments: cut at pauses and sentence ends, written as SubRip or WebVTT.

A segment may be half a minute long, a subtitle may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unicodedata import category

from asr.events import SAMPLE_RATE, Final

_LINE_CHARS = 42  # a usual limit for subtitles, as in broadcasters' guidelines
_CUE_CHARS = 2 * _LINE_CHARS
_CUE_PAUSE = SAMPLE_RATE  # a silence of one second ends a subtitle
_MIN_CUE = SAMPLE_RATE // 10
_SENTENCE_ENDS = (".", "?", "!", "。", "？", "！")


def one_line(text: str) -> str:
    """Return a text without line breaks, control characters or surrounding blanks.

    Args:
        text: Recognised text.

    Returns:
        The same words on one line.
    """
    return " ".join("".join(" " if category(c) == "Cc" else c for c in text).split())


def srt(finals: Sequence[Final]) -> str:
    """Return segments as SubRip.

    Args:
        finals: In order.
    """
    return _srt([cue for final in finals for cue in _cues(final)])


def vtt(finals: Sequence[Final]) -> str:
    """Return segments as WebVTT.

    Args:
        finals: In order.
    """
    return _vtt([cue for final in finals for cue in _cues(final)])


def milliseconds(samples: int) -> int:
    """Return a time in whole milliseconds.

    Args:
        samples: At 16 kHz.
    """
    return round(1000 * (samples / SAMPLE_RATE))


@dataclass(frozen=True)
class _Cue:
    """A subtitle; times are in samples."""

    text: str
    start: int
    end: int


def _stamp(samples: int, *, mark: str, hours: bool) -> str:
    """Return HH:MM:SS and milliseconds after ``mark``; the hours may be left out while they are 0."""
    seconds, ms = divmod(milliseconds(samples), 1000)
    minutes, seconds = divmod(seconds, 60)
    n_hours, minutes = divmod(minutes, 60)
    head = f"{n_hours:02d}:" if hours or n_hours else ""
    return f"{head}{minutes:02d}:{seconds:02d}{mark}{ms:03d}"


def _srt(cues: Sequence[_Cue]) -> str:
    blocks = []
    for number, cue in enumerate(cues, start=1):
        start, end = (_stamp(at, mark=",", hours=True) for at in (cue.start, cue.end))
        # An arrow in the text would be read as a line of times.
        blocks.append(f"{number}\n{start} --> {end}\n{cue.text.replace('-->', '->')}\n")
    return "\n".join(blocks)


def _vtt(cues: Sequence[_Cue]) -> str:
    blocks = ["WEBVTT\n"]
    for cue in cues:
        start, end = (_stamp(at, mark=".", hours=False) for at in (cue.start, cue.end))
        blocks.append(f"{start} --> {end}\n{_escape_vtt(cue.text)}\n")
    return "\n".join(blocks)


def _cues(final: Final) -> Iterator[_Cue]:
    """Cut a segment into subtitles of at most two lines, at pauses and sentence ends."""
    words = [word for word in final.words if word.text.strip()]
    if not words:
        yield _Cue(_two_lines(one_line(final.text)), final.start, max(final.end, final.start + _MIN_CUE))
        return
    texts = _spaced_texts(final.text, [word.text for word in words])
    first = 0
    for i in range(1, len(words) + 1):
        text = one_line("".join(texts[first:i]))
        if i < len(words):
            grown = one_line("".join(texts[first : i + 1]))
            long_pause = words[i].start - words[i - 1].end > _CUE_PAUSE
            sentence_ends = len(text) >= _LINE_CHARS and text.endswith(_SENTENCE_ENDS)
            too_short = words[i].start - words[first].start < _MIN_CUE  # nobody could read it
            if too_short or (len(grown) <= _CUE_CHARS and not long_pause and not sentence_ends):
                continue
        start, end = words[first].start, words[i - 1].end
        limit = words[i].start if i < len(words) else max(end, final.end)
        yield _Cue(_two_lines(text), start, min(max(end, start + _MIN_CUE), max(limit, start + _MIN_CUE)))
        first = i


def _spaced_texts(text: str, words: Sequence[str]) -> list[str]:
    """Return each word with the blanks before it as in ``text`` (some scripts have none)."""
    spaced, position = [], 0
    for word in words:
        found = text.find(word, position)
        if found < 0 or text[position:found].strip():  # words and text disagree: trust the words
            return [f" {word}" for word in words]
        spaced.append(text[position : found + len(word)])
        position = found + len(word)
    return spaced


def _two_lines(text: str) -> str:
    """Break a long subtitle at the blank nearest to its middle."""
    blanks = [i for i, c in enumerate(text) if c == " "]
    if len(text) <= _LINE_CHARS or not blanks:
        return text
    cut = min(blanks, key=lambda i: abs(i - len(text) // 2))
    return f"{text[:cut]}\n{text[cut + 1 :]}"


def _escape_vtt(text: str) -> str:
    """Escape what WebVTT reads as markup (W3C WebVTT 1, section 4.2.2)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
