"""Transcripts as txt, srt, vtt, tsv, json and jsonl, on stdout or in files.

The files look as users of ``whisper`` know them, but nothing here needs it or torch. Subtitles
are cut: a segment may be half a minute long, a subtitle may not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO
from unicodedata import category

from asr.events import SAMPLE_RATE, Event, Final, Transcript, event_to_dict

DOCUMENT_FORMATS = ("txt", "srt", "vtt", "tsv", "json")  # written when the file is done
FORMATS = (*DOCUMENT_FORMATS, "jsonl")

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


def event_line(event: Event, *, file: str | None = None) -> str:
    """Return an event as one line of JSON without its line break.

    Args:
        event: Any event.
        file: The input's name, put first where several inputs share one output.
    """
    fields = event_to_dict(event)
    return json.dumps(fields if file is None else {"file": file, **fields})


def render(
    transcript: Transcript, output_format: str, *, file: str, model: str, language: str | None = None
) -> str:
    """Return a whole transcript in one of :data:`DOCUMENT_FORMATS`.

    Args:
        transcript: What was recognised.
        output_format: txt, srt, vtt, tsv or json.
        file: The input's name, told in json.
        model: The recogniser's name, told in json.
        language: The language asked for, told in json.

    Returns:
        The text of the document, with a line break at its end.

    Raises:
        ValueError: Unknown format.
    """
    if output_format not in DOCUMENT_FORMATS:
        raise ValueError(f"output_format is '{output_format}'; expected one of {DOCUMENT_FORMATS}")
    finals = [final for final in transcript.segments if final.text.strip()]
    if output_format in ("srt", "vtt"):
        cues = [cue for final in finals for cue in _cues(final)]
        text = _srt(cues) if output_format == "srt" else _vtt(cues)
    elif output_format == "tsv":
        rows = (f"{_ms(final.start)}\t{_ms(final.end)}\t{one_line(final.text)}" for final in finals)
        text = "\n".join(("start\tend\ttext", *rows))
    elif output_format == "txt":
        text = "\n".join(one_line(final.text) for final in finals)
    else:
        result = {
            "text": one_line(transcript.text),
            "segments": [_segment(final) for final in finals],
            "language": language,
            "file": file,
            "model": model,
            "duration": round(transcript.duration_s, 3),
        }
        text = json.dumps(result)
    return text.rstrip("\n") + "\n"


def output_stems(names: Sequence[str]) -> list[str]:
    """Return one file name without suffix per input, all different.

    Inputs of one stem keep their suffix (``a.wav`` and ``a.flac`` become ``a.wav`` and
    ``a.flac``); what still clashes is numbered.

    Args:
        names: Inputs as given on the command line.

    Returns:
        Names in the same order. They differ even where the file system ignores case.
    """
    stems = [Path(name).stem for name in names]
    counts: dict[str, int] = {}
    for stem in stems:
        counts[stem.casefold()] = counts.get(stem.casefold(), 0) + 1
    unique: list[str] = []
    taken = {stem for stem, count in counts.items() if count == 1}
    for name, stem in zip(names, stems, strict=True):
        if counts[stem.casefold()] == 1:
            unique.append(stem)
            continue
        candidate, number = Path(name).name, 2
        while candidate.casefold() in taken:
            candidate, number = f"{Path(name).name}-{number}", number + 1
        taken.add(candidate.casefold())
        unique.append(candidate)
    return unique


class AtomicFile:
    """A text file that appears under its name only when it is complete.

    Used in a ``with`` statement: without :meth:`commit` nothing is left behind.
    """

    def __init__(self, path: Path) -> None:
        """Open a temporary file next to the final one.

        Args:
            path: The final name; an existing file is replaced by :meth:`commit`.
        """
        self.path = path
        # Not tempfile: its files are private to the user, ours get the usual permissions.
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.file: TextIO = self._temporary.open("w", encoding="utf-8")

    def __enter__(self) -> AtomicFile:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop what was not committed."""
        self.file.close()
        self._temporary.unlink(missing_ok=True)

    def commit(self) -> None:
        """Close the file and give it its name."""
        self.file.close()
        os.replace(self._temporary, self.path)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Args:
        path: The file; replaced if it exists.
        text: Its content.
    """
    with AtomicFile(path) as output:
        output.file.write(text)
        output.commit()


@dataclass(frozen=True)
class _Cue:
    """A subtitle; times are in samples."""

    text: str
    start: int
    end: int


def _ms(samples: int) -> int:
    return round(1000 * (samples / SAMPLE_RATE))


def _stamp(samples: int, *, mark: str, hours: bool) -> str:
    """Return HH:MM:SS and milliseconds after ``mark``; the hours may be left out while they are 0."""
    seconds, ms = divmod(_ms(samples), 1000)
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


def _segment(final: Final) -> dict[str, Any]:
    """Return a segment with the keys of Whisper's JSON."""
    words = [
        {
            "word": word.text,
            "start": round(word.start_s, 3),
            "end": round(word.end_s, 3),
            "probability": round(word.confidence, 4),
        }
        for word in final.words
    ]
    return {
        "id": final.segment,
        "start": round(final.start_s, 3),
        "end": round(final.end_s, 3),
        "text": one_line(final.text),
        "second_pass": final.second_pass,
        "words": words,
    }


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
