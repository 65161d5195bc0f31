"""Streams a manifest through a recognizer: word error rate, word latency and speed.

What the numbers mean is defined in :mod:`training.metrics`. For them, audio is fed in blocks of 20 ms
whatever the model's chunk is, so that a word's time is when the audio allowed it and not when a big
block came. Texts are compared after Whisper's English normaliser, so references must be English.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from tqdm import tqdm

from asr import SAMPLE_RATE, AudioError, OptionError, Recognizer, Stream
from training.alignment import align_words
from training.breakdown import judge_words
from training.html_report import MeasuredModel, check_folder, write_report
from training.manifest import ManifestError, Utterance, WordTime, load_audio, read_alignments, read_manifest
from training.metrics import (
    NO_EDITS,
    WerResult,
    count_edits,
    play,
    transcribe,
    word_latencies,
)
from training.report import EvaluatedUtterance, StreamedUtterance, format_table, record, summarize
from training.spelling import spell_like_teacher

MAX_ALIGNED_S = 30.0  # Whisper's window; longer utterances get no weak alignment


@dataclass(frozen=True)
class Settings:
    """How utterances are streamed and what is measured besides."""

    chunk_ms: tuple[int, ...] = (300,)
    decoder: str = "whisper"
    beam_size: int = 1
    latency: str | float | None = None
    """The transducer's."""
    second_pass: bool = False
    """Stream once more with the second pass: WER and latency of the streamed text stay what they are."""
    offline: bool = True
    """Also transcribe with adapters off on the padded window."""
    right_context_ms: int | None = None
    """None is the usual one of the decoder and the chunk size."""

    def stream(self, recognizer: Recognizer, *, chunk_ms: int, second_pass: bool = False) -> Stream:
        """Return a fresh stream."""
        return recognizer.stream(
            decoder=self.decoder,
            latency=self.latency,
            chunk_ms=chunk_ms,
            right_context_ms=self.right_context_ms,
            beam_size=self.beam_size,
            second_pass=second_pass,
        )


def run(
    *,
    manifest: Path,
    model: str,
    adapter: str,
    decoder: str,
    chunk_ms: list[int],
    beam_size: int,
    second_pass: bool,
    limit: int | None,
    alignments: Path | None,
    workers: int,
    output: Path | None,
    offline: bool,
    head: str = "auto",
    latency: str | float | None = None,
    right_context_ms: int | None = None,
    weights: str = "auto",
    also: Sequence[str] = (),
    report: Path | None = None,
    load: Callable[[str, str, str, str], Recognizer] | None = None,
) -> int:
    """Stream a manifest through one model or several; print a table and, as the last line, one JSON object.

    Args:
        manifest: File that :func:`read_manifest` reads; lines without text are counted and skipped.
        model: Checkpoint name or path.
        adapter: ``auto``, ``none`` or a folder.
        decoder: The recognizer's decoder.
        chunk_ms: Chunk sizes; each gets a row, the first is the top level of the JSON object.
        beam_size: Hypotheses of the decoder.
        second_pass: Stream everything once more with the second pass and report the word error rate
            of its text beside that of the streamed text.
        limit: Evaluate only so many utterances, from the manifest's start.
        alignments: File of word times; utterances that it lacks are aligned weakly.
        workers: Processes; with more than one, each computes on one thread.
        output: File for one JSON line per utterance with its texts and latencies.
        offline: Also measure the same weights on the padded window with adapters off.
        head: ``auto``, ``none`` or a folder.
        latency: The transducer's, as in :meth:`asr.Recognizer.stream`.
        right_context_ms: As in :meth:`asr.Recognizer.stream`.
        weights: ``auto``, ``int8`` or ``fp32``.
        also: Other models to compare with, each ``MODEL`` or ``MODEL,ADAPTER``.
        report: Folder for ``report.html`` with playable clips, plots and ``report.json``.
        load: Gives the recognizer of a model, an adapter, a head and a format of weights (picklable), if not
            ``Recognizer.load``.

    Returns:
        0, or 1 when an audio file had to be skipped.

    Raises:
        ForesoundError: The manifest, the model, the adapter or an option cannot be used.
    """
    settings = Settings(tuple(chunk_ms), decoder, beam_size, latency, second_pass, offline, right_context_ms)
    _check_options(settings, limit=limit, workers=workers)
    utterances = read_manifest(manifest)
    with_text = [utterance for utterance in utterances if utterance.text is not None]
    if not with_text:
        raise ManifestError(f"{manifest}: no line has a text, so there is nothing to compare with")
    chosen = with_text[:limit]
    if report is not None:
        check_folder(report)
    shared = {"decoder": decoder, "beam_size": beam_size, "weights": weights}
    shared |= {"manifest": manifest.name, "workers": workers, "right_context_ms": right_context_ms}
    shared |= {"latency": latency} if decoder == "transducer" else {}
    shared["n_without_text"] = len(utterances) - len(with_text)
    forced = read_alignments(alignments) if alignments else {}
    measured = []
    with _create(output) as file:
        for name, its_adapter, its_head in [(model, adapter, head), *map(_parse_model, also)]:
            evaluated = evaluate(
                chosen,
                loader=partial(load or load_recognizer, name, its_adapter, its_head, weights),
                settings=settings,
                forced=forced,
                workers=workers,
            )
            results = _collect(evaluated, manifest=manifest, n=len(chosen), file=file, model=name)
            numbers = summarize(results, chunk_ms=settings.chunk_ms)
            numbers |= {"model": name, "adapter": its_adapter, **shared}
            numbers |= {"head": its_head} if decoder == "transducer" else {}
            measured.append(MeasuredModel(_title(name, its_adapter), numbers, results))
    _print(measured, report)
    return 1 if measured[0].numbers["n_failed"] else 0


