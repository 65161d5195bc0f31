"""Which utterances of a manifest a benchmark plays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.manifest import Utterance, read_manifest


def evenly_spread(manifest: Path, *, limit: int) -> list[Utterance]:
    """Utterances with a text, evenly spread over a manifest; those of half the limit are among them.

    Args:
        manifest: JSON lines.
        limit: How many at most.

    Returns:
        The utterances in order.

    Raises:
        ManifestError: The manifest cannot be read.
    """
    return spread([utterance for utterance in read_manifest(manifest) if utterance.text], limit=limit)


def spread(utterances: Sequence[Utterance], *, limit: int) -> list[Utterance]:
    """At most ``limit`` of some utterances, evenly spread; those of half the limit are among them."""
    n_chosen = min(limit, len(utterances))
    return [utterances[i * len(utterances) // n_chosen] for i in range(n_chosen)]
