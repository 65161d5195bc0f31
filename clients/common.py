"""What the subcommands share: exit codes, one-line errors and argument types."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE

MIN_CHUNK_MS, MAX_CHUNK_MS = 40, 1000


def report_error(message: str) -> None:
    """Print ``foresound: error: MESSAGE`` on stderr, on one line.

    Args:
        message: What was wrong and what to do.
    """
    print(f"foresound: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def bounded_int(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return an argument type that takes integers in a range.

    Args:
        low: The smallest valid value.
        high: The largest valid value, None for no limit.

    Returns:
        A function from text to integer for argparse.
    """
    expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected {expected}, got '{text}'")
        return value

    return parse


positive_int = bounded_int(1)
chunk_ms = bounded_int(MIN_CHUNK_MS, MAX_CHUNK_MS)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which weights recognise and how they search.

    Args:
        parser: A subcommand's parser; gets model, adapter, decoder, beam and second_pass.
    """
    add = parser.add_argument
    add("--model", default="tiny.en", help="Whisper name, .pt file or weights folder (default: tiny.en)")
    add(
        "--adapter",
        default="auto",
        metavar="auto|none|DIR",
        help="causal adapter: the one shipped for the model, none, or a peft folder (default: auto)",
    )
    add("--decoder", default="whisper", help="streaming decoder (default: whisper)")
    add("--beam", type=positive_int, default=1, metavar="N", help="beam size, 1 is greedy (default: 1)")
    add("--second-pass", action="store_true", help="re-decode each finished segment with offline Whisper")
