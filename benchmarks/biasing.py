"""Hotwords: how many rare words are recognised when they are listed, and what lists cost everything else.

Rare is what does not belong to the commonest words of a training manifest. Every utterance gets a list of its
own: its rare words, filled up with rare words of other utterances, which are not said in it. The texts are
those of a stream; utterances are streamed several at a time, which changes no text.

Run as ``python -m benchmarks.biasing --manifest test.jsonl --common-from train.jsonl``. The last line of the
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from tqdm import tqdm

from asr import SAMPLE_RATE, ForesoundError, Recognizer
from asr.batch import Step
from asr.biasing import DEFAULT_STRENGTH, Strength
from benchmarks.machine import machine
from benchmarks.utterances import spread
from training.evaluate import load_recognizer
from training.manifest import ManifestError, Utterance, load_audio, read_manifest
from training.metrics import NO_EDITS, WerResult, count_edits, normalize

MIN_CHARS = 4  # shorter words are no names that anybody would list
N_TOGETHER = 8  # streams that are advanced at once


@dataclass(frozen=True)
class Spoken:
    """An utterance to be recognised."""

    text: str
    rare: tuple[str, ...]
    """Its rare words in lower case, each once, in order."""
    distractors: tuple[str, ...]
    """Rare words that are not said in it, in an order drawn for it."""
    samples: np.ndarray

    def terms(self, n_terms: int) -> tuple[str, ...]:
        """Return a list of ``n_terms`` hotwords: its own rare words, as many as fit, among others."""
        terms = [*self.rare, *self.distractors][:n_terms]
        random.Random(self.text).shuffle(terms)
        return tuple(terms)


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    way: str
    """``boost``: the token trie; ``prompt``: the terms as the decoder's prompt; ``both``."""
    n_terms: int
    beam_size: int
    chunk_ms: int
    strength: Strength = DEFAULT_STRENGTH

    def recognise(self, recognizer: Recognizer, spoken: Sequence[Spoken]) -> list[str]:
        """Return the texts of utterances streamed at once."""
        steps = []
        for each in spoken:
            terms = each.terms(self.n_terms)
            stream = recognizer.stream(
                chunk_ms=self.chunk_ms,
                beam_size=self.beam_size,
                hotwords=terms if self.way in ("boost", "both") else (),
                hotword_strength=self.strength,
                prompt=", ".join(terms) if self.way in ("prompt", "both") else None,
            )
            steps.append(Step(stream, each.samples, "finish"))
        for outcome in recognizer.advance(steps):
            if isinstance(outcome, Exception):
                raise outcome
        return [step.stream.transcript.text for step in steps]


@dataclass(frozen=True)
class Counts:
    """What was counted over some utterances; parts add up with ``+``."""

    edits: WerResult = NO_EDITS
    n_rare: int = 0
    """Rare words said."""
    n_found: int = 0
    """Rare words said and recognised, each in its place."""
    n_false: int = 0
    """Words recognised that are on the utterance's longest list but were not said there."""

    def __add__(self, other: Counts) -> Counts:
        """Return the counts of both parts together."""
        return Counts(
            self.edits + other.edits,
            self.n_rare + other.n_rare,
            self.n_found + other.n_found,
            self.n_false + other.n_false,
        )


@dataclass
class Row:
    """A setting and what came of it."""

    setting: Setting
    counts: Counts = field(default_factory=Counts)
    cpu_s: float = 0.0
    texts: list[str] = field(default_factory=list)


def common_words(manifest: Path, *, n_words: int) -> set[str]:
    """Return the ``n_words`` commonest words of a manifest's texts, in lower case."""
    counts: Counter[str] = Counter()
    for utterance in read_manifest(manifest):
        counts.update((utterance.text or "").lower().split())
    return {word for word, _ in counts.most_common(n_words)}


def rare_words(text: str, common: set[str]) -> tuple[str, ...]:
    """Return a text's rare words: letters only, of some length, and left alone by the normaliser."""
    words = dict.fromkeys(text.lower().split())
    return tuple(
        word
        for word in words
        if word.isalpha() and len(word) >= MIN_CHARS and word not in common and normalize(word) == word
    )


def read_spoken(manifest: Path, common: set[str], *, limit: int, max_terms: int) -> list[Spoken]:
    """Read utterances of a manifest, evenly spaced, with their rare words and distractors.

    Args:
        manifest: Distractors are the rare words of all its texts.
        common: Words that are not rare.
        limit: How many utterances.
        max_terms: Length of the longest list.

    Returns:
        The utterances; the same call draws the same distractors.

    Raises:
        ForesoundError: The manifest or an audio file cannot be used.
    """
    utterances = [each for each in read_manifest(manifest) if each.text]
    pool = sorted({word for each in utterances for word in rare_words(each.text or "", common)})
    if len(pool) < max_terms:
        raise ManifestError(
            f"{manifest}: has {len(pool)} rare words, {max_terms} are needed; choose a larger manifest"
        )
    return [_spoken(each, common, pool, max_terms) for each in spread(utterances, limit=limit)]


def _spoken(utterance: Utterance, common: set[str], pool: Sequence[str], max_terms: int) -> Spoken:
    text = utterance.text or ""
    said = {*text.lower().split()}
    drawn = random.Random(utterance.id).sample(pool, k=min(len(pool), max_terms + len(said)))
    distractors = tuple(word for word in drawn if word not in said)
    return Spoken(text, rare_words(text, common), distractors, load_audio(utterance))