def _print(measured: Sequence[MeasuredModel], report: Path | None) -> None:
    """Print the table and the JSON object, and write the report if there is to be one."""
    print(format_table([{"model": m.title, **row} for m in measured for row in m.numbers["runs"]]))
    numbers = measured[0].numbers
    if len(measured) > 1:
        numbers = {**numbers, "compared": [each.numbers for each in measured[1:]]}
    if report is not None:
        write_report(report, measured)
        print(f"report in {report / 'report.html'}")
    print(json.dumps(numbers))


def _collect(
    evaluated: Iterator[EvaluatedUtterance], *, manifest: Path, n: int, file: IO[str] | None, model: str
) -> list[EvaluatedUtterance]:
    """All results of a model; each is written, or its error said, when it is there."""
    results = []
    for result in _with_progress(evaluated, n):
        results.append(result)
        if result.error:
            tqdm.write(f"{manifest}:{result.utterance.line}: skipped: {result.error}", file=sys.stderr)
        elif file:
            file.write(json.dumps({"model": model, **record(result)}, ensure_ascii=False) + "\n")
    return results


def _parse_model(text: str) -> tuple[str, str, str]:
    """Model, adapter and head of ``MODEL`` or ``MODEL,ADAPTER``."""
    model, _, adapter = text.partition(",")
    return model, adapter or "auto", "auto"


def _title(model: str, adapter: str) -> str:
    return model if adapter == "auto" else f"{model} with {adapter}"


def load_recognizer(model: str, adapter: str, head: str = "auto", weights: str = "auto") -> Recognizer:
    """Return the recognizer of a model, an adapter, a head and a format of weights, on the CPU."""
    return Recognizer.load(model, adapter=adapter, head=head, weights=weights)


