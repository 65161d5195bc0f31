"""Folders of recordings: transcripts beside the audio, LibriSpeech, LJSpeech, TextGrids, CTM."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from training.manifest import ManifestError
from training.sources.entries import AUDIO_SUFFIXES, Entry, Problem, SourceOptions, audio_files, find_audio
from training.sources.entries import read_text as read
from training.sources.times import read_ctm, read_textgrid

TEXT_SUFFIXES = (".txt", ".lab")


def read_folder(folder: Path, options: SourceOptions) -> Iterator[Entry | Problem]:
    """Read audio files with their transcript beside them, in a ``.txt`` or ``.lab`` of the same name.

    Args:
        folder: Searched with all folders in it; a folder in it names a speaker, unless one is given.
        options: ``speaker`` counts.
    """
    for path in audio_files(folder):
        beside = next((path.with_suffix(s) for s in TEXT_SUFFIXES if path.with_suffix(s).is_file()), None)
        text: str | None = None
        if beside is not None:
            content = read(beside)
            if isinstance(content, Problem):
                yield content
                continue
            text = content
        yield _found(path, text, folder=folder, place=beside or path, options=options)
    yield from _without_audio(folder, TEXT_SUFFIXES)


def read_textgrids(folder: Path, options: SourceOptions) -> Iterator[Entry | Problem]:
    """Read audio files with a TextGrid of their words beside them, as MFA writes them.

    Args:
        folder: Searched with all folders in it.
        options: ``speaker`` counts.
    """
    for path in audio_files(folder):
        grid = path.with_suffix(".TextGrid")
        if not grid.is_file():
            yield Problem(str(path), "without text", f"no {grid.name} beside it")
            continue
        try:
            words = read_textgrid(grid)
        except ManifestError as error:
            yield Problem(str(grid), "not readable", str(error).removeprefix(f"{grid}: "))
            continue
        text = " ".join(word.word for word in words)
        yield _found(path, text, folder=folder, place=grid, options=options)
    yield from _without_audio(folder, (".TextGrid",))


def read_ctm_source(path: Path, options: SourceOptions) -> Iterator[Entry | Problem]:
    """Read a CTM file as transcripts; the audio files are called after its recordings.

    Args:
        path: The file.
        options: ``audio_folder`` is where the audio lies; the file's own folder otherwise.
    """
    folder = options.audio_folder or path.parent
    by_stem = {audio.stem: audio for audio in audio_files(folder)}
    try:
        recordings = read_ctm(path)
    except ManifestError as error:
        place, _, message = str(error).partition(": ")
        yield Problem(place, "not readable", message)
        return
    for name, words in recordings.items():
        if name in by_stem:
            text = " ".join(word.word for word in words)
            yield Entry(by_stem[name].absolute(), text, str(path), id=name, speaker=options.speaker)
        else:
            yield Problem(str(path), "missing audio", f"no audio file called {name} below {folder}")


def read_librispeech(folder: Path, options: SourceOptions) -> Iterator[Entry | Problem]:
    """Read LibriSpeech's layout: ``SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`` beside the audio.

    Args:
        folder: Any folder above the chapters.
        options: ``speaker`` counts where a file's name holds none.
    """
    for transcripts in sorted(folder.rglob("*.trans.txt")):
        content = read(transcripts)
        if isinstance(content, Problem):
            yield content
            continue
        for line, row in enumerate(content.split("\n"), start=1):
            if not row.strip():
                continue
            place = f"{transcripts}:{line}"
            id, _, text = row.strip().partition(" ")
            audio = find_audio(transcripts.parent / id)
            if audio is None:
                yield Problem(place, "missing audio", f"no audio file called {id} in {transcripts.parent}")
                continue
            speaker = id.split("-")[0] if "-" in id else options.speaker
            yield Entry(audio.absolute(), text, place, id=id, speaker=speaker, set="librispeech")


def read_ljspeech(folder: Path, options: SourceOptions) -> Iterator[Entry | Problem]:
    """Read LJSpeech's layout: ``metadata.csv`` with lines ``id|text|normalised text``, audio in ``wavs``.

    Args:
        folder: The folder that holds both.
        options: ``speaker`` replaces the folder's name as the speaker's.
    """
    path = folder / "metadata.csv"
    content = read(path)
    if isinstance(content, Problem):
        yield content
        return
    speaker = options.speaker or folder.name
    for line, row in enumerate(content.split("\n"), start=1):
        if not row.strip():
            continue
        place = f"{path}:{line}"
        id, *texts = row.strip("\r").split("|")
        if not texts:
            yield Problem(place, "not readable", "expected id|text or id|text|normalised text")
            continue
        audio = find_audio(folder / "wavs" / id)
        if audio is None:
            yield Problem(place, "missing audio", f"no audio file called {id} in {folder / 'wavs'}")
            continue
        # The original text has case, marks and digits; training wants words as they are said.
        text = texts[-1] if re.search(r"\d", texts[0]) else texts[0]
        yield Entry(audio.absolute(), text, place, id=id, speaker=speaker, set="ljspeech")


def _found(path: Path, text: str | None, *, folder: Path, place: Path, options: SourceOptions) -> Entry:
    inside = path.relative_to(folder)
    speaker = options.speaker or (inside.parts[0] if len(inside.parts) > 1 else None)
    return Entry(
        path.absolute(), text, str(place), id="-".join(inside.with_suffix("").parts), speaker=speaker
    )


def _without_audio(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Problem]:
    """Transcripts that no audio file lies beside."""
    for path in sorted(each for each in folder.rglob("*") if each.suffix in suffixes):
        if find_audio(path.with_suffix("")) is None:
            kinds = ", ".join(sorted(AUDIO_SUFFIXES)[:4])
            yield Problem(str(path), "missing audio", f"no audio file ({kinds}, ...) of this name beside it")
