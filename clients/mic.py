"""``foresound mic``: the microphone to a server, words back while you speak."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from clients.common import (
    EXIT_USAGE,
    add_output_arguments,
    add_server_arguments,
    add_speech_arguments,
    bounded_int,
    output_problem,
    report_error,
)
from clients.interrupts import Interrupts

_NAME = "microphone"


def register(subparsers: argparse._SubParsersAction[Any], *, epilog: str) -> None:
    """Add the subcommand.

    Args:
        subparsers: Of the ``foresound`` parser.
        epilog: Text under the help, with the exit codes.
    """
    parser = subparsers.add_parser(
        "mic",
        help="transcribe the microphone with a server",
        description="Stream the microphone to a foresound server and print words as they are committed. "
        "Ctrl-C ends the recording and waits for the last words; a second one does not wait.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", type=_device, metavar="NAME|N", help="microphone (default: the system's)")
    add("--list-devices", action="store_true", help="list microphones and exit; * marks the system's default")
    add(
        "--sample-rate",
        type=bounded_int(8000, 48_000),
        metavar="HZ",
        help="of the recording (default: 16000 if the device can)",
    )
    add_server_arguments(parser)
    add_speech_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, *, sounddevice: Any = None) -> int:
    """Transcribe the microphone until Ctrl-C.

    Args:
        args: As :func:`register` parses them.
        sounddevice: What to record with; the module of that name where None.

    Returns:
        0 after a list of devices, 2 when usage was wrong.

    Raises:
        ForesoundError: The device, the server or the connection failed.
        KeyboardInterrupt: The usual end, after the last words have been shown and written.
    """
    from clients.concurrency import run_until_interrupted
    from clients.microphone import describe_devices, load_sounddevice

    problem = output_problem(args)
    if problem is not None:
        report_error(problem)
        return EXIT_USAGE
    if sounddevice is None:
        sounddevice = load_sounddevice()
    if args.list_devices:
        print("\n".join(describe_devices(sounddevice)))
        return 0
    run_until_interrupted(_listen(args, sounddevice))
    raise KeyboardInterrupt  # nothing else ends a recording that did not fail


async def _listen(args: argparse.Namespace, sounddevice: Any) -> None:
    from clients.microphone import Microphone
    from clients.presentation import presented
    from clients.remote import make_client, recognise

    loop = asyncio.get_running_loop()
    with Microphone(sounddevice, device=args.device, sample_rate=args.sample_rate) as microphone:
        rate = microphone.sample_rate
        async with make_client(args, sample_rate=rate, encoding="pcm_s16le") as client:
            with (
                presented(
                    args, name=_NAME, stem=_NAME, model=client.ready.model, duration_s=None, has_bar=False
                ) as shown,
                Interrupts(on_first=lambda: loop.call_soon_threadsafe(microphone.stop)),
            ):
                if sys.stderr.isatty() and not args.quiet:
                    shown.note(f"listening to {microphone.name} at {rate} Hz; Ctrl-C ends it")
                try:
                    await recognise(client, microphone.blocks(), shown, sample_rate=rate)
                finally:
                    if microphone.n_overruns:
                        shown.note(f"audio was lost: {microphone.n_overruns} blocks were not taken in time")


def _device(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
