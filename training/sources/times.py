"""Word times from forced aligners: MFA's TextGrids, CTM files, and our own JSON lines."""

from __future__ import annotations

from pathlib import Path

from training.manifest import ManifestError, WordTime, read_alignments

_NOT_WORDS = frozenset(["", "sil", "sp", "spn", "<eps>", "<sil>", "<unk>", "silence", "<p:>"])
_WORD_TIERS = ("words", "word", "ort", "ort-mau", "transcription")


def read_times(path: Path) -> dict[str, list[WordTime]]:
    """Word times by recording.

    Args:
        path: A CTM file, a TextGrid, a folder with TextGrids at any depth, or JSON lines as
            :func:`training.manifest.read_alignments` reads them.

    Returns:
        Times by utterance id; a file's name without suffix where it is a TextGrid.

    Raises:
        ManifestError: Something cannot be read.
    """
    if path.is_dir():
        grids = sorted(path.rglob("*.TextGrid"))
        if not grids:
            raise ManifestError(f"{path}: holds no .TextGrid files")
        return {grid.stem: read_textgrid(grid) for grid in grids}
    if path.suffix.lower() == ".textgrid":
        return {path.stem: read_textgrid(path)}
    if path.suffix.lower() == ".ctm":
        return read_ctm(path)
    return read_alignments(path)


def read_textgrid(path: Path) -> list[WordTime]:
    """The words of a TextGrid, from its tier ``words`` (or ``word``, ``ORT``), or its only interval tier.

    Args:
        path: A long or short TextGrid.

    Returns:
        The words in order; silence and noise marks are left out.

    Raises:
        ManifestError: It cannot be read, or which tier holds the words is not clear.
    """
    try:
        from praatio import textgrid
    except ModuleNotFoundError as error:
        raise ManifestError(f"{path}: TextGrids need praatio; install foresound[train]") from error
    try:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False, reportingMode="silence")
    except Exception as error:  # praatio raises many kinds for damaged files
        raise ManifestError(f"{path}: not a readable TextGrid ({type(error).__name__}: {error})") from error
    tiers = [tier for tier in grid.tiers if isinstance(tier, textgrid.IntervalTier)]
    named = [tier for name in _WORD_TIERS for tier in tiers if tier.name.lower().endswith(name)]
    if not named and len(tiers) != 1:
        names = ", ".join(tier.name for tier in grid.tiers) or "none"
        raise ManifestError(f"{path}: no interval tier called 'words' (tiers: {names})")
    return [
        WordTime(entry.label, start_s=max(0.0, entry.start), end_s=entry.end)
        for entry in (named or tiers)[0].entries
        if entry.label.strip().lower() not in _NOT_WORDS
    ]


def read_ctm(path: Path) -> dict[str, list[WordTime]]:
    """The words of a CTM file: lines ``recording channel start duration word [confidence]``.

    Args:
        path: The file; lines that begin with ``;;`` are comments.

    Returns:
        Words by recording, sorted by their start.

    Raises:
        ManifestError: It cannot be read or a line is wrong.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read ({error})") from error
    recordings: dict[str, list[WordTime]] = {}
    for line, row in enumerate(content.split("\n"), start=1):
        cells = row.split()
        if not cells or row.startswith(";;"):
            continue
        try:
            recording, _, start, length, word = cells[:5]
            begin_s, end_s = float(start), float(start) + float(length)
            confidence = float(cells[5]) if len(cells) > 5 and cells[5] != "NA" else 1.0
        except ValueError:
            raise ManifestError(
                f"{path}:{line}: expected 'recording channel start duration word [confidence]', "
                f"found {row.strip()[:60]!r}"
            ) from None
        if not (0 <= begin_s <= end_s and 0 <= confidence <= 1):
            raise ManifestError(f"{path}:{line}: times must not be negative, confidence from 0 to 1")
        words = recordings.setdefault(recording, [])
        if word.lower() not in _NOT_WORDS:
            words.append(WordTime(word, round(begin_s, 4), round(end_s, 4), confidence))
    return {name: sorted(words, key=lambda word: word.start_s) for name, words in recordings.items()}
