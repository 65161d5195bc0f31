"""A small corpus of noise with invented words, and random base weights, for tests of training runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from tests.tiny import TINY_DIMS, tiny_whisper


def write_corpus(folder: Path) -> Path:
    """Write six recordings, their manifest ``m.jsonl``, word times ``a.jsonl`` and weights ``w.pt``."""
    rng = np.random.default_rng(0)
    manifest, aligned = [], []
    for i in range(6):
        name = f"s-c-{i:04}"
        soundfile.write(folder / f"{name}.wav", rng.standard_normal(24_000) * 0.1, 16_000)
        words = [["hello", 0.1, 0.5, 0.9], ["world", 0.6, 1.2, 0.9]]
        manifest.append(
            {"id": name, "audio": f"{name}.wav", "duration": 1.5, "text": "hello world", "speaker": "s"}
        )
        aligned.append({"id": name, "text": "hello world", "words": words})
    for name, rows in (("m", manifest), ("a", aligned)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_whisper()
    torch.save({"dims": vars(TINY_DIMS), "model_state_dict": model.state_dict()}, folder / "w.pt")
    return folder
