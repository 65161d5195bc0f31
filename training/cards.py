"""What a model's card says of the data that it was trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from training.config import DataConfig
from training.manifest import read_manifest


def trained_on(data: DataConfig, *, with_text: bool = False) -> list[str]:
    """Corpora with hours and licences, from the manifests' ``set`` and ``license``.

    Args:
        data: Its speech and its noises.
        with_text: Utterances without a text have not been used.

    Returns:
        A line for each corpus and licence, the largest first.
    """
    return [
        *_corpora(data.manifest, with_text),
        *(_corpora(data.replay_manifest, with_text) if data.replay_manifest else ()),
        *(_corpora(data.noise_manifest) if data.noise_manifest else ()),
    ]


@cache  # a card is written with every checkpoint
def _corpora(manifest: Path, with_text: bool = False) -> Sequence[str]:
    hours: dict[tuple[str, str | None], float] = defaultdict(float)
    for each in read_manifest(manifest):
        if each.text is not None or not with_text:
            hours[each.set, each.license] += each.duration_s / 3600
    by_size = sorted(hours.items(), key=lambda item: -item[1])
    return [f"{name}, {h:.1f} h ({license or 'no licence given'})" for (name, license), h in by_size]
