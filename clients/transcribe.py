"""``foresound transcribe``: files or standard input in, words out while they are heard."""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

from asr.errors import AudioError, OptionError
from asr.events import SAMPLE_RATE
from clients.common import (
    EXIT_USAGE,
    add_model_arguments,
    add_output_arguments,
    add_right_context_argument,
    add_speech_arguments,
    bounded_int,
    chunk_ms,
    output_problem,
    report_error,
)
from clients.inputs import BLOCK_S, Input, add_input_arguments, input_problem, run_inputs
from clients.interrupts import Interrupts

if TYPE_CHECKING:
    from asr import Recognizer
    from asr.audio import AudioSource
    from clients.presentation import Presentation


def register(subparsers: argparse._SubParsersAction[Any], *, epilog: str) -> None:
    """Add the subcommand.

    Args:
        subparsers: Of the ``foresound`` parser.
        epilog: Text under the help, with the exit codes.
    """
    parser = subparsers.add_parser(
        "transcribe",
        help="transcribe files or standard input, streaming",
        description="Stream audio through the recogniser and print words as they are committed.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_input_arguments(parser)
    add_model_arguments(parser)
    add = parser.add_argument
    add(
        "--chunk-ms",
        type=chunk_ms,
        default=300,
        metavar="N",
        help="chunk size, 40 to 1000 in steps of 20 (default: 300)",
    )
    add_right_context_argument(parser)
    add_speech_arguments(parser)
    add_output_arguments(parser)
    add("--device", default="cpu", help="torch device (default: cpu)")
    add("--threads", type=bounded_int(1, 1024), metavar="N", help="CPU threads (default: torch's choice)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Transcribe every input, one after the other.

    Args:
        args: As :func:`register` parses them.

    Returns:
        0 when all were done, 1 when some failed, 2 when all failed or usage was wrong.

    Raises:
        ForesoundError: The model, the adapter or an option that concerns all inputs.
        KeyboardInterrupt: After what was recognised has been shown and written.
    """
    problem = input_problem(args) or output_problem(args, several=len(args.files) > 1)
    if problem is not None:
        report_error(problem)
        return EXIT_USAGE
    if args.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # torch reads it when it is first imported
    return _transcribe_all(args)


def load_recognizer(args: argparse.Namespace) -> Recognizer:
    """Load the model that the arguments name; imports torch.

    Args:
        args: With model, adapter, head, weights and device.

    Returns:
        The recogniser.

    Raises:
        ForesoundError: Weights, adapter, head or device cannot be used.
    """
    from asr import Recognizer

    try:
        return Recognizer.load(
            args.model, adapter=args.adapter, head=args.head, weights=args.weights, device=args.device
        )
    except (RuntimeError, AssertionError) as error:  # torch's, for a device it does not have
        if args.device == "cpu":
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise OptionError(f"device '{args.device}' cannot be used ({reason}); try --device cpu") from error


def _transcribe_all(args: argparse.Namespace) -> int:
    recognizer: Recognizer | None = None  # loaded once there is something to hear
    with Interrupts() as interrupts:

        def work(each: Input) -> None:
            nonlocal recognizer
            if each.is_stdin and recognizer is None:
                recognizer = load_recognizer(args)  # while the pipe's writer is still starting
            with each.open(args) as source:
                recognizer = recognizer or load_recognizer(args)
                _transcribe(each, source, recognizer, args, interrupts=interrupts)

        return run_inputs(args.files, work)


def _transcribe(
    each: Input,
    source: AudioSource,
    recognizer: Recognizer,
    args: argparse.Namespace,
    *,
    interrupts: Interrupts,
) -> None:
    """Stream one input to its outputs."""
    from clients.presentation import presented

    stream = recognizer.stream(
        decoder=args.decoder,
        latency=args.latency,
        chunk_ms=args.chunk_ms,
        right_context_ms=args.right_context_ms,
        beam_size=args.beam,
        language=args.language,
        prompt=args.prompt,
        hotwords=args.hotwords,
        second_pass=args.second_pass,
    )
    with presented(
        args,
        name=each.name,
        stem=each.stem,
        model=recognizer.name,
        duration_s=source.duration_s,
        several=len(args.files) > 1,
        has_bar=not each.is_stdin,
    ) as shown:
        _feed(source, stream, shown, real_time=args.real_time, interrupts=interrupts)


def _feed(
    source: AudioSource, stream: Any, shown: Presentation, *, real_time: bool, interrupts: Interrupts
) -> None:
    """Feed a stream to its end; if it is cut short, give out what is certain so far."""
    heard_s, started = 0.0, time.perf_counter()
    try:
        for block in source.blocks(BLOCK_S):
            block_s = len(block) / SAMPLE_RATE
            heard_s += block_s
            if real_time:
                time.sleep(max(0.0, started + heard_s - time.perf_counter()))
            before = time.perf_counter()
            with interrupts.held():
                events = stream.feed(block)
            busy_s = time.perf_counter() - before
            shown.emit(events)
            shown.bar.advance(block_s, busy_s=busy_s)
        with interrupts.held():
            events = stream.finish()
        shown.emit(events)
    except (KeyboardInterrupt, AudioError):
        shown.cut_short(stream.transcript)
        raise
    shown.finish(stream.transcript)
