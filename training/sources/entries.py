"""What readers of sources yield: recordings with what is known of them, and problems with their place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

AUDIO_SUFFIXES = frozenset(
    [
        ".wav",
        ".flac",
        ".ogg",
        ".opus",
        ".oga",
        ".mp3",
        ".aiff",
        ".aif",
        ".aifc",
        ".au",
        ".caf",
        ".w64",
        ".rf64",
        ".sph",
        ".nist",
        ".snd",
    ]
)


@dataclass(frozen=True)
class Entry:
    """A recording as a source describes it; nothing of it is checked."""

    audio: Path
    text: str | None
    """None where the source gives none."""
    place: str
    """Where the source says so, as ``file:line`` or ``file``."""
    id: str | None = None
    speaker: str | None = None
    set: str | None = None
    duration_s: float | None = None
    """As the source states it."""
    offset_s: float | None = None
    """Where in the audio file the recording begins, ``duration_s`` long; None is the whole file."""


@dataclass(frozen=True)
class Problem:
    """Something in a source that cannot be used, or should be looked at."""

    place: str
    """``file:line`` or ``file``."""
    kind: str
    """One word or two, for counting."""
    message: str
    """What is wrong and what to do."""


@dataclass(frozen=True)
class SourceOptions:
    """How a source is to be read where it does not say so itself."""

    layout: str = "auto"
    audio_column: str | None = None
    """Name or number (from 1) of a table's column; None is guessed from usual names."""
    text_column: str | None = None
    speaker_column: str | None = None
    id_column: str | None = None
    has_header: bool = True
    """Whether a table's first line names its columns."""
    audio_folder: Path | None = None
    """What audio paths are relative to; None is the folder of the file that names them."""
    speaker: str | None = None
    """Of recordings whose source names none."""


def read_text(path: Path) -> str | Problem:
    """A text file's content, or why it cannot be read.

    Args:
        path: UTF-8, with or without a byte order mark.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        return Problem(str(path), "unreadable", f"cannot be read ({error.strerror or error})")
    except UnicodeDecodeError as error:
        return Problem(
            str(path), "unreadable", f"not UTF-8 text at byte {error.start}; save the file as UTF-8"
        )


def audio_files(folder: Path) -> list[Path]:
    """All audio files below a folder, in order of their paths; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def find_audio(stem: Path) -> Path | None:
    """The audio file with a given path without suffix, if there is one."""
    if not stem.parent.is_dir():
        return None
    found = [stem.parent / f"{stem.name}{suffix}" for suffix in sorted(AUDIO_SUFFIXES)]
    return next((path for path in found if path.is_file()), None)
