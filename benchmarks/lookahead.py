"""Word errors against how far frames look ahead: table, plot and JSON line over heads and dial positions.

Each line of the plan is a row, such as ``{"name": "adaptive", "head": "runs/head/best", "latency": "low",
"chunk_ms": 300}``; a row without a head is Whisper's decoder. Rows of one name and chunk size are a line in
the plot. What the numbers mean is defined in :mod:`training.metrics`. Finished rows are kept in ``--output``;
the same command goes on where it stopped.

``--encode-once`` compares many heads cheaply: the causal encoder's frames, which are the same for all of
them, are computed once per chunk size, and streaming begins at the head. Texts differ from whole streams only
in what voice activity makes of silence; processor time is then the head's alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from asr import SAMPLE_RATE, Event, ForesoundError, OptionError, Recognizer, Stream, Word
from asr.batch import Step
from asr.chunking import FRAME_MS, Chunking
from asr.encoder import FRAME_SAMPLES
from asr.recognizer import WAITING_CONTEXT_MS
from asr.transducer_reader import EmissionTiming
from asr.waits import Waits
from asr.words import Vocabulary, build_words
from benchmarks.lookahead_plot import draw
from benchmarks.machine import machine
from benchmarks.utterances import evenly_spread
from training.alignment import teacher_tokenizer
from training.evaluate import load_recognizer, reference_times
from training.head_data import FeatureMaker
from training.head_evaluation import Encoded, encode, stream
from training.head_setup import Frozen
from training.manifest import WordTime, load_audio, read_alignments
from training.metrics import EmissionLog, count_edits, word_latencies
from training.report import StreamedUtterance, summarize_streams

BLOCK = SAMPLE_RATE // 50  # audio is heard in blocks of 20 ms, as in an evaluation
KEPT = ("wer", "n_words", "latency_ms", "commit_latency_ms", "n_latency_words", "lookahead_ms")


@dataclass(frozen=True)
class Row:
    """One setting."""

    name: str
    head: str | None = None
    """Folder; None is Whisper's decoder."""
    latency: str | float | None = None
    chunk_ms: int = 300
    beam_size: int = 1
    fixed_look: int | None = None
    """Frames that every block always looks ahead, or that are always waited for; None is as learned."""
    right_context_ms: int | None = None
    """Of the encoder; None is as usual, and with --encode-once 0, or 320 where the head waits."""

    def stream(self, recognizer: Recognizer) -> Stream:
        """Return a fresh stream."""
        decoder = "transducer" if self.head else "whisper"
        return recognizer.stream(
            decoder=decoder,
            latency=self.latency,
            fixed_look=self.fixed_look,
            chunk_ms=self.chunk_ms,
            beam_size=self.beam_size,
            right_context_ms=self.right_context_ms,
        )


@dataclass(frozen=True)
class Spoken:
    """An utterance to be recognised."""

    text: str
    samples: np.ndarray
    times: Sequence[WordTime]


