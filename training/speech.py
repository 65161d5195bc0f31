"""The recordings of a training run with their word times, and those that are replayed beside them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from asr.errors import OptionError
from training.alignment import AlignedUtterance, read_aligned
from training.config import DataConfig
from training.manifest import ManifestError, Utterance, read_manifest


@dataclass(frozen=True)
class Speech:
    """What a run hears."""

    utterances: list[Utterance]
    replayed: list[Utterance]  # general recordings, of which each epoch draws some
    aligned: dict[str, AlignedUtterance]  # of both, by id


def read_speech(data: DataConfig, *, with_text: bool = False) -> Speech:
    """Read and check the manifests of a run and their word times.

    Args:
        data: Names them.
        with_text: Leave out utterances without a text, which only distillation can use.

    Returns:
        What can be trained on.

    Raises:
        ManifestError: A file cannot be read, nothing in it can be trained on, or both manifests use an id.
        OptionError: Only one of the replay's two files is given, or its share is not below 1.
    """
    aligned = read_aligned(data.aligned)
    utterances = _usable(data.manifest, set(aligned), with_text=with_text)
    if data.replay_manifest is None and data.replay_aligned is None:
        return Speech(utterances, [], aligned)
    if data.replay_manifest is None or data.replay_aligned is None:
        raise OptionError("replay_manifest and replay_aligned go together: give both, or neither")
    if not 0 < data.replay_share < 1:
        raise OptionError(f"replay_share must be above 0 and below 1, not {data.replay_share}")
    general = read_aligned(data.replay_aligned)
    replayed = _usable(data.replay_manifest, set(general), with_text=with_text)
    if twice := sorted({u.id for u in utterances} & {u.id for u in replayed}):
        raise ManifestError(
            f"{data.replay_manifest}: {len(twice)} ids are also in {data.manifest}, such as {twice[0]!r}; "
            "leave those utterances out of one of them"
        )
    return Speech(utterances, replayed, {**general, **aligned})


def _usable(manifest: Path, aligned: set[str], *, with_text: bool) -> list[Utterance]:
    """The utterances of a manifest that can be trained on; warns of the others.

    Raises:
        ManifestError: There are none, or none of the transcripts is aligned.
    """
    utterances = [u for u in read_manifest(manifest) if u.text is not None or not with_text]
    missing = [u for u in utterances if not u.audio.is_file()]
    if missing:
        first = missing[0]
        warnings.warn(
            f"{manifest}: {len(missing)} audio files are missing, such as {first.audio}, line {first.line}; "
            "left out",
            stacklevel=3,
        )
    found = [u for u in utterances if u.audio.is_file()]
    usable = [u for u in found if u.text is None or u.id in aligned]
    if not any(u.id in aligned for u in usable):
        raise ManifestError(
            f"{manifest}: no utterance in it has word times; run foresound align on it, and give its output"
        )
    if len(usable) < len(found):
        n_left = len(found) - len(usable)
        warnings.warn(f"{manifest}: {n_left} utterances are not aligned, or wrong; left out", stacklevel=3)
    return usable
