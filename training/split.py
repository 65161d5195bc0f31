"""``foresound data split``: what is trained on, what chooses the best checkpoint, and what is reported."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from asr import OptionError
from training.manifest import ManifestError, Utterance, json_lines, read_manifest

PARTS = ("train", "dev", "test")


def run(*, manifest: Path, output: Path, dev_min: float, test_min: float) -> int:
    """Write ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl``.

    Neighbouring recordings are alike, so dev and test are whole stretches: the end of the manifest is the
    test set, what lies before it the dev set.

    Args:
        manifest: A clean manifest.
        output: Folder for the three.
        dev_min: Minutes of the dev set.
        test_min: Minutes of the test set.

    Returns:
        0.

    Raises:
        ForesoundError: The manifest cannot be read or is too short for this.
    """
    if dev_min < 0 or test_min < 0:
        raise OptionError("minutes must not be negative")
    parts = cut(read_manifest(manifest), dev_s=60 * dev_min, test_s=60 * test_min)
    if not parts[0]:
        raise ManifestError(f"{manifest}: too short for {dev_min + test_min:g} minutes of dev and test")
    records = dict(json_lines(manifest))
    output.mkdir(parents=True, exist_ok=True)
    for name, part in zip(PARTS, parts, strict=True):
        path = output / f"{name}.jsonl"
        lines = []
        for utterance in part:
            record = {key: value for key, value in records[utterance.line].items() if key != "audio_filepath"}
            record |= {"id": utterance.id, "audio": os.path.relpath(utterance.audio, output.absolute())}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        path.write_text("".join(lines), encoding="utf-8")
        minutes = sum(utterance.duration_s for utterance in part) / 60
        print(f"{path}: {len(part)} utterances, {minutes:.1f} min")
    return 0


def cut(
    utterances: Sequence[Utterance], *, dev_s: float, test_s: float
) -> tuple[Sequence[Utterance], Sequence[Utterance], Sequence[Utterance]]:
    """Cut a list into train, dev and test, in this order.

    Args:
        utterances: In order.
        dev_s: Least length of dev.
        test_s: Least length of test.
    """
    first_test = _before_last(utterances, test_s)
    first_dev = _before_last(utterances[:first_test], dev_s)
    return utterances[:first_dev], utterances[first_dev:first_test], utterances[first_test:]


def _before_last(utterances: Sequence[Utterance], seconds: float) -> int:
    """Where the last so many seconds begin."""
    at, length_s = len(utterances), 0.0
    while at > 0 and length_s < seconds:
        at -= 1
        length_s += utterances[at].duration_s
    return at
