"""The ``foresound`` command: parses arguments, runs a subcommand, reports errors in one line.

Nothing here or in the modules that add subcommands imports torch; the work of a subcommand
imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NoReturn

from clients import mic, serve, stream, train, transcribe
from clients.common import (
    EXIT_INTERRUPTED,
    EXIT_PIPE_CLOSED,
    EXIT_USAGE,
    report_error,
)

_EPILOG = """\
exit codes:
  0    everything was done
  1    some of several files failed, the others were done
  2    nothing could be done: wrong usage, or every file failed
  130  stopped by Ctrl-C, after showing what was recognised so far
  141  the reader of the output went away
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line in foresound's form."""

    def error(self, message: str) -> NoReturn:
        report_error(f"{message}; see {self.prog} --help")
        raise SystemExit(EXIT_USAGE)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands; each sets ``run``, a function of the namespace."""
    parser = _Parser(
        prog="foresound",
        description="Streaming speech recognition with Whisper.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"foresound {_version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, dest="command", parser_class=_Parser)
    transcribe.register(subparsers, epilog=_EPILOG)
    stream.register(subparsers, epilog=_EPILOG)
    mic.register(subparsers, epilog=_EPILOG)
    serve.register(subparsers, epilog=_EPILOG)
    train.register(subparsers, epilog=_EPILOG)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; the process's own where None.

    Returns:
        The exit code: 0, 1, 2, 130 or 141, see ``foresound --help``.
    """
    try:
        args = _parse(argv)
    except SystemExit as stop:  # argparse has printed its help or one line of error
        return stop.code if isinstance(stop.code, int) else 0
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        code = run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_PIPE_CLOSED
    except Exception as error:
        from asr.errors import ForesoundError

        if isinstance(error, ForesoundError):
            report_error(str(error))
        elif isinstance(error, OSError) and error.strerror:
            what = error.filename or "input or output"
            report_error(f"{what}: {error.strerror}; check the name and the disk")
        else:
            raise
        return EXIT_USAGE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; those of ``finetune`` that set keys of its file are put aside first."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    settings: list[str] = []
    if arguments[:1] == ["finetune"]:
        arguments, settings = train.split_settings(arguments)
    args = build_parser().parse_args(arguments)
    args.settings = settings
    return args


def _version() -> str:
    try:
        return metadata.version("foresound")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _abandon_stdout() -> None:
    """Let the interpreter's last flush go nowhere, or it would complain about the closed pipe."""
    with contextlib.suppress(OSError, ValueError):  # stdout is no real file in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
