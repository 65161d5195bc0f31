"""Recordings listed in files: JSON lines (ours and NeMo's keys), CSV and TSV, Hugging Face audiofolders."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.sources.entries import Entry, Problem, SourceOptions, read_text

_USUAL = {  # names under which tables and records keep things, the likeliest first
    "audio": "audio audio_filepath audio_path file_name filename file path wav wav_path wav_filename",
    "text": "text transcript transcription sentence normalized_text raw_text words",
    "speaker": "speaker speaker_id client_id spk",
    "id": "id utt_id utterance_id segment_id",
    "duration": "duration duration_s length_s",
    "offset": "offset offset_s",
    "set": "set split",
}
_DELIMITERS = ("\t", "|", ";", ",")


def read_json_lines(path: Path, options: SourceOptions) -> Iterator[Entry | Problem]:
    """Read one JSON object a line; the keys are ours, NeMo's or those of an audiofolder's metadata.

    Args:
        path: The file.
        options: ``audio_column`` and the others name keys.
    """
    text = read_text(path)
    if isinstance(text, Problem):
        yield text
        return
    # str.splitlines() would also split at characters that JSON strings may hold, such as U+2028.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        place = f"{path}:{line}"
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield Problem(place, "not readable", f"not JSON ({error}); expected one object a line")
            continue
        if not isinstance(record, dict):
            yield Problem(place, "not readable", f"expected an object in braces, not {content.strip()[:40]}")
            continue
        yield _entry(record, path=path, place=place, options=options)


def read_table(path: Path, options: SourceOptions) -> Iterator[Entry | Problem]:
    """Read a CSV or TSV file; commas, semicolons, bars and tabs separate columns.

    Args:
        path: The file.
        options: Which columns hold what, and whether there is a header.
    """
    text = read_text(path)
    if isinstance(text, Problem):
        yield text
        return
    first = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first.count)
    file = io.StringIO(text, newline="")
    if delimiter in "\t|":  # there, quotation marks belong to the text
        rows = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(file, delimiter=delimiter)
    names: list[str] | None = None
    try:
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            place = f"{path}:{rows.line_num}"
            if names is None and options.has_header:
                names = [cell.strip() for cell in cells]
                continue
            names = names or [str(number) for number in range(1, len(cells) + 1)]
            if len(cells) != len(names):
                yield Problem(
                    place, "not readable", f"has {len(cells)} columns where {len(names)} are expected"
                )
                continue
            record = {name: cell for name, cell in zip(names, cells, strict=True) if cell.strip()}
            yield _entry(record, path=path, place=place, options=options, columns=names)
    except csv.Error as error:
        yield Problem(f"{path}:{rows.line_num}", "not readable", f"not a table from here on ({error})")


def read_audiofolder(folder: Path, options: SourceOptions) -> Iterator[Entry | Problem]:
    """Read a Hugging Face audiofolder: ``metadata.csv`` or ``metadata.jsonl`` in it or in its splits.

    Args:
        folder: The folder.
        options: Names of columns that are not the usual ones.
    """
    for path in metadata_files(folder):
        set_name = path.parent.name if path.parent != folder else None
        read = read_json_lines if path.suffix == ".jsonl" else read_table
        for entry in read(path, options):
            if isinstance(entry, Entry) and entry.set is None and set_name:
                yield Entry(**{**vars(entry), "set": set_name})
            else:
                yield entry


def metadata_files(folder: Path) -> list[Path]:
    """The metadata files of an audiofolder and of the folders in it."""
    return sorted(
        path
        for name in ("metadata.csv", "metadata.jsonl")
        for path in (*folder.glob(name), *folder.glob(f"*/{name}"))
    )


def _entry(
    record: Mapping[str, Any],
    *,
    path: Path,
    place: str,
    options: SourceOptions,
    columns: list[str] | None = None,
) -> Entry | Problem:
    audio = _value(record, "audio", options.audio_column)
    if not isinstance(audio, str) or not audio.strip():
        has = ", ".join((columns or list(record))[:12])
        wanted = options.audio_column or "audio"
        return Problem(
            place, "not readable", f"no path of audio under {wanted!r} (there are: {has}); see --audio-column"
        )
    text = _value(record, "text", options.text_column)
    if text is not None and not isinstance(text, str):
        return Problem(place, "not readable", f"the text must be a text or null, found {text!r:.60}")
    if options.text_column is not None and columns is not None and options.text_column not in columns:
        return Problem(place, "not readable", f"no column {options.text_column!r}; see --text-column")
    offset_s = _number(_value(record, "offset", None))
    speaker = _value(record, "speaker", options.speaker_column)
    id = _value(record, "id", options.id_column)
    set_name = _value(record, "set", None)
    return Entry(
        _locate(audio.strip(), path, options),
        text,
        place,
        id=None if id is None else str(id),
        speaker=options.speaker if speaker is None else str(speaker),
        set=None if set_name is None else str(set_name),
        duration_s=_number(_value(record, "duration", None)),
        offset_s=offset_s,
    )


def _value(record: Mapping[str, Any], what: str, column: str | None) -> Any:
    names = (column,) if column is not None else _USUAL[what].split()
    return next((record[name] for name in names if record.get(name) is not None), None)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _locate(audio: str, path: Path, options: SourceOptions) -> Path:
    """The file that a path in a table means; the usual folders beside the table are tried."""
    base = options.audio_folder or path.parent
    tried = [base / audio, base / "clips" / audio, base / "wavs" / audio, base / "wavs" / f"{audio}.wav"]
    return next((each for each in tried if each.is_file()), tried[0]).absolute()
