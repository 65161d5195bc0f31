"""``foresound transcribe``: files or standard input in, words out while they are heard."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from clients.common import (
    EXIT_SOME_FAILED,
    EXIT_USAGE,
    add_model_arguments,
    bounded_int,
    chunk_ms,
    report_error,
)

if TYPE_CHECKING:
    from asr import Recognizer
    from asr.audio import AudioSource
    from asr.events import Event
    from clients.display import AudioBar, Console, Output

_BLOCK_S = 0.1
_SUBTITLES_AND_TABLES = ("srt", "vtt", "tsv")  # two of them in one stream could not be told apart
_FORMATS = ("txt", "srt", "vtt", "tsv", "json", "jsonl", "all")
_STDIN = "-"


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
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="audio files; '-' is WAV or raw s16le PCM on standard input")
    add_model_arguments(parser)
    add(
        "--chunk-ms",
        type=chunk_ms,
        default=300,
        metavar="N",
        help="chunk size, 40 to 1000 in steps of 20 (default: 300)",
    )
    add("--language", metavar="L", help="language code such as en (default: the model's or detected)")
    add("--prompt", metavar="TEXT", help="text before the speech, for names and style")
    add("--format", choices=_FORMATS, default="txt", help="output format (default: txt)")
    add("--output-dir", type=Path, metavar="D", help="write NAME.FORMAT files there instead of to stdout")
    add("--sample-rate", type=bounded_int(1000, 768_000), metavar="HZ", help="of raw PCM (default: 16000)")
    add("--channels", type=bounded_int(1, 64), metavar="N", help="of raw PCM (default: 1)")
    add("--device", default="cpu", help="torch device (default: cpu)")
    add("--threads", type=bounded_int(1, 1024), metavar="N", help="CPU threads (default: torch's choice)")
    add("--real-time", action="store_true", help="feed files at the speed of a microphone")
    add("--quiet", action="store_true", help="no progress bar and no drafts")
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
    problem = _usage_problem(args)
    if problem is not None:
        report_error(problem)
        return EXIT_USAGE
    if args.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # torch reads it when it is first imported
    n_failed = _transcribe_all(args)
    if n_failed == 0:
        return 0
    return EXIT_USAGE if n_failed == len(args.files) else EXIT_SOME_FAILED


def load_recognizer(args: argparse.Namespace) -> Recognizer:
    """Load the model that the arguments name; imports torch.

    Args:
        args: With model, adapter and device.

    Returns:
        The recogniser.

    Raises:
        ForesoundError: Weights, adapter or device cannot be used.
    """
    from asr import Recognizer
    from asr.errors import OptionError

    try:
        return Recognizer.load(args.model, adapter=args.adapter, device=args.device)
    except (RuntimeError, AssertionError) as error:  # torch's, for a device it does not have
        if args.device == "cpu":
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise OptionError(f"device '{args.device}' cannot be used ({reason}); try --device cpu") from error


class _Interrupts:
    """Holds Ctrl-C back while the model works, so that it never stops half-way through a step.

    A second Ctrl-C does not wait.
    """

    def __enter__(self) -> _Interrupts:
        self._holding = self._pending = False
        self._previous: Any = signal.getsignal(signal.SIGINT)
        # Signals reach the main thread only; an ignored SIGINT (nohup) stays ignored.
        self._active = (
            threading.current_thread() is threading.main_thread() and self._previous is not signal.SIG_IGN
        )
        if self._active:
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._holding or self._pending:
            raise KeyboardInterrupt
        self._pending = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the block finish before KeyboardInterrupt is raised."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt


def _usage_problem(args: argparse.Namespace) -> str | None:
    """Return what is wrong with the arguments together, None if nothing is."""
    several = len(args.files) > 1
    if args.files.count(_STDIN) > 1:
        return "'-' is given twice; standard input can be read once"
    if _STDIN not in args.files and (args.sample_rate or args.channels):
        return "--sample-rate and --channels describe raw PCM on standard input; leave them out or give '-'"
    if _STDIN in args.files and sys.stdin.isatty():
        return "standard input is a terminal; pipe audio into '-'"
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


def _about(name: str, message: str) -> str:
    return message if message.startswith(f"{name}: ") else f"{name}: {message}"


def _open(file: str, args: argparse.Namespace) -> AudioSource:
    from asr.audio import read_audio, read_stream

    if file != _STDIN:
        return read_audio(file)
    return read_stream(sys.stdin.buffer, sample_rate=args.sample_rate or 16_000, channels=args.channels or 1)


def _transcribe_all(args: argparse.Namespace) -> int:
    """Transcribe every input; return how many failed."""
    from asr.errors import AudioError
    from clients.formats import output_stems

    names = ["stdin" if file == _STDIN else file for file in args.files]
    stems = output_stems(names)
    recognizer: Recognizer | None = None  # loaded once there is something to hear
    n_failed = 0
    with _Interrupts() as interrupts:
        for file, name, stem in zip(args.files, names, stems, strict=True):
            try:
                if file == _STDIN and recognizer is None:
                    recognizer = load_recognizer(args)  # while the pipe's writer is still starting
                with _open(file, args) as source:
                    recognizer = recognizer or load_recognizer(args)
                    _transcribe(source, recognizer, args, name=name, stem=stem, interrupts=interrupts)
            except BrokenPipeError:
                raise
            except AudioError as error:
                report_error(_about(name, str(error)))
                n_failed += 1
            except OSError as error:
                where = "" if error.filename is None else f" {error.filename}"
                report_error(f"{name}: cannot write{where} ({error.strerror}); check space and permissions")
                n_failed += 1
    return n_failed


def _transcribe(
    source: AudioSource,
    recognizer: Recognizer,
    args: argparse.Namespace,
    *,
    name: str,
    stem: str,
    interrupts: _Interrupts,
) -> None:
    """Stream one input to its outputs."""
    from clients.display import AudioBar, Console

    stream = recognizer.stream(
        decoder=args.decoder,
        chunk_ms=args.chunk_ms,
        beam_size=args.beam,
        language=args.language,
        prompt=args.prompt,
        second_pass=args.second_pass,
    )
    live = _shows_live_text(args)
    bar = AudioBar.over(
        name,
        duration_s=source.duration_s,
        out=sys.stderr,
        row=1 if live else 0,  # live words stand above the bar
        hidden=args.quiet or name == "stdin",
    )
    bar_is_shown = not bar.disable  # closing disables it
    console = Console(sys.stdout, bar)
    with ExitStack() as stack:
        stack.callback(bar.close)
        outputs = _open_outputs(args, console, name=name, stem=stem, model=recognizer.name, live=live)
        for output in outputs:
            stack.callback(output.close)
        if len(args.files) > 1 and (live or (args.output_dir is None and args.format == "txt")):
            console.write(f"==> {name} <==\n")
        _feed(source, stream, outputs, bar=bar, real_time=args.real_time, interrupts=interrupts)
    if bar_is_shown:
        factor = bar.busy_s / bar.n if bar.n else 0.0
        length = bar.format_interval(round(bar.n, 2))
        took = f"{length} of audio in {bar.busy_s:.1f} s, real-time factor {factor:.2f}"
        print(f"\r{name}: {took}", file=sys.stderr)


def _shows_live_text(args: argparse.Namespace) -> bool:
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return is_terminal and not args.quiet and (args.output_dir is not None or args.format == "txt")


def _open_outputs(
    args: argparse.Namespace, console: Console, *, name: str, stem: str, model: str, live: bool
) -> list[Output]:
    from clients.display import Document, EventLines, Folder, Lines, LiveText
    from clients.formats import FORMATS

    several = len(args.files) > 1
    labels = {"file": name, "model": model, "language": args.language}
    outputs: list[Output] = []
    if args.output_dir is not None:
        formats = FORMATS if args.format == "all" else (args.format,)
        outputs.append(Folder(args.output_dir, stem, formats, **labels))
    if live:
        outputs.append(LiveText(console))
    elif args.output_dir is None and args.format == "txt":
        outputs.append(Lines(console))
    elif args.output_dir is None and args.format == "jsonl":
        outputs.append(EventLines(console, file=name if several else None))
    elif args.output_dir is None:
        outputs.append(Document(console, args.format, **labels))
    return outputs


def _feed(
    source: AudioSource,
    stream: Any,
    outputs: list[Output],
    *,
    bar: AudioBar,
    real_time: bool,
    interrupts: _Interrupts,
) -> None:
    """Feed a stream to its end; if it is cut short, give out what is certain so far."""
    from asr.errors import AudioError
    from asr.events import SAMPLE_RATE, Final

    finished: set[int] = set()

    def emit(events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Final):
                finished.add(event.segment)
            for output in outputs:
                output.handle(event)

    heard_s, started = 0.0, time.perf_counter()
    try:
        for block in source.blocks(_BLOCK_S):
            block_s = len(block) / SAMPLE_RATE
            heard_s += block_s
            if real_time:
                time.sleep(max(0.0, started + heard_s - time.perf_counter()))
            before = time.perf_counter()
            with interrupts.held():
                events = stream.feed(block)
            busy_s = time.perf_counter() - before
            emit(events)
            bar.advance(block_s, busy_s=busy_s)
        with interrupts.held():
            events = stream.finish()
        emit(events)
    except (KeyboardInterrupt, AudioError):
        transcript = stream.transcript
        emit(final for final in transcript.segments if final.segment not in finished and final.text)
        if transcript.text:
            for output in outputs:
                output.finish(transcript)
        raise
    for output in outputs:
        output.finish(stream.transcript)
