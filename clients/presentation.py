"""What one input shows while it is recognised: its outputs, a progress bar, a heading and a summary."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from asr.events import Event, Final, Transcript
from asr.subtitles import one_line
from clients.display import AudioBar, Console, Document, EventLines, Folder, Lines, LiveText, Output
from clients.formats import FORMATS


class Presentation:
    """The outputs of one input and its bar, opened by :func:`presented`.

    Attributes:
        bar: To be advanced by whoever feeds the audio.
    """

    def __init__(self, bar: AudioBar, outputs: Sequence[Output], console: Console) -> None:
        """Show on open outputs."""
        self.bar = bar
        self._outputs = outputs
        self._console = console
        self._finished: set[int] = set()

    def emit(self, events: Iterable[Event]) -> None:
        """Show events as they happen.

        Args:
            events: In order.
        """
        for event in events:
            if isinstance(event, Final):
                self._finished.add(event.segment)
            for output in self._outputs:
                output.handle(event)

    def finish(self, transcript: Transcript) -> None:
        """Give out the whole transcript.

        Args:
            transcript: The finals that were shown, in order.

        Raises:
            OSError: A file could not be written; its text has been printed instead.
        """
        problem: OSError | None = None
        for output in self._outputs:
            try:
                output.finish(transcript)
            except BrokenPipeError:
                raise
            except OSError as error:
                problem = error
        if problem is not None:
            if all(isinstance(output, Folder) for output in self._outputs):
                # Nobody has seen the text, and there is no file to read it from.
                self._console.write("".join(f"{one_line(each.text)}\n" for each in transcript.segments))
            raise problem

    def cut_short(self, transcript: Transcript) -> None:
        """Give out what is certain of an input that was not heard to its end.

        Args:
            transcript: The finals that were shown, and what was committed after them.
        """
        self.emit(
            final for final in transcript.segments if final.segment not in self._finished and final.text
        )
        if transcript.text:
            self.finish(transcript)

    def note(self, text: str) -> None:
        """Tell the user something on stderr, on a line of its own.

        Args:
            text: Without a line break.
        """
        self._console.note(f"foresound: {text}")


@contextmanager
def presented(
    args: argparse.Namespace,
    *,
    name: str,
    stem: str,
    model: str,
    duration_s: float | None,
    several: bool = False,
    has_bar: bool = True,
) -> Iterator[Presentation]:
    """Open what an input shows; when it is done, print how long it took where there was a bar.

    Args:
        args: With format, output_dir, language and quiet.
        name: What to call the input.
        stem: What to call its files.
        model: Told in json.
        duration_s: Its length in seconds, None if unknown.
        several: It is one of several inputs, so its name is printed where outputs are shared.
        has_bar: Show progress, unless the arguments say otherwise.

    Yields:
        The open presentation.
    """
    live = _shows_live_text(args)
    bar = AudioBar.over(
        name,
        duration_s=duration_s,
        out=sys.stderr,
        row=1 if live else 0,  # live words stand above the bar
        hidden=args.quiet or not has_bar,
    )
    bar_is_shown = not bar.disable  # closing disables it
    console = Console(sys.stdout, bar)
    with ExitStack() as stack:
        stack.callback(bar.close)
        labels = {"file": name, "model": model, "language": args.language}
        outputs = _open_outputs(args, console, stem=stem, live=live, several=several, labels=labels)
        for output in outputs:
            stack.callback(output.close)
        if several and (live or (args.output_dir is None and args.format == "txt")):
            console.write(f"==> {name} <==\n")
        yield Presentation(bar, outputs, console)
    if bar_is_shown:
        print(f"\r{name}: {bar.summary}", file=sys.stderr)


def _shows_live_text(args: argparse.Namespace) -> bool:
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return is_terminal and not args.quiet and (args.output_dir is not None or args.format == "txt")


def _open_outputs(
    args: argparse.Namespace,
    console: Console,
    *,
    stem: str,
    live: bool,
    several: bool,
    labels: dict[str, str | None],
) -> list[Output]:
    outputs: list[Output] = []
    folder: Path | None = args.output_dir
    if folder is not None:
        formats = FORMATS if args.format == "all" else (args.format,)
        outputs.append(Folder(folder, stem, formats, **labels))
    if live:
        outputs.append(LiveText(console))
    elif folder is None and args.format == "txt":
        outputs.append(Lines(console))
    elif folder is None and args.format == "jsonl":
        outputs.append(EventLines(console, file=labels["file"] if several else None))
    elif folder is None:
        outputs.append(Document(console, args.format, **labels))
    return outputs
