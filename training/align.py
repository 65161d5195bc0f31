"""``foresound align``: weak word times for a manifest, in batches and processes, resumable.

Every result is a line that is written when it is there; the same command goes on with what is missing.
Transcripts that the teacher contradicts are kept in the file as wrong, with the reason, and never trained on.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer

from asr import OptionError
from asr.bundle import base_of
from asr.checkpoint import load_checkpoint
from training.alignment import (
    AlignedUtterance,
    align_group,
    build_window,
    pack_windows,
    read_aligned,
    teacher_tokenizer,
)
from training.judge import Limits
from training.manifest import ManifestError, Utterance, WordTime, read_manifest
from training.sources.times import read_times

MAX_S = 29.5  # longer utterances do not fit the teacher's window
MAX_SHOWN = 10  # wrong transcripts on the screen


@dataclass(frozen=True)
class AlignOptions:
    """How a manifest is aligned."""

    model: str = "tiny.en"
    language: str = "en"
    device: str = "cpu"
    """Torch device; ``cuda`` spreads processes over all GPUs."""
    batch_size: int = 8
    """Windows of 30 s that are encoded together."""
    processes: int = 1
    limits: Limits | None = Limits()
    keep_spelling: bool = False
    """Leave plain transcripts without the teacher's case and punctuation."""


@dataclass(frozen=True)
class _Teacher:
    model: Whisper
    tokenizer: Tokenizer
    options: AlignOptions
    forced: Mapping[str, Sequence[WordTime]]

    @classmethod
    def load(cls, options: AlignOptions, forced: Mapping[str, Sequence[WordTime]], rank: int = 0) -> _Teacher:
        device = options.device
        if device == "cuda" and torch.cuda.device_count() > 1:
            device = f"cuda:{rank % torch.cuda.device_count()}"
        model = load_checkpoint(base_of(options.model), device=device).model
        return cls(model, teacher_tokenizer(model, options.language), options, forced)

    def align(self, groups: Sequence[Sequence[Utterance]]) -> list[AlignedUtterance]:
        windows = [window for window in map(build_window, groups) if window.utterances]
        try:
            return list(self._align(windows))
        except ValueError:  # a text that no window can hold; the others' windows are fine
            return [found for window in windows for found in self._align_alone(window.utterances)]

    def _align(self, windows: Sequence[object]) -> Iterator[AlignedUtterance]:
        return align_group(
            self.model,
            self.tokenizer,
            windows,  # type: ignore[arg-type]
            limits=self.options.limits,
            forced=self.forced,
            keep_spelling=self.options.keep_spelling,
        )

    def _align_alone(self, utterances: Sequence[Utterance]) -> Iterator[AlignedUtterance]:
        for utterance in utterances:
            try:
                yield from self._align([build_window([utterance])])
            except ValueError as error:
                yield AlignedUtterance(utterance.id, utterance.text or "", (), 1.0, wrong=str(error))


def run(
    *, manifest: Path, output: Path, times: Path | None, options: AlignOptions, limit: int | None = None
) -> int:
    """Align what the output does not hold yet, and report wrong transcripts.

    Args:
        manifest: Utterances; those without text are skipped.
        output: Gets one line per utterance.
        times: Word times from a forced aligner, which replace weak ones: CTM, TextGrids or JSON lines.
        options: How.
        limit: Only so many utterances, from the manifest's start.

    Returns:
        0, or 1 if some utterances could not be aligned.

    Raises:
        ForesoundError: A file, the model or an option cannot be used.
    """
    if options.processes < 1 or options.batch_size < 1:
        raise OptionError("processes and batch size must be at least 1")
    utterances = [u for u in read_manifest(manifest) if u.text is not None][:limit]
    if not utterances:
        raise ManifestError(f"{manifest}: no line has a text, so there is nothing to align")
    forced = read_times(times) if times else {}
    done = _resume(output)
    known = {utterance.id for utterance in utterances}
    todo = [u for u in utterances if u.id not in done]
    short = [u for u in todo if u.duration_s <= MAX_S]
    print(f"{len(utterances)} utterances, {len(known & set(done))} aligned before", file=sys.stderr)
    found = _align_all(short, options, forced)
    with (
        output.open("a", encoding="utf-8") as file,
        tqdm(total=len(short), unit="utterance", disable=None) as bar,
    ):
        for batch in found:
            file.writelines(aligned.to_json() + "\n" for aligned in batch)
            file.flush()
            bar.update(len(batch))
    return _report(manifest, output, utterances)


