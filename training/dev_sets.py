"""Sets that a run is judged on, read whole before its first step, and streamed by all of its processes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr.errors import AudioError
from asr.recognizer import Recognizer
from training.config import RunConfig
from training.manifest import ManifestError, Utterance, load_audio, read_manifest
from training.metrics import NO_EDITS, WerResult, count_edits, transcribe
from training.runs import every_nth
from training.workers import Workers


@dataclass(frozen=True)
class DevSet:
    """Recordings with texts."""

    name: str
    utterances: tuple[Utterance, ...]
    audio: tuple[np.ndarray, ...]
    """Float32 ``[S]`` at 16 kHz of each."""

    def wer(self, recognizer: Recognizer, *, chunk_ms: int, workers: Workers) -> WerResult:
        """Edits of really streaming the set; each process streams its part.

        Args:
            recognizer: What is judged.
            chunk_ms: Chunk size.
            workers: The processes of the run.

        Returns:
            Edit counts over the whole set, the same in all processes.
        """
        total = NO_EDITS
        mine = slice(workers.rank, None, workers.n_ranks)
        for utterance, samples in zip(self.utterances[mine], self.audio[mine], strict=True):
            text = transcribe(recognizer.stream(chunk_ms=chunk_ms), samples)
            total += count_edits(utterance.text or "", hypothesis=text)
        counts = (total.n_words, total.substitutions, total.deletions, total.insertions)
        return WerResult(*(round(count) for count in workers.sum(counts)))


def load_dev_sets(config: RunConfig) -> list[DevSet]:
    """Read the sets that a run names.

    Args:
        config: ``dev_manifest`` and ``general_manifest`` count.

    Returns:
        Those that are given, called ``dev`` and ``general``, in this order.

    Raises:
        ManifestError: A manifest cannot be read, or nothing in it can be judged.
    """
    named = (("dev", config.dev_manifest), ("general", config.general_manifest))
    return [load_dev_set(name, path, limit=config.dev_limit) for name, path in named if path]


def with_text(path: Path) -> list[Utterance]:
    """The utterances of a manifest that have a text; the others are counted in a warning.

    Raises:
        ManifestError: The manifest cannot be read or no line has a text.
    """
    utterances = read_manifest(path)
    known = [utterance for utterance in utterances if utterance.text is not None]
    if not known:
        raise ManifestError(f"{path}: no line has a text, so there is nothing to judge by")
    if len(known) < len(utterances):
        n_mute = len(utterances) - len(known)
        warnings.warn(f"{path}: {n_mute} lines without text are left out of the dev set", stacklevel=2)
    return known


def load_dev_set(name: str, path: Path, *, limit: int) -> DevSet:
    """Read a set with its audio; what cannot be used is left out with a warning.

    Args:
        name: What it is called in logs.
        path: A manifest.
        limit: At most so many utterances, spread evenly.

    Raises:
        ManifestError: The manifest cannot be read, or nothing in it can be judged.
    """
    utterances, audio = [], []
    for utterance in every_nth(with_text(path), limit):
        try:
            audio.append(load_audio(utterance))
        except AudioError as error:
            warnings.warn(f"{path}:{utterance.line}: left out of the dev set: {error}", stacklevel=2)
            continue
        utterances.append(utterance)
    if not utterances:
        raise ManifestError(f"{path}: none of its audio files can be read")
    return DevSet(name, tuple(utterances), tuple(audio))
