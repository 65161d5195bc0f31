"""Which utterances of a manifest a benchmark plays."""

from __future__ import annotations

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
    every = [utterance for utterance in read_manifest(manifest) if utterance.text]
    n_chosen = min(limit, len(every))
    return [every[i * len(every) // n_chosen] for i in range(n_chosen)]