def _align_all(
    utterances: Sequence[Utterance],
    options: AlignOptions,
    forced: Mapping[str, Sequence[WordTime]],
) -> Iterator[list[AlignedUtterance]]:
    """Results batch by batch, from this process or from several."""
    silent = [AlignedUtterance(u.id, "", ()) for u in utterances if not (u.text or "").split()]
    if silent:
        yield silent
    groups = pack_windows([u for u in utterances if (u.text or "").split()])
    size = options.batch_size
    batches = [groups[first : first + size] for first in range(0, len(groups), size)]
    if not batches:
        return
    if options.processes == 1:
        teacher = _Teacher.load(options, forced)
        yield from map(teacher.align, batches)
        return
    context = multiprocessing.get_context("spawn")
    ranks = context.Queue()
    for rank in range(options.processes):
        ranks.put(rank)
    pool = ProcessPoolExecutor(
        options.processes, context, initializer=_start_worker, initargs=(options, forced, ranks)
    )
    try:
        yield from pool.map(_work, batches)
    finally:
        pool.shutdown(cancel_futures=True)


_worker: _Teacher | None = None
"""What a worker process works with; None in the main process."""


def _start_worker(
    options: AlignOptions,
    forced: Mapping[str, Sequence[WordTime]],
    ranks: multiprocessing.Queue[int],
) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = _Teacher.load(options, forced, ranks.get())


def _work(groups: Sequence[Sequence[Utterance]]) -> list[AlignedUtterance]:
    assert _worker is not None, "the pool's initializer did not run"
    return _worker.align(groups)


def _resume(output: Path) -> dict[str, AlignedUtterance]:
    """What was aligned before; a line that was cut in the middle is removed."""
    if not output.exists():
        return {}
    text = output.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        output.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    return read_aligned(output, with_wrong=True)


def _report(manifest: Path, output: Path, utterances: Sequence[Utterance]) -> int:
    """Print what was found, and write the wrong transcripts with their places into a table."""
    aligned = read_aligned(output, with_wrong=True)
    lines = {utterance.id: utterance.line for utterance in utterances}
    mine = [aligned[id] for id in lines if id in aligned]
    wrong = [each for each in mine if each.wrong is not None]
    missing = [utterance for utterance in utterances if utterance.id not in aligned]
    right = [each for each in mine if each.wrong is None]
    words = [word for each in right for word in each.words]
    summary = {
        "n_aligned": len(right),
        "n_wrong": len(wrong),
        "n_missing": len(missing),
        "n_words": len(words),
        "mean_confidence": round(sum(w.confidence for w in words) / max(1, len(words)), 4),
        "mean_distance": round(sum(each.distance for each in right) / max(1, len(right)), 4),
    }
    for each in sorted(wrong, key=lambda each: each.distance, reverse=True)[:MAX_SHOWN]:
        print(f"wrong  {manifest}:{lines[each.id]}: {each.text[:60]!r}: {each.wrong}")
    if len(wrong) > MAX_SHOWN:
        print(f"  ... and {len(wrong) - MAX_SHOWN} more")
    for utterance in missing[:MAX_SHOWN]:
        reason = f"above {MAX_S} s" if utterance.duration_s > MAX_S else "its audio cannot be read"
        print(f"not aligned  {manifest}:{utterance.line}: {reason}")
    table = output.with_suffix(".wrong.tsv")
    rows = [f"{manifest}:{lines[e.id]}\t{e.id}\t{e.distance:.3f}\t{e.text}\t{e.wrong}\n" for e in wrong]
    table.write_text("".join(["place\tid\tdistance\ttext\twrong\n", *rows]), encoding="utf-8")
    if wrong:
        print(
            f"all of them are in {table}; none is trained on. Correct the text and align again, or leave it."
        )
    print(json.dumps(summary))
    return 1 if missing else 0