def evaluate(
    utterances: Sequence[Utterance],
    *,
    loader: Callable[[], Recognizer],
    settings: Settings,
    forced: dict[str, list[WordTime]],
    workers: int = 1,
) -> Iterator[EvaluatedUtterance]:
    """Evaluate utterances in order, in this process or in several.

    Args:
        utterances: All with a text.
        loader: Gives the recognizer; with several workers it must be picklable.
        settings: What to measure.
        forced: Word times by utterance id.
        workers: Processes; 1 = this one.

    Yields:
        One result per utterance; an unusable audio file gives a result with an error.

    Raises:
        ForesoundError: The model, the adapter or an option cannot be used.
    """
    recognizer = loader()
    for chunk_ms in settings.chunk_ms:
        settings.stream(recognizer, chunk_ms=chunk_ms)  # refuses bad options at once
    jobs = [(utterance, forced.get(utterance.id)) for utterance in utterances]
    if workers == 1:
        for utterance, times in jobs:
            yield evaluate_utterance(recognizer, utterance, settings=settings, forced=times)
        return
    del recognizer
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(loader, settings))
    try:
        yield from pool.map(_work, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


_worker: tuple[Recognizer, Settings] | None = None
"""What a worker process works with; None in the main process."""


def _start_worker(loader: Callable[[], Recognizer], settings: Settings) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = loader(), settings


def _work(job: tuple[Utterance, list[WordTime] | None]) -> EvaluatedUtterance:
    assert _worker is not None, "the pool's initializer did not run"
    recognizer, settings = _worker
    return evaluate_utterance(recognizer, job[0], settings=settings, forced=job[1])


def evaluate_utterance(
    recognizer: Recognizer, utterance: Utterance, *, settings: Settings, forced: list[WordTime] | None = None
) -> EvaluatedUtterance:
    """Measure one utterance at every chunk size; offline text and word times are computed once.

    Args:
        recognizer: The recognizer under test.
        utterance: Must have a text.
        settings: What to measure.
        forced: Its word times, if known.

    Returns:
        The measurements, or a result with an error when the audio cannot be used.
    """
    text = utterance.text
    assert text is not None, "the caller leaves out utterances without text"
    try:
        samples = load_audio(utterance)
    except AudioError as error:
        return EvaluatedUtterance(utterance, error=str(error))
    offline_text = recognizer.transcribe_offline(samples) if settings.offline else None
    times, source = reference_times(recognizer, samples, text=text, forced=forced, offline_text=offline_text)
    streamed = []
    for chunk_ms in settings.chunk_ms:
        stream = settings.stream(recognizer, chunk_ms=chunk_ms)
        played = play(stream, samples)
        second = None
        if settings.second_pass:
            second = transcribe(settings.stream(recognizer, chunk_ms=chunk_ms, second_pass=True), samples)
        streamed.append(
            StreamedUtterance(
                chunk_ms=chunk_ms,
                text=played.transcript.text,
                words=judge_words(played.transcript.words, reference=text),
                edits=count_edits(text, hypothesis=played.transcript.text),
                compute_s=played.compute_s,
                latencies=word_latencies(played.words, reference=times),
                frame_waits_ms=tuple(stream.waits.frames_ms()),
                word_waits_ms=tuple(stream.waits.words_ms(played.transcript.words)),
                second_pass_text=second,
                second_pass_edits=NO_EDITS if second is None else count_edits(text, hypothesis=second),
            )
        )
    return EvaluatedUtterance(
        utterance,
        duration_s=len(samples) / SAMPLE_RATE,
        reference_times=source,
        offline_text=offline_text,
        offline_edits=NO_EDITS if offline_text is None else count_edits(text, hypothesis=offline_text),
        streamed=tuple(streamed),
    )


def reference_times(
    recognizer: Recognizer,
    samples: np.ndarray,
    *,
    text: str,
    forced: list[WordTime] | None,
    offline_text: str | None,
) -> tuple[list[WordTime], str]:
    """Return when each word of a text was said.

    Args:
        recognizer: Its original Whisper makes weak alignments.
        samples: float32 at 16 kHz, shape (n_samples,).
        text: What was said.
        forced: Word times from a forced aligner; used as they are.
        offline_text: Offline Whisper's transcript, for the spelling of an upper-case ``text``.

    Returns:
        The times and their source: ``forced``, ``weak``, or ``none`` with no times where the audio
        or the text is too long for Whisper's window.
    """
    if forced is not None:
        return forced, "forced"
    if len(samples) > MAX_ALIGNED_S * SAMPLE_RATE:
        return [], "none"
    try:
        words = align_words(recognizer.base_model, samples, spell_like_teacher(text, offline_text or ""))
    except ValueError:
        return [], "none"
    return words, "weak"


def stream_wer(
    recognizer: Recognizer,
    utterances: Iterable[Utterance],
    *,
    chunk_ms: int,
    decoder: str = "whisper",
    beam_size: int = 1,
) -> WerResult:
    """Return the word error rate of really streaming, and nothing that costs extra.

    Args:
        recognizer: The recognizer under test.
        utterances: Those without text are left out.
        chunk_ms: Chunk size.
        decoder: The recognizer's decoder.
        beam_size: Hypotheses of the decoder.

    Returns:
        Edit counts over all utterances; the same as :func:`run` finds, which feeds smaller blocks.

    Raises:
        ForesoundError: An audio file or an option cannot be used.
    """
    total = WerResult()
    settings = Settings(decoder=decoder, beam_size=beam_size)
    for utterance in utterances:
        if utterance.text is not None:
            text = transcribe(settings.stream(recognizer, chunk_ms=chunk_ms), load_audio(utterance))
            total += count_edits(utterance.text, hypothesis=text)
    return total


def _check_options(settings: Settings, *, limit: int | None, workers: int) -> None:
    if not settings.chunk_ms:
        raise OptionError("no chunk size given; give at least one, such as 300")
    for name, value in (("limit", limit), ("workers", workers)):
        if value is not None and value < 1:
            raise OptionError(f"{name} must be at least 1, found {value}")


def _with_progress(evaluated: Iterator[EvaluatedUtterance], n: int) -> Iterator[EvaluatedUtterance]:
    """Pass results on while a bar on stderr shows their number and the WER so far."""
    edits = NO_EDITS
    with tqdm(total=n, unit="utterance", file=sys.stderr) as bar:
        for result in evaluated:
            if result.streamed:
                edits += result.streamed[0].edits
                bar.set_postfix_str(f"WER {100 * edits.wer:.1f} %", refresh=False)
            bar.update()
            yield result


def _create(path: Path | None) -> contextlib.AbstractContextManager[IO[str] | None]:
    if path is None:
        return contextlib.nullcontext()
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror or error})") from error
