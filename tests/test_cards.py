"""Cards: what a model was trained on."""

from __future__ import annotations

import json
from pathlib import Path

from training.cards import trained_on
from training.config import DataConfig


def test_corpora_with_hours_and_licences(tmp_path: Path) -> None:
    """By set and licence, the largest first; a head counts what has a text; noises come last."""
    speech = [
        {"id": "a", "audio": "a", "duration": 3600, "set": "calls", "license": "own", "text": "x"},
        {"id": "b", "audio": "b", "duration": 1800, "set": "calls", "license": "own", "text": None},
        {"id": "c", "audio": "c", "duration": 7200, "text": "y"},
    ]
    noise = [{"id": "n", "audio": "n", "duration": 720, "set": "rain", "license": "CC0"}]
    for name, lines in (("speech", speech), ("noise", noise)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = DataConfig(
        tmp_path / "speech.jsonl", tmp_path / "a.jsonl", noise_manifest=tmp_path / "noise.jsonl"
    )
    rain = "rain, 0.2 h (CC0)"
    assert trained_on(data) == ["speech, 2.0 h (no licence given)", "calls, 1.5 h (own)", rain]
    assert trained_on(data, with_text=True)[1] == "calls, 1.0 h (own)"