def read_plan(path: Path) -> list[Row]:
    """Read the rows of a plan.

    Args:
        path: JSON lines with the fields of :class:`Row`.

    Returns:
        The rows in order.

    Raises:
        OptionError: A line is no row.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows += [Row(**json.loads(line))] if line.strip() else []
        except (ValueError, TypeError) as error:
            raise OptionError(f"{path}:{number}: no row of a plan ({error})") from error
    return rows


def read_spoken(
    recognizer: Recognizer, manifest: Path, *, limit: int, alignments: Path | None
) -> list[Spoken]:
    """Read utterances of a manifest, evenly spaced, with the times of their words.

    Args:
        recognizer: Its original Whisper aligns what has no times.
        manifest: Those without a text are left out.
        limit: How many.
        alignments: File of word times.

    Returns:
        The utterances.

    Raises:
        ForesoundError: A file cannot be used.
    """
    forced = read_alignments(alignments) if alignments else {}
    spoken = []
    for each in tqdm(evenly_spread(manifest, limit=limit), desc="word times", file=sys.stderr):
        samples, text, known = load_audio(each), each.text or "", forced.get(each.id)
        heard = recognizer.transcribe_offline(samples) if known is None else None
        times, _ = reference_times(recognizer, samples, text=text, forced=known, offline_text=heard)
        spoken.append(Spoken(text, samples, times))
    return spoken


def play_together(
    recognizer: Recognizer, streams: Sequence[Stream], clips: Sequence[np.ndarray]
) -> list[EmissionLog]:
    """Feed streams at once, each as far as its next chunk, to their ends.

    Args:
        recognizer: The streams'.
        streams: Fresh.
        clips: What each of them hears.

    Returns:
        When each stream's words were shown, in seconds of audio; nothing waits for the computer.
    """
    logs = [EmissionLog() for _ in streams]
    heard = [0] * len(streams)
    going = list(range(len(streams)))
    while going:
        steps = []
        for i in going:
            end = heard[i] + max(1, -(-streams[i].n_due // BLOCK)) * BLOCK
            is_last = end >= len(clips[i])
            steps.append(Step(streams[i], clips[i][heard[i] : end], "finish" if is_last else "listen"))
            heard[i] = min(end, len(clips[i]))
        for i, outcome in zip(going, recognizer.advance(steps), strict=True):
            if isinstance(outcome, Exception):
                raise outcome
            time_s = heard[i] / SAMPLE_RATE
            events = [event for event in outcome if isinstance(event, Event)]
            logs[i].add(events, time_s=time_s, compute_aware_s=time_s)
        going = [i for i in going if heard[i] < len(clips[i])]
    return logs


def measure(recognizer: Recognizer, row: Row, spoken: Sequence[Spoken], *, n_together: int) -> dict[str, Any]:
    """Stream all utterances in one setting.

    Args:
        recognizer: With the row's head.
        row: The setting.
        spoken: The utterances.
        n_together: Streams that are advanced at once.

    Returns:
        The row's numbers, as plain values for JSON.
    """
    results, cpu_s = [], 0.0
    for first in tqdm(range(0, len(spoken), n_together), desc=row.name, file=sys.stderr):
        group = spoken[first : first + n_together]
        streams = [row.stream(recognizer) for _ in group]
        began_s = time.process_time()
        logs = play_together(recognizer, streams, [each.samples for each in group])
        cpu_s += time.process_time() - began_s
        for each, done, log in zip(group, streams, logs, strict=True):
            text, words = done.transcript.text, done.transcript.words
            results.append(_judge(row, each, text=text, words=words, log=log, waits=done.waits))
    return _summarize(row, results, spoken, cpu_s=cpu_s)


def _judge(
    row: Row, spoken: Spoken, *, text: str, words: Sequence[Word], log: EmissionLog, waits: Waits
) -> StreamedUtterance:
    """What was heard of an utterance beside what was said."""
    return StreamedUtterance(
        chunk_ms=row.chunk_ms,
        text=text,
        edits=count_edits(spoken.text, hypothesis=text),
        compute_s=0.0,
        latencies=word_latencies(log.words(), reference=spoken.times),
        frame_waits_ms=tuple(waits.frames_ms()),
        word_waits_ms=tuple(waits.words_ms(words)),
    )


def _summarize(
    row: Row, results: Sequence[StreamedUtterance], spoken: Sequence[Spoken], *, cpu_s: float
) -> dict[str, Any]:
    """A row's numbers, as plain values for JSON."""
    duration_s = sum(len(each.samples) for each in spoken) / SAMPLE_RATE
    numbers = summarize_streams(results, duration_s=duration_s)
    return {**asdict(row), **{key: numbers[key] for key in KEPT}, "cpu_s_per_s": cpu_s / duration_s}


@dataclass
class Frames:
    """The causal encoder's frames of all utterances, once per chunk size and right context."""

    frozen: Frozen
    spoken: Sequence[Spoken]
    known: dict[Chunking, list[Encoded]] = field(default_factory=dict)

    def of(self, chunking: Chunking) -> list[Encoded]:
        """Return them; the first time they are computed."""
        if chunking not in self.known:
            n_mels = self.frozen.model.dims.n_mels
            maker = FeatureMaker(self.frozen.encoder, n_mels=n_mels, chunkings=[chunking], seed=0)
            what = f"frames at {FRAME_MS * chunking.size} + {FRAME_MS * chunking.right_context} ms"
            self.known[chunking] = [
                encode(maker, each.samples, chunking, text=each.text, words=tuple(each.times))
                for each in tqdm(self.spoken, desc=what, file=sys.stderr)
            ]
        return self.known[chunking]


