"""Manifests of speech (one JSON object a line), their audio, and files of word times.

A manifest line of ours is ``{"id", "audio", "duration", "text", "speaker", "set"}``; NeMo's
``{"audio_filepath", "duration", "text", "offset"}`` is read as well. Other keys are ignored. Paths are
relative to the manifest's folder. Every complaint names the file, the line and what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import soundfile
import soxr

from asr import SAMPLE_RATE, AudioError, ForesoundError


class ManifestError(ForesoundError):
    """A manifest or a file of word times that cannot be used; the text names file and line."""


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest."""

    id: str
    """Unique in its manifest; the audio file's stem where the line gives none."""
    audio: Path
    """Absolute path; :func:`read_manifest` does not check that it exists."""
    duration_s: float
    """Length as the manifest gives it, in seconds."""
    text: str | None
    """Reference transcript; None where it is unknown, empty where nothing is said."""
    speaker: str | None
    set: str
    """Name of the corpus part; the manifest's stem where the line gives none."""
    line: int
    """Line number in the manifest, from 1."""
    offset_s: float | None = None
    """Where in the file it begins, ``duration_s`` long; None is the whole file."""
    license: str | None = None
    """Under which it may be used, for the cards of what is trained on it."""


@dataclass(frozen=True)
class WordTime:
    """One spoken word and when it was said, in seconds from the start of its utterance."""

    word: str
    start_s: float
    end_s: float
    confidence: float = 1.0
    """How far the times can be trusted, 0 to 1."""


def read_manifest(path: str | Path, *, require_text: bool = False) -> list[Utterance]:
    """Read every line of a manifest.

    Args:
        path: A file with one JSON object a line; blank lines are skipped.
        require_text: Refuse lines whose transcript is unknown.

    Returns:
        The utterances in the file's order, at least one.

    Raises:
        ManifestError: The file cannot be read, holds no utterance or a line is wrong.
    """
    path = Path(path)
    utterances: list[Utterance] = []
    line_of_id: dict[str, int] = {}
    for line, record in json_lines(path):
        utterance = _utterance(path, line=line, record=record)
        if require_text and utterance.text is None:
            _fail(
                path, line, f"{utterance.id!r} has no text, which is needed here: add it or remove the line"
            )
        _check_new(path, line=line, id=utterance.id, line_of_id=line_of_id)
        utterances.append(utterance)
    if not utterances:
        raise ManifestError(f"{path}: holds no utterances; expected one JSON object a line")
    return utterances


def read_alignments(path: str | Path) -> dict[str, list[WordTime]]:
    """Read word times of utterances.

    Args:
        path: A file of lines ``{"id": ..., "words": [[word, start, end], ...]}`` with times in
            seconds and an optional fourth value per word, its confidence from 0 to 1.

    Returns:
        The word times by utterance id, in the file's order.

    Raises:
        ManifestError: The file cannot be read or a line is wrong.
    """
    path = Path(path)
    alignments: dict[str, list[WordTime]] = {}
    line_of_id: dict[str, int] = {}
    for line, record in json_lines(path):
        id = record.get("id")
        if not isinstance(id, str) or not id:
            _fail(path, line, f'"id" must be a non-empty text, found {id!r}')
        words = record.get("words")
        if not isinstance(words, list):
            _fail(path, line, f'"words" must be a list of [word, start, end], found {words!r:.60}')
        _check_new(path, line=line, id=id, line_of_id=line_of_id)
        alignments[id] = [_word_time(path, line=line, entry=entry) for entry in words]
    return alignments


def load_audio(utterance: Utterance) -> np.ndarray:
    """Read an utterance's audio as mono at 16 kHz.

    Args:
        utterance: Its ``audio`` may have any format soundfile reads, any rate and channels.

    Returns:
        float32 samples at 16 kHz, shape (n_samples,), the mean of the channels.

    Raises:
        AudioError: The file is missing, is not audio, is empty or holds NaN or infinite samples.
    """
    path = utterance.audio
    if not path.is_file():
        raise AudioError(f"{path}: no such audio file; correct the path or remove the line")
    try:
        samples, rate = _read_samples(utterance)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{path}: not audio that soundfile reads ({error})") from error
    if len(samples) == 0:
        raise AudioError(f"{path}: holds no samples; replace the file or remove the line")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        first_s = int(np.argmin(np.isfinite(mono))) / rate
        raise AudioError(f"{path}: the sample at {first_s:.3f} s is NaN or infinite")
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    return np.ascontiguousarray(mono, dtype=np.float32)


