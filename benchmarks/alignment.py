"""Weak word times beside forced alignments: how far off are the ends of words?

Run as ``python -m benchmarks.alignment --manifest M.jsonl --alignments A.jsonl``. The last line of the output
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from asr.checkpoint import load_checkpoint
from benchmarks.machine import machine
from training.alignment import align_words
from training.manifest import load_audio, read_alignments, read_manifest


def main() -> None:
    """Align each utterance's forced words and print the errors of their ends in milliseconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--alignments", type=Path, required=True, help="forced word times")
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--limit", type=int, default=48, help="utterances (default: 48)")
    args = parser.parse_args()
    model = load_checkpoint(args.model).model
    forced = read_alignments(args.alignments)
    errors_ms: list[float] = []
    for utterance in tqdm([u for u in read_manifest(args.manifest) if u.id in forced][: args.limit]):
        words = forced[utterance.id]
        weak = align_words(model, load_audio(utterance), " ".join(word.word for word in words))
        errors_ms += [1000 * (w.end_s - f.end_s) for w, f in zip(weak, words, strict=True)]
    off = np.abs(np.array(errors_ms) - np.median(errors_ms))
    median_ms = round(float(np.median(errors_ms)))
    around_ms = {f"p{p}": round(float(np.percentile(off, p))) for p in (50, 90, 95)}
    print(f"{len(errors_ms)} words: median error {median_ms} ms; absolute error around it {around_ms}")
    result = {"n_words": len(errors_ms), "median_ms": median_ms, "around_median_ms": around_ms}
    print(json.dumps({**machine(), **result}))


if __name__ == "__main__":
    main()