def measure_head(row: Row, frames: Frames) -> dict[str, Any]:
    """Stream all utterances from their frames.

    Args:
        row: The setting, with a head.
        frames: Of the utterances.

    Returns:
        As :func:`measure`, without whole streams.

    Raises:
        ForesoundError: The head does not fit.
    """
    if row.head is None:
        raise OptionError(f"{row.name}: with --encode-once every row needs a head")
    frozen = frames.frozen
    head, card = frozen.read_head(Path(row.head))
    usual_ms = WAITING_CONTEXT_MS if card.waits else 0
    chunking = frozen.chunking(
        row.chunk_ms,
        right_context_ms=usual_ms if row.right_context_ms is None else row.right_context_ms,
    )
    encoded = frames.of(chunking)
    vocabulary = Vocabulary(teacher_tokenizer(frozen.model))
    timing = EmissionTiming.from_ms(lead_ms=card.lead_ms, lag_ms=card.lag_ms)
    logs = [EmissionLog() for _ in encoded]
    began_s = time.process_time()
    streamed = stream(
        head,
        encoded,
        chunking=chunking,
        policy=card.policy(latency=row.latency, fixed_look=row.fixed_look, chunk_ms=row.chunk_ms),
        vocabulary=vocabulary,
        beam_size=row.beam_size,
        timing=timing,
        logs=logs,
    )
    cpu_s = time.process_time() - began_s
    results = []
    for each, frames_of, result, log in zip(frames.spoken, encoded, streamed, logs, strict=True):
        tokens, end = result.tokens, frames_of.frames.shape[1] * FRAME_SAMPLES
        text = vocabulary.text(token.id for token in tokens)
        words = build_words(tokens, vocabulary, n_committed=len(tokens), start=0, end=end) if tokens else ()
        waits = Waits(timing.lag, array("H", result.waits))
        results.append(_judge(row, each, text=text, words=words, log=log, waits=waits))
    return _summarize(row, results, frames.spoken, cpu_s=cpu_s)


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the numbers for people, in Markdown."""
    lines = [
        "| decoder | latency | chunk ms | WER % | lookahead ms mean / p95 | word latency ms p50 / p95 "
        "| CPU s per s |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in results:
        look = each["lookahead_ms"] and each["lookahead_ms"]["frame"]
        look_text = f"{look['mean']:.0f} / {look['p95']:.0f}" if look else "-"
        late = each["latency_ms"]
        late_text = f"{late['p50']:.0f} / {late['p95']:.0f}" if late else "-"
        latency = "-" if each["latency"] is None else each["latency"]
        if each["fixed_look"] is not None:
            latency = f"always {each['fixed_look']}"
        lines.append(
            f"| {each['name']} | {latency} | {each['chunk_ms']} | {100 * each['wer']:.2f} | {look_text} | "
            f"{late_text} | {each['cpu_s_per_s']:.3f} |"
        )
    return "\n".join(lines)


def finished(output: Path | None, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an earlier run on the same utterances."""
    if output is None or not output.exists():
        return []
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.items() >= about.items()]


def run(rows: Sequence[Row], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what has not been measured yet.

    Args:
        rows: The plan.
        args: The command line.

    Returns:
        Each row's numbers, in order.

    Raises:
        ForesoundError: Weights, a head, the manifest or an audio file cannot be used.
    """
    load = lru_cache(maxsize=1)(load_recognizer)
    n_together = "once" if args.encode_once else args.together
    about = {"manifest": args.manifest.name, "limit": args.limit, "n_together": n_together}
    known = {_row(each): each for each in finished(args.output, about)}
    if any(row not in known for row in rows):
        spoken = read_spoken(
            load(args.model, args.adapter, "none"),
            args.manifest,
            limit=args.limit,
            alignments=args.alignments,
        )
        frames = Frames(Frozen.load(args.model, args.adapter, torch.device("cpu")), spoken)
    for row in rows:
        if row in known:
            continue
        if args.encode_once:
            known[row] = about | measure_head(row, frames)
        else:
            recognizer = load(args.model, args.adapter, row.head or "none")
            known[row] = about | measure(recognizer, row, spoken, n_together=args.together)
        if args.output:
            with args.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[row]) + "\n")
    return [known[row] for row in rows]


def _row(numbers: dict[str, Any]) -> Row:
    """The row that a line of the output is about."""
    return replace(Row(""), **{name: numbers[name] for name in asdict(Row("")) if name in numbers})


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add(
        "--plan",
        type=Path,
        required=True,
        help="rows, JSON lines: name, head, latency or fixed_look, chunk_ms, beam_size",
    )
    add("--manifest", type=Path, required=True, help="utterances with texts, JSON lines")
    add("--alignments", type=Path, help="reference word times; without them Whisper aligns weakly")
    add("--limit", type=int, default=200, help="how many utterances (default: 200)")
    add("--model", default="tiny.en", help="checkpoint name or path (default: tiny.en)")
    add("--adapter", default="auto", help="auto, none or a folder (default: auto)")
    add("--together", type=int, default=8, help="streams that are advanced at once (default: 8)")
    add("--encode-once", action="store_true", help="encode once per chunk size and stream heads from there")
    add("--output", type=Path, help="rows that are done, JSON lines; they are not measured again")
    add("--plot", type=Path, help="picture of the table")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.lookahead``."""
    args = parse(argv)
    try:
        results = run(read_plan(args.plan), args)
    except ForesoundError as error:
        print(f"lookahead: {error}", file=sys.stderr)
        return 2
    if args.plot:
        draw(results, args.plot)
    print(format_table(results))
    print(json.dumps({"model": args.model, "adapter": args.adapter, "rows": results, **machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