def _read_samples(utterance: Utterance) -> tuple[np.ndarray, int]:
    """The file's samples ``[S, channels]``, or those of the utterance's part of it, and their rate."""
    with soundfile.SoundFile(utterance.audio) as file:
        n_samples = -1
        if utterance.offset_s is not None:
            file.seek(min(round(utterance.offset_s * file.samplerate), file.frames))
            n_samples = round(utterance.duration_s * file.samplerate)
        return file.read(n_samples, dtype="float32", always_2d=True), file.samplerate


def _fail(path: Path, line: int, problem: str) -> NoReturn:
    raise ManifestError(f"{path}:{line}: {problem}")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON-lines file.

    Args:
        path: UTF-8; blank lines are skipped.

    Raises:
        ManifestError: The file cannot be read, or a line is no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
    # str.splitlines() would also split at characters that JSON strings may hold, such as U+2028.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{path}:{line}: not JSON ({error}); expected one object a line") from error
        if not isinstance(record, dict):
            _fail(path, line, f"expected a JSON object in braces, found {content.strip()[:60]!r}")
        yield line, record


def _check_new(path: Path, *, line: int, id: str, line_of_id: dict[str, int]) -> None:
    """Remember an id and refuse one that an earlier line had."""
    earlier = line_of_id.setdefault(id, line)
    if earlier != line:
        _fail(path, line, f'id {id!r} is already used in line {earlier}; give each line its own "id"')


def _utterance(path: Path, *, line: int, record: dict[str, Any]) -> Utterance:
    audio = record.get("audio", record.get("audio_filepath"))
    if not isinstance(audio, str) or not audio:
        _fail(path, line, f'"audio" (or "audio_filepath") must be a path, found {audio!r}')
    audio_path = (path.parent / audio).absolute()
    offset_s = None if record.get("offset") is None else _number(record["offset"])
    if record.get("offset") is not None and (offset_s is None or offset_s < 0):
        _fail(path, line, f'"offset" must be seconds from 0, found {record["offset"]!r}')
    return Utterance(
        id=_text(path, line=line, record=record, key="id") or audio_path.stem,
        audio=audio_path,
        duration_s=_duration_s(path, line=line, value=record.get("duration")),
        text=_text(path, line=line, record=record, key="text"),
        speaker=_text(path, line=line, record=record, key="speaker"),
        set=_text(path, line=line, record=record, key="set") or path.stem,
        line=line,
        offset_s=offset_s,
        license=_text(path, line=line, record=record, key="license"),
    )


def _text(path: Path, *, line: int, record: dict[str, Any], key: str) -> str | None:
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and key in ("id", "speaker"):
        return str(value)
    if value is None or isinstance(value, str):
        return value
    _fail(path, line, f'"{key}" must be a text or null, found {value!r:.60}')


def _number(value: object) -> float | None:
    """Return a finite number as float, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _duration_s(path: Path, *, line: int, value: object) -> float:
    duration_s = _number(value)
    if duration_s is None or duration_s <= 0:
        _fail(path, line, f'"duration" must be a positive number of seconds, found {value!r}')
    return duration_s


def _word_time(path: Path, *, line: int, entry: object) -> WordTime:
    if not isinstance(entry, list) or len(entry) not in (3, 4) or not isinstance(entry[0], str):
        _fail(
            path,
            line,
            f"each word must be [word, start, end] or [word, start, end, confidence], found {entry!r}",
        )
    start_s, end_s = _number(entry[1]), _number(entry[2])
    if start_s is None or end_s is None or not 0 <= start_s <= end_s:
        _fail(path, line, f"word times must be seconds with 0 <= start <= end, found {entry!r}")
    confidence = _number(entry[3]) if len(entry) == 4 else 1.0
    if confidence is None or not 0 <= confidence <= 1:
        _fail(path, line, f"a word's confidence must be from 0 to 1, found {entry!r}")
    return WordTime(entry[0], start_s=start_s, end_s=end_s, confidence=confidence)
