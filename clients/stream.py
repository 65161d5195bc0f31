"""``foresound stream``: files or standard input to a server, words back while they are heard."""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from asr.events import SAMPLE_RATE
from clients.common import (
    EXIT_USAGE,
    add_output_arguments,
    add_server_arguments,
    add_speech_arguments,
    output_problem,
    report_error,
)
from clients.inputs import BLOCK_S, Input, InputError, add_input_arguments, input_problem, run_inputs

if TYPE_CHECKING:
    import numpy as np

    from asr.audio import AudioSource


def register(subparsers: argparse._SubParsersAction[Any], *, epilog: str) -> None:
    """Add the subcommand.

    Args:
        subparsers: Of the ``foresound`` parser.
        epilog: Text under the help, with the exit codes.
    """
    parser = subparsers.add_parser(
        "stream",
        help="transcribe files or standard input with a server",
        description="Stream audio to a foresound server and print words as they are committed.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_input_arguments(parser)
    add_server_arguments(parser)
    add_speech_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Stream every input, one after the other.

    Args:
        args: As :func:`register` parses them.

    Returns:
        0 when all were done, 1 when some failed, 2 when all failed or usage was wrong.

    Raises:
        StreamingError: No connection was ever opened.
        KeyboardInterrupt: After what was recognised has been shown and written.
    """
    problem = input_problem(args) or output_problem(args, several=len(args.files) > 1)
    if problem is not None:
        report_error(problem)
        return EXIT_USAGE
    return _stream_all(args)


def _stream_all(args: argparse.Namespace) -> int:
    from clients.concurrency import in_thread, run_until_interrupted
    from clients.errors import StreamingError
    from clients.presentation import presented
    from clients.remote import make_client, recognise

    was_connected = False

    async def stream(each: Input, source: AudioSource, abandoned: threading.Event) -> None:
        nonlocal was_connected
        # Floats, so that the server hears exactly what transcribe does.
        async with make_client(args, sample_rate=SAMPLE_RATE, encoding="pcm_f32le") as client:
            was_connected = True
            with presented(
                args,
                name=each.name,
                stem=each.stem,
                model=client.ready.model,
                duration_s=source.duration_s,
                several=len(args.files) > 1,
                has_bar=not each.is_stdin,
            ) as shown:
                blocks = in_thread(source.blocks(BLOCK_S), abandoned=abandoned)
                audio = _paced(blocks) if args.real_time else blocks
                await recognise(client, audio, shown, sample_rate=SAMPLE_RATE)

    def work(each: Input) -> None:
        abandoned = threading.Event()
        with each.open(args, abandoned=abandoned) as source:
            try:
                run_until_interrupted(stream(each, source, abandoned))
            except StreamingError as error:
                if was_connected:
                    raise InputError(str(error)) from error
                raise  # the other inputs would fare no better

    return run_inputs(args.files, work)


async def _paced(blocks: AsyncGenerator[np.ndarray, None]) -> AsyncGenerator[np.ndarray, None]:
    """Hold each block back until it would have been spoken."""
    heard_s, started = 0.0, time.perf_counter()
    async with aclosing(blocks):
        async for block in blocks:
            heard_s += len(block) / SAMPLE_RATE
            await asyncio.sleep(max(0.0, started + heard_s - time.perf_counter()))
            yield block
