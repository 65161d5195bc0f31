"""Weak word times beside forced alignments: how far off are the ends of words?

Run as ``python -m benchmarks.alignment --manifest M.jsonl --alignments A.jsonl``. The last line of the output
is one JSON object. With ``--known``, phrases are cut out of the recordings and set between digital silence,
so that the ends of their last words are known to the sample, whatever the forced aligner thinks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm
from whisper.model import Whisper

from asr.checkpoint import load_checkpoint
from asr.events import SAMPLE_RATE
from benchmarks.machine import machine
from training.alignment import align_words
from training.manifest import Utterance, WordTime, load_audio, read_alignments, read_manifest

PHRASE_WORDS = 5
GAP_S = 0.5  # silence after each phrase
MAX_S = 28.0


def forced_errors_ms(model: Whisper, utterance: Utterance, words: Sequence[WordTime]) -> list[float]:
    """Errors of all words of an utterance against their forced ends."""
    weak = align_words(model, load_audio(utterance), " ".join(word.word for word in words))
    return [1000 * (w.end_s - f.end_s) for w, f in zip(weak, words, strict=True)]


def known_errors_ms(model: Whisper, utterance: Utterance, words: Sequence[WordTime]) -> list[float]:
    """Errors of the last words of phrases that silence of known place follows."""
    samples = load_audio(utterance)
    pieces, ends = [np.zeros(int(0.3 * SAMPLE_RATE), np.float32)], {}
    for first in range(0, len(words), PHRASE_WORDS):
        phrase = words[first : first + PHRASE_WORDS]
        pieces.append(samples[int(phrase[0].start_s * SAMPLE_RATE) : int(phrase[-1].end_s * SAMPLE_RATE)])
        ends[first + len(phrase) - 1] = sum(map(len, pieces)) / SAMPLE_RATE
        pieces.append(np.zeros(int(GAP_S * SAMPLE_RATE), np.float32))
    clip = np.concatenate(pieces)
    if len(clip) > MAX_S * SAMPLE_RATE:
        return []
    weak = align_words(model, clip, " ".join(word.word for word in words))
    return [1000 * (weak[i].end_s - end_s) for i, end_s in ends.items()]


def main() -> None:
    """Align utterances and print the errors of words' ends in milliseconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--alignments", type=Path, required=True, help="forced word times")
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--limit", type=int, default=48, help="utterances (default: 48)")
    parser.add_argument("--known", action="store_true", help="phrases between silence of known place")
    args = parser.parse_args()
    model = load_checkpoint(args.model).model
    forced = read_alignments(args.alignments)
    measure = known_errors_ms if args.known else forced_errors_ms
    errors_ms: list[float] = []
    for utterance in tqdm([u for u in read_manifest(args.manifest) if u.id in forced][: args.limit]):
        errors_ms += measure(model, utterance, forced[utterance.id])
    off = np.abs(np.array(errors_ms) - np.median(errors_ms))
    median_ms = round(float(np.median(errors_ms)))
    absolute_ms = {f"p{p}": round(float(np.percentile(np.abs(errors_ms), p))) for p in (50, 95)}
    around_ms = {f"p{p}": round(float(np.percentile(off, p))) for p in (50, 90, 95)}
    print(f"{len(errors_ms)} words: median error {median_ms} ms; absolute error {absolute_ms}")
    result = {"n_words": len(errors_ms), "median_ms": median_ms, "absolute_ms": absolute_ms}
    print(json.dumps({**machine(), **result, "around_median_ms": around_ms, "known": args.known}))


if __name__ == "__main__":
    main()
