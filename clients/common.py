"""What the subcommands share: exit codes, one-line errors and argument types."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from asr.chunking import MAX_CHUNK_MS, MIN_CHUNK_MS

EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE

DEFAULT_SERVER = "ws://127.0.0.1:8765"
TOKEN_VARIABLE = "FORESOUND_TOKEN"

WEIGHT_FORMATS = ("auto", "int8", "fp32")
DECODERS = ("whisper", "transducer")
_LATENCIES = ("minimal", "low", "medium", "high")
_OUTPUT_FORMATS = ("txt", "srt", "vtt", "tsv", "json", "jsonl", "all")
_SUBTITLES_AND_TABLES = ("srt", "vtt", "tsv")  # two of them in one stream could not be told apart


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


def latency(text: str) -> str | float:
    """Take a name of a latency or a number of ms: an argument type for argparse.

    Args:
        text: As given.
    """
    if text in _LATENCIES:
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected {', '.join(_LATENCIES)} or a number of ms, got '{text}'")
    return value


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which weights recognise.

    Args:
        parser: A subcommand's parser; gets model, adapter, head and weights.
    """
    add = parser.add_argument
    add("--model", default="tiny.en", help="Whisper name, .pt file or weights folder (default: tiny.en)")
    add(
        "--adapter",
        default="auto",
        metavar="auto|none|DIR",
        help="causal adapter: the one shipped for the model, none, or a peft folder (default: auto)",
    )
    add(
        "--head",
        default="auto",
        metavar="auto|none|DIR",
        help="transducer head: the one shipped for the model and adapter, none, or a folder (default: auto)",
    )
    add(
        "--weights",
        choices=WEIGHT_FORMATS,
        default="auto",
        help="how what streams is computed: with 8-bit weights (7 bits on processors without VNNI), faster, "
        "or in 32 bits; auto takes int8 where all 8 bits can be used (default: auto)",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which weights recognise and how they search.

    Args:
        parser: A subcommand's parser; gets those of :func:`add_weights_arguments`, decoder, latency, beam and
            second_pass.
    """
    add_weights_arguments(parser)
    add = parser.add_argument
    add("--decoder", choices=DECODERS, default="whisper", help="streaming decoder (default: whisper)")
    add(
        "--latency",
        type=latency,
        metavar="NAME|MS",
        help="how far ahead the transducer's frames look on average: minimal, low, medium, high, or a number "
        "of ms (default: as it was trained)",
    )
    add("--beam", type=positive_int, default=1, metavar="N", help="beam size, 1 is greedy (default: 1)")
    add("--second-pass", action="store_true", help="re-decode each finished segment with offline Whisper")


def add_speech_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is known of the speech beforehand.

    Args:
        parser: A subcommand's parser; gets language, prompt and hotwords.
    """
    add = parser.add_argument
    add("--language", metavar="L", help="language code such as en (default: the model's or detected)")
    add("--prompt", metavar="TEXT", help="text before the speech, for names and style")
    add(
        "--hotwords",
        type=_word_list,
        default=[],
        metavar="A,B",
        help="names and terms to expect, at most 100, with commas between",
    )


def add_right_context_argument(
    parser: argparse.ArgumentParser, *, default: str = "300, the transducer 160 or 320"
) -> None:
    """Add ``--right-context-ms``.

    Args:
        parser: A subcommand's parser; gets right_context_ms.
        default: What the help text says of it.
    """
    parser.add_argument(
        "--right-context-ms",
        type=int,
        metavar="N",
        help="audio that is heard after a word's sounds before they count for good; until then it is shown, "
        f"but stays open (default: {default})",
    )


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which server recognises, and how.

    Args:
        parser: A subcommand's parser; gets server, token, reconnect_s, decoder, chunk_ms, latency,
            second_pass and silence_ms.
    """
    add = parser.add_argument
    add("--server", default=DEFAULT_SERVER, metavar="URL", help=f"its address (default: {DEFAULT_SERVER})")
    add("--token", metavar="T", help=f"its access token (default: the environment's {TOKEN_VARIABLE})")
    add(
        "--reconnect-s",
        type=bounded_int(0, 3600),
        default=30,
        metavar="S",
        help="how long to try to get a lost connection back (default: 30)",
    )
    add("--decoder", choices=DECODERS, help="streaming decoder (default: the server's)")
    add(
        "--chunk-ms",
        type=chunk_ms,
        metavar="N",
        help="chunk size, 40 to 1000 in steps of 20 (default: the server's)",
    )
    add_right_context_argument(parser, default="the server's")
    add(
        "--latency",
        type=latency,
        metavar="NAME|MS",
        help="minimal, low, medium or high: chunks of 80, 160, 300 or 600 ms unless --chunk-ms is given; "
        "with the transducer also how far it looks ahead, by name or as a number of ms",
    )
    add("--second-pass", action="store_true", help="have finished segments decoded again by offline Whisper")
    add("--silence-ms", type=bounded_int(100, 5000), metavar="N", help="pause that ends a segment")


def _word_list(text: str) -> list[str]:
    return [word for part in text.split(",") if (word := part.strip())]


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what comes out and where.

    Args:
        parser: A subcommand's parser; gets format, output_dir and quiet.
    """
    add = parser.add_argument
    add("--format", choices=_OUTPUT_FORMATS, default="txt", help="output format (default: txt)")
    add("--output-dir", type=Path, metavar="D", help="write NAME.FORMAT files there instead of to stdout")
    add("--quiet", action="store_true", help="no progress bar and no drafts")


def output_problem(args: argparse.Namespace, *, several: bool = False) -> str | None:
    """Return what is wrong with the output arguments together, None if nothing is.

    Args:
        args: As :func:`add_output_arguments` has them parsed; the folder is made.
        several: There are several inputs.
    """
    if args.output_dir is None and args.format == "all":
        return "--format all writes several files; add --output-dir"
    if args.output_dir is None and several and args.format in _SUBTITLES_AND_TABLES:
        return f"--format {args.format} of several inputs cannot share one output; add --output-dir"
    if args.output_dir is not None:
        try:
            args.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"{args.output_dir}: cannot be a folder ({error.strerror}); choose another --output-dir"
        if not os.access(args.output_dir, os.W_OK | os.X_OK):
            return f"{args.output_dir}: cannot be written to; choose another --output-dir"
    return None
