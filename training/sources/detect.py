"""Which layout a path has, and its reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from training.manifest import ManifestError
from training.sources.entries import Entry, Problem, SourceOptions
from training.sources.folders import (
    TEXT_SUFFIXES,
    read_ctm_source,
    read_folder,
    read_librispeech,
    read_ljspeech,
    read_textgrids,
)
from training.sources.tables import metadata_files, read_audiofolder, read_json_lines, read_table

Reader = Callable[[Path, SourceOptions], Iterator[Entry | Problem]]

LAYOUTS: dict[str, Reader] = {
    "jsonl": read_json_lines,
    "table": read_table,
    "ctm": read_ctm_source,
    "librispeech": read_librispeech,
    "ljspeech": read_ljspeech,
    "audiofolder": read_audiofolder,
    "textgrid": read_textgrids,
    "folder": read_folder,
}
_FILES = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "table", ".tsv": "table", ".ctm": "ctm"}


def read_source(path: Path, options: SourceOptions) -> Iterator[Entry | Problem]:
    """Read a source of recordings.

    Args:
        path: A file or a folder.
        options: ``layout`` is one of :data:`LAYOUTS`, or ``auto``.

    Returns:
        Entries and problems in the source's order.

    Raises:
        ManifestError: There is nothing at the path, or nothing says what it is.
    """
    if not path.exists():
        raise ManifestError(f"{path}: no such file or folder")
    layout = find_layout(path) if options.layout == "auto" else options.layout
    if path.is_dir() == (layout in ("jsonl", "table", "ctm")):
        wanted = "a file" if path.is_dir() else "a folder"
        raise ManifestError(f"{path}: the layout {layout!r} wants {wanted}")
    return LAYOUTS[layout](path, options)


def find_layout(path: Path) -> str:
    """The layout of a file or folder, by its names.

    Raises:
        ManifestError: No layout fits.
    """
    if path.is_file():
        if path.suffix.lower() not in _FILES:
            known = ", ".join(_FILES)
            raise ManifestError(f"{path}: which layout is this? Known are {known}; or give --layout")
        return _FILES[path.suffix.lower()]
    if (path / "wavs").is_dir() and (path / "metadata.csv").is_file():
        with (path / "metadata.csv").open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline()
        if "|" in first:
            return "ljspeech"
    if metadata_files(path):
        return "audiofolder"
    if next(path.rglob("*.trans.txt"), None):
        return "librispeech"
    has_text = any(next(path.rglob(f"*{suffix}"), None) for suffix in TEXT_SUFFIXES)
    if not has_text and next(path.rglob("*.TextGrid"), None):
        return "textgrid"
    return "folder"