def count(spoken: Spoken, text: str, *, max_terms: int) -> Counts:
    """Compare one recognised text with what was said."""
    reference, hypothesis = normalize(spoken.text).split(), normalize(text).split()
    output = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    found_at: set[int] = set()
    right_at: set[int] = set()
    for chunk in output.alignments[0]:
        if chunk.type == "equal":
            found_at |= {*range(chunk.ref_start_idx, chunk.ref_end_idx)}
            right_at |= {*range(chunk.hyp_start_idx, chunk.hyp_end_idx)}
    rare_at = {i for i, word in enumerate(reference) if word in spoken.rare}
    listed = {*spoken.terms(max_terms)}
    false_at = {i for i, word in enumerate(hypothesis) if word in listed} - right_at
    edits = count_edits(spoken.text, hypothesis=text)
    return Counts(edits, n_rare=len(rare_at), n_found=len(rare_at & found_at), n_false=len(false_at))


def measure(recognizer: Recognizer, spoken: Sequence[Spoken], settings: Sequence[Setting]) -> list[Row]:
    """Recognise every utterance in every setting."""
    rows = [Row(setting) for setting in settings]
    max_terms = max(setting.n_terms for setting in settings)
    groups = [spoken[i : i + N_TOGETHER] for i in range(0, len(spoken), N_TOGETHER)]
    with tqdm(total=len(groups) * len(rows), unit="group", file=sys.stderr) as bar:
        for group in groups:
            for row in rows:
                began_s = time.process_time()
                texts = row.setting.recognise(recognizer, group)
                row.cpu_s += time.process_time() - began_s
                row.texts += texts
                for each, text in zip(group, texts, strict=True):
                    row.counts += count(each, text, max_terms=max_terms)
                bar.update()
    return rows


def numbers(row: Row, *, duration_s: float) -> dict[str, Any]:
    """Return a row's numbers as plain values for JSON."""
    setting, counts = row.setting, row.counts
    return {
        "way": setting.way,
        "n_terms": setting.n_terms,
        "beam_size": setting.beam_size,
        "strength": asdict(setting.strength),
        "wer": counts.edits.wer,
        "n_words": counts.edits.n_words,
        "n_rare": counts.n_rare,
        "n_found": counts.n_found,
        "recall": counts.n_found / counts.n_rare if counts.n_rare else None,
        "n_false": counts.n_false,
        "cpu_s_per_s": row.cpu_s / duration_s,
    }


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the numbers for people."""
    lines = ["way    beam terms  boost  recall of rare words    WER %  false terms  CPU s per s"]
    for each in results:
        recall = "-" if each["recall"] is None else f"{100 * each['recall']:.1f} %"
        boost = "{begin:g},{go_on:g}".format(**each["strength"])
        lines.append(
            f"{each['way']:6} {each['beam_size']:4} {each['n_terms']:5}  {boost:5}  "
            f"{recall:>7} ({each['n_found']:>4}/{each['n_rare']:<4})  {100 * each['wer']:8.2f}  "
            f"{each['n_false']:11}  {each['cpu_s_per_s']:11.3f}"
        )
    return "\n".join(lines)


def plan(args: argparse.Namespace) -> list[Setting]:
    """Return the settings to be measured: without terms every way is the same, so that comes once."""
    settings = []
    for beam_size in args.beams:
        base = Setting("boost", 0, beam_size, args.chunk_ms)
        settings += [base] if 0 in args.terms else []
        for n_terms in [n for n in args.terms if n > 0]:
            for way in args.ways:
                several = args.strength if args.strength and way != "prompt" else [DEFAULT_STRENGTH]
                settings += [replace(base, way=way, n_terms=n_terms, strength=each) for each in several]
    return settings


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _strength(text: str) -> Strength:
    begin, go_on = text.split(",")
    return Strength(begin=float(begin), go_on=float(go_on))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--manifest", type=Path, required=True, help="utterances with texts, JSON lines")
    add("--common-from", type=Path, required=True, help="manifest whose commonest words are not rare")
    add("--common", type=int, default=3000, help="how many words are common (default: 3000)")
    add("--limit", type=int, default=100, help="how many utterances (default: 100)")
    add("--model", default="tiny.en", help="checkpoint name or path (default: tiny.en)")
    add("--adapter", default="auto", help="auto, none or a folder (default: auto)")
    add("--chunk-ms", type=int, default=300, help="chunk size (default: 300)")
    add("--beams", type=_ints, default=[1, 4], help="beam sizes (default: 1,4)")
    add("--terms", type=_ints, default=[0, 10, 100], help="lengths of the lists (default: 0,10,100)")
    add("--ways", type=lambda text: text.split(","), default=["boost"], help="of boost, prompt, both")
    add("--strength", type=_strength, action="append", metavar="BEGIN,GO_ON", help="instead of the default")
    add("--output", type=Path, help="also write every row's texts there, JSON lines")
    return parser.parse_args(argv)


def main() -> int:
    """Command line of ``python -m benchmarks.biasing``."""
    args = parse()
    settings = plan(args)
    try:
        common = common_words(args.common_from, n_words=args.common)
        spoken = read_spoken(args.manifest, common, limit=args.limit, max_terms=max(args.terms))
        rows = measure(load_recognizer(args.model, args.adapter), spoken, settings)
    except ForesoundError as error:
        print(f"biasing: {error}", file=sys.stderr)
        return 2
    duration_s = sum(len(each.samples) for each in spoken) / SAMPLE_RATE
    results = [numbers(row, duration_s=duration_s) for row in rows]
    if args.output:
        texts = [
            json.dumps({**result, "texts": row.texts}) for result, row in zip(results, rows, strict=True)
        ]
        args.output.write_text("\n".join(texts) + "\n", encoding="utf-8")
    print(format_table(results))
    report = {"manifest": args.manifest.name, "n_utterances": len(spoken), "minutes": duration_s / 60}
    report |= {"model": args.model, "adapter": args.adapter, "chunk_ms": args.chunk_ms}
    report |= {"n_common": args.common, "rows": results, **machine()}
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
