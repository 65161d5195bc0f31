"""``foresound data check``: what a source of recordings holds, what is wrong with it, and a clean manifest.

Nothing bad stops the rest: what cannot be used is named with its place and left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from asr import SAMPLE_RATE, AudioError
from training.check_report import print_report
from training.manifest import ManifestError, Utterance, load_audio
from training.sources import Entry, Problem, SourceOptions, read_source

MAX_S = 29.0  # longer recordings do not fit Whisper's window
MIN_S = 0.1
SILENT_PEAK = 1e-3  # of full scale
CLIPPED_SHARE = 0.01  # of samples at full scale
MAX_WORDS_PER_S, MAX_CHARS_PER_S = 6.0, 32.0  # hasty readers say about 4 words, 20 characters
MIN_WORDS_PER_S, LONG_S = 0.25, 5.0
PAUSES_DB = -35.0  # quieter than a recording's loud frames by this much is no speech

FATAL = frozenset(
    ["not readable", "missing audio", "broken audio", "silent", "too short", "too long", "duplicate"]
)
"""Kinds of problems with which a recording cannot be used."""
SUSPICIOUS = frozenset(["text too long", "text too short", "teacher disagrees"])
"""Kinds that say that text and audio do not belong together."""


@dataclass(frozen=True)
class Checked:
    """One recording that was looked at."""

    entry: Entry
    problems: tuple[Problem, ...] = ()
    duration_s: float = 0.0
    rate: int = 0
    n_channels: int = 0
    format: str = ""
    digest: str = ""
    """Of the samples."""

    @property
    def is_usable(self) -> bool:
        """Whether nothing forbids to use it."""
        return not any(problem.kind in FATAL for problem in self.problems)

    @property
    def is_clean(self) -> bool:
        """Whether it is usable and text and audio seem to belong together."""
        return self.is_usable and not any(problem.kind in SUSPICIOUS for problem in self.problems)


def run(
    *,
    source: Path,
    output: Path | None,
    options: SourceOptions,
    teacher: str | None,
    keep_suspicious: bool,
    workers: int,
    json_output: bool,
    device: str = "cpu",
) -> int:
    """Check a source, print what was found, and write a clean manifest and its list of problems.

    Args:
        source: A file or folder that :func:`training.sources.read_source` reads.
        output: The clean manifest; the problems go beside it, into ``NAME.problems.tsv``.
        options: How the source is read.
        teacher: A Whisper whose own transcripts are compared with the texts; None compares nothing.
        keep_suspicious: Keep recordings whose text hardly fits them.
        workers: Files that are read at a time.
        json_output: Print one JSON object instead of text.
        device: Where the teacher computes.

    Returns:
        0 if everything can be used, 1 if something was left out.

    Raises:
        ForesoundError: The source or the output cannot be used, or nothing in it can.
    """
    found = list(read_source(source, options))
    entries = [each for each in found if isinstance(each, Entry)]
    loose = [each for each in found if isinstance(each, Problem)]
    if not entries:
        more = f"; {loose[0].place}: {loose[0].message}" if loose else ""
        raise ManifestError(f"{source}: holds no recordings that could be found{more}")
    checked = find_duplicates(list(_probe_all(entries, workers=workers)))
    if teacher is not None:
        from training.teacher_check import ask_teacher

        checked = ask_teacher(checked, model=teacher, device=device)
    kept = [each for each in checked if (each.is_usable if keep_suspicious else each.is_clean)]
    problems = [*loose, *(problem for each in checked for problem in each.problems)]
    if output is not None:
        write_manifest(output, kept)
        _write_problems(output.with_suffix(".problems.tsv"), problems)
    print_report(checked, kept, problems, output=output, as_json=json_output)
    if not kept:
        raise ManifestError(f"{source}: nothing in it can be used; the problems are listed above")
    return 0 if len(kept) == len(checked) and not loose else 1


def _probe_all(entries: Sequence[Entry], *, workers: int) -> Iterator[Checked]:
    with ThreadPoolExecutor(workers) as pool:
        yield from tqdm(
            pool.map(probe, entries), total=len(entries), unit="file", file=sys.stderr, disable=None
        )


def probe(entry: Entry) -> Checked:
    """Read a recording's audio and compare it with what is said of it.

    Args:
        entry: From a source.

    Returns:
        What was found; never raises for a bad file.
    """
    kind = "broken audio" if entry.audio.is_file() else "missing audio"
    try:
        info = soundfile.info(entry.audio) if entry.audio.is_file() else None
        samples = load_audio(_as_utterance(entry))
    except (AudioError, soundfile.SoundFileError, OSError) as error:
        message = str(error).removeprefix(f"{entry.audio}: ")
        return Checked(entry, (Problem(entry.place, kind, f"{entry.audio}: {message}"),))
    assert info is not None, "load_audio refuses missing files"
    duration_s = len(samples) / SAMPLE_RATE
    problems = [
        Problem(entry.place, kind, message)
        for kind, message in (*_audio_problems(entry, samples), *_text_problems(entry.text, samples))
    ]
    digest = hashlib.sha256(samples.tobytes()).hexdigest()
    return Checked(
        entry, tuple(problems), duration_s, info.samplerate, info.channels, info.format, digest=digest
    )


def _as_utterance(entry: Entry) -> Utterance:
    length_s = entry.duration_s if entry.offset_s is not None and entry.duration_s else 1e6
    return Utterance("", entry.audio, length_s, entry.text, None, "", 0, offset_s=entry.offset_s)


def _audio_problems(entry: Entry, samples: np.ndarray) -> Iterator[tuple[str, str]]:
    duration_s, peak = len(samples) / SAMPLE_RATE, float(np.abs(samples).max())
    if duration_s < MIN_S:
        yield "too short", f"{duration_s:.3f} s of audio; remove it"
    if duration_s > MAX_S:
        yield (
            "too long",
            f"{duration_s:.1f} s, above {MAX_S:.0f} s; cut it in pauses, each piece with its text",
        )
    if peak < SILENT_PEAK:
        yield "silent", f"nothing louder than {peak:.1e} of full scale; was the right channel recorded?"
    clipped = float((np.abs(samples) > 0.999).mean())
    if clipped > CLIPPED_SHARE:
        yield "clipped", f"{100 * clipped:.1f} % of the samples are at full scale; record with less gain"
    stated_s = entry.duration_s
    if stated_s is not None and abs(stated_s - duration_s) > max(0.2, 0.05 * duration_s):
        yield "wrong duration", f"{duration_s:.2f} s of audio, but {stated_s:.2f} s are stated; corrected"


def _text_problems(text: str | None, samples: np.ndarray) -> Iterator[tuple[str, str]]:
    if text is None:
        yield "without text", "no transcript: it can be used for distillation only"
        return
    content, duration_s = " ".join(text.split()), len(samples) / SAMPLE_RATE
    n_words, speech_s = len(content.split()), _loud_s(samples)
    if n_words > MAX_WORDS_PER_S * duration_s + 2 or len(content) > MAX_CHARS_PER_S * duration_s + 12:
        yield "text too long", f"{n_words} words in {duration_s:.1f} s: {content[:50]!r}"
    elif speech_s > LONG_S and n_words < MIN_WORDS_PER_S * speech_s:
        yield "text too short", f"{n_words} words for {speech_s:.1f} s of sound: {content[:50]!r}"
    if match := re.search(r"[<\[{][^>\]}]*[>\]}]|[_#*=\\/|@^~]", content):
        yield "marks in text", f"{match[0]!r} is learned as it is written; remove what is not said"
    if re.search(r"\d", content):
        yield "digits in text", f"write numbers as your transcripts shall show them: {content[:50]!r}"


def _loud_s(samples: np.ndarray) -> float:
    """Seconds that are not pauses."""
    size = SAMPLE_RATE // 50
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    if not len(frames):
        return 0.0
    power_db = 10 * np.log10((frames**2).mean(axis=1) + 1e-12)
    return float((power_db > np.percentile(power_db, 95) + PAUSES_DB).sum() / 50)


def find_duplicates(checked: list[Checked]) -> list[Checked]:
    """Mark all but the first of recordings with the same samples.

    Args:
        checked: In the source's order.

    Returns:
        The same, later ones with a problem that names the first.
    """
    first: dict[str, Checked] = {}
    result = []
    for each in checked:
        earlier = first.setdefault(each.digest, each) if each.digest and each.is_usable else each
        if earlier is not each:
            same = "the same text" if earlier.entry.text == each.entry.text else "ANOTHER TEXT"
            message = f"the same audio as {earlier.entry.place}, with {same}; left out"
            problem = Problem(each.entry.place, "duplicate", message)
            each = replace(each, problems=(*each.problems, problem))
        result.append(each)
    return result


def write_manifest(path: Path, kept: Iterable[Checked]) -> None:
    """Write recordings as a manifest of ours, with measured durations, unique ids and relative paths.

    Args:
        path: The manifest; its folder must exist.
        kept: What to write.

    Raises:
        ManifestError: It cannot be written.
    """
    taken: set[str] = set()
    lines = []
    for each in kept:
        entry = each.entry
        id = name = entry.id or entry.audio.stem
        number = 2
        while id in taken:
            id, number = f"{name}-{number}", number + 1
        taken.add(id)
        record = {
            "id": id,
            "audio": os.path.relpath(entry.audio, path.absolute().parent),
            "duration": round(each.duration_s, 3),
            "text": None if entry.text is None else " ".join(entry.text.split()),
            "speaker": entry.speaker,
            "set": entry.set or path.stem,
        }
        if entry.offset_s is not None:
            record["offset"] = entry.offset_s
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    _write(path, "".join(lines))


def _write_problems(path: Path, problems: Sequence[Problem]) -> None:
    rows = ["place\tkind\tmessage\n"]
    rows += [f"{p.place}\t{p.kind}\t{' '.join(p.message.split())}\n" for p in problems]
    _write(path, "".join(rows))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be written ({error.strerror or error})") from error
