"""Transcripts as txt, srt, vtt, tsv, json and jsonl, on stdout or in files.

The files look as users of ``whisper`` know them, but nothing here needs it or torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from asr.events import Event, Final, Transcript, event_to_dict
from asr.subtitles import milliseconds, one_line, srt, vtt

DOCUMENT_FORMATS = ("txt", "srt", "vtt", "tsv", "json")  # written when the file is done
FORMATS = (*DOCUMENT_FORMATS, "jsonl")


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
        text = srt(finals) if output_format == "srt" else vtt(finals)
    elif output_format == "tsv":
        rows = (
            f"{milliseconds(final.start)}\t{milliseconds(final.end)}\t{one_line(final.text)}"
            for final in finals
        )
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
        try:
            self.file.close()  # writes what is left, for which there may be no space
        finally:
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
