"""Where events go: live words on a terminal, lines, JSON events, documents, files.

Every output takes each event as it happens (``handle``), the whole transcript at the end
(``finish``), and is closed in any case (``close``).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any, Protocol, TextIO
from unicodedata import combining, east_asian_width

from tqdm import tqdm

from asr.events import Event, Final, Partial, Transcript
from asr.subtitles import one_line
from clients.formats import AtomicFile, event_line, render, write_atomic

# ECMA-48 control sequences.
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CLEAR_RIGHT, _CLEAR_BELOW = "\x1b[K", "\x1b[J"
_MAX_NAME_CHARS = 24


class Output(Protocol):
    """One place that a transcript goes to."""

    def handle(self, event: Event) -> None:
        """Take an event as it happens."""

    def finish(self, transcript: Transcript) -> None:
        """Take the transcript when the input is done or was given up."""

    def close(self) -> None:
        """Free what is open, after ``finish`` or without it."""


class AudioBar(tqdm):
    """A progress bar over audio: position, length and real-time factor."""

    busy_s = 0.0  # seconds spent recognising

    @classmethod
    def over(cls, name: str, *, duration_s: float | None, out: TextIO, row: int, hidden: bool) -> AudioBar:
        """Open a bar.

        Args:
            name: What is recognised.
            duration_s: Its length in seconds, None if unknown.
            out: The terminal; on anything else no bar appears.
            row: How many lines under the cursor the bar stands.
            hidden: Show nothing.
        """
        length = "{percentage:3.0f}%|{bar}| {at}/{length}" if duration_s else "{at}"
        return cls(
            total=duration_s or None,
            desc=_short(name),
            file=out,
            position=row,
            leave=False,
            dynamic_ncols=True,
            disable=hidden or not out.isatty(),
            bar_format="{desc}: " + length + ", real-time factor {factor:.2f}",
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        """The fields of the bar's format."""
        fields: dict[str, Any] = super().format_dict
        fields["at"] = tqdm.format_interval(round(self.n, 2))
        fields["length"] = tqdm.format_interval(self.total or 0)
        fields["factor"] = self.busy_s / self.n if self.n else 0.0
        return fields

    def close(self) -> None:
        """Take the bar off the screen; tqdm leaves the cursor behind the blanks it wrote."""
        if not self.disable:
            super().close()
            self.fp.write("\r")
            self.fp.flush()

    def advance(self, audio_s: float, *, busy_s: float) -> None:
        """Move on by a block.

        Args:
            audio_s: Seconds of audio.
            busy_s: Seconds that its recognition took.
        """
        self.busy_s += busy_s
        if self.total is not None and self.n + audio_s > self.total:
            audio_s = max(0.0, self.total - self.n)  # resampling rounds up; tqdm drops the bar beyond 100 %
        self.update(audio_s)

    def reach(self, audio_s: float, *, busy_s: float) -> None:
        """Move on to a position; never back.

        Args:
            audio_s: Seconds of audio in all.
            busy_s: Seconds that their recognition took in all.
        """
        self.advance(max(0.0, audio_s - self.n), busy_s=busy_s - self.busy_s)

    @property
    def summary(self) -> str:
        """How much audio there was and how long it took."""
        factor = self.busy_s / self.n if self.n else 0.0
        length = self.format_interval(round(self.n, 2))
        return f"{length} of audio in {self.busy_s:.1f} s, real-time factor {factor:.2f}"


class Console:
    """Standard output shared with a progress bar, which steps aside for each text."""

    def __init__(self, out: TextIO, bar: AudioBar) -> None:
        """Share a screen.

        Args:
            out: Where texts go.
            bar: The bar to clear before and redraw after each text.
        """
        self._out = out
        self._bar = bar

    def write(self, text: str) -> None:
        """Write and flush, so that a reader at the other end sees it now.

        Args:
            text: Anything, with its line breaks.
        """
        self._bar.clear()
        self._out.write(text)
        self._out.flush()
        self._bar.refresh()

    def note(self, text: str) -> None:
        """Write a line on stderr; live words that it covers are drawn again with the next ones.

        Args:
            text: Without a line break.
        """
        self._bar.clear()
        line = f"\r{text}{_CLEAR_RIGHT}" if sys.stderr.isatty() else text
        print(line, file=sys.stderr, flush=True)
        self._bar.refresh()


class Lines:
    """One line of text per finished segment, nothing else."""

    def __init__(self, console: Console) -> None:
        """Write to a console."""
        self._console = console

    def handle(self, event: Event) -> None:
        """Print a segment."""
        if isinstance(event, Final) and (text := one_line(event.text)):
            self._console.write(text + "\n")

    def finish(self, transcript: Transcript) -> None:
        """Do nothing: every segment has been printed."""

    def close(self) -> None:
        """Do nothing."""


class EventLines:
    """Each event as a line of JSON."""

    def __init__(self, console: Console, *, file: str | None = None) -> None:
        """Write to a console; ``file`` is named in every line if given."""
        self._console = console
        self._file = file

    def handle(self, event: Event) -> None:
        """Print an event."""
        self._console.write(event_line(event, file=self._file) + "\n")

    def finish(self, transcript: Transcript) -> None:
        """Do nothing: every event has been printed."""

    def close(self) -> None:
        """Do nothing."""


class Document:
    """The whole transcript in one format on standard output."""

    def __init__(self, console: Console, output_format: str, **labels: str | None) -> None:
        """Write to a console; ``labels`` go to :func:`clients.formats.render`."""
        self._console = console
        self._format = output_format
        self._labels = labels

    def handle(self, event: Event) -> None:
        """Wait for the end."""

    def finish(self, transcript: Transcript) -> None:
        """Print the document."""
        self._console.write(render(transcript, self._format, **self._labels))  # type: ignore[arg-type]

    def close(self) -> None:
        """Do nothing."""


class Folder:
    """Files NAME.FORMAT in a folder, each of them whole or not there."""

    def __init__(self, folder: Path, stem: str, formats: Sequence[str], **labels: str | None) -> None:
        """Prepare the files.

        Args:
            folder: An existing folder.
            stem: NAME, the files' name without suffix.
            formats: Some of :data:`clients.formats.FORMATS`.
            labels: For :func:`clients.formats.render`.
        """
        self._base = folder / stem
        self._documents = [name for name in formats if name != "jsonl"]
        self._labels = labels
        self._stack = ExitStack()
        self._problem: OSError | None = None
        self._events: AtomicFile | None = None
        if "jsonl" in formats:
            self._events = self._stack.enter_context(AtomicFile(self._path("jsonl")))

    def handle(self, event: Event) -> None:
        """Write an event at once: hours of them are not kept in memory."""
        if self._events is not None:
            with self._noting_problems():
                self._events.file.write(event_line(event) + "\n")

    def finish(self, transcript: Transcript) -> None:
        """Write the documents and give all files their names.

        Raises:
            OSError: A file could not be written, now or while events came; the others are there.
        """
        for name in self._documents:
            text = render(transcript, name, **self._labels)  # type: ignore[arg-type]
            with self._noting_problems():
                write_atomic(self._path(name), text)
        if self._events is not None:
            with self._noting_problems():
                self._events.commit()
        if self._problem is not None:
            raise self._problem

    def close(self) -> None:
        """Drop what was not finished."""
        with suppress(OSError):  # of what cannot be written to a file that is dropped
            self._stack.close()

    @contextmanager
    def _noting_problems(self) -> Iterator[None]:
        """Go on after a full disk: what is heard later must not be lost with the file."""
        try:
            yield
        except OSError as error:
            self._problem = self._problem or error
            self._events = None
            self.close()  # what was written of the events makes room

    def _path(self, suffix: str) -> Path:
        return self._base.with_name(f"{self._base.name}.{suffix}")


class LiveText:
    """Words on a terminal as they are committed, the draft dimmed after them.

    Only the last row is ever redrawn, so a draft never leaves traces; a segment that its
    second pass has changed is written anew while it is still on the screen.
    """

    def __init__(self, console: Console) -> None:
        """Write to a console that is a terminal."""
        self._console = console
        self._row = ""  # committed text on the row of the cursor
        self._n_rows = 0  # complete rows of this segment above it
        self._committed = ""  # text of this segment that is on the screen

    def handle(self, event: Event) -> None:
        """Show new words, or end the paragraph."""
        if isinstance(event, Partial):
            committed = _visible(event.committed).lstrip()
            self._show(committed, draft=_visible(event.draft))
        elif isinstance(event, Final):
            self._show(one_line(event.text), draft="")
            self._end_paragraph()

    def finish(self, transcript: Transcript) -> None:
        """Do nothing: every segment has been shown."""

    def close(self) -> None:
        """Leave the cursor on a fresh line, without the draft."""
        self._end_paragraph()

    def _show(self, committed: str, *, draft: str) -> None:
        columns, n_lines = shutil.get_terminal_size()
        text = ""
        if not committed.startswith(self._committed):
            text = self._erase(n_lines)
        self._row += committed[len(self._committed) :]
        self._committed = committed
        limit = max(columns - 1, 2)  # the last column makes some terminals wrap
        while _width(self._row) > limit:
            row, self._row = _cut(self._row, limit)
            text += f"\r{row}{_CLEAR_RIGHT}\n"
            self._n_rows += 1
        shown_draft = _prefix(draft if self._row else draft.lstrip(), limit - _width(self._row))
        text += f"\r{self._row}"
        if shown_draft:
            text += f"{_DIM}{shown_draft}{_PLAIN}"
        self._console.write(text + _CLEAR_RIGHT)

    def _erase(self, n_lines: int) -> str:
        """Forget the segment's text; return what clears it, as far as it is on the screen."""
        rows_up = self._n_rows if self._n_rows < n_lines - 2 else 0
        text = f"\x1b[{rows_up}A" if rows_up else ""
        if self._n_rows and not rows_up:
            text = "\n"  # its start has scrolled away: write the new text under it
        self._row, self._committed, self._n_rows = "", "", 0
        return f"{text}\r{_CLEAR_BELOW}"

    def _end_paragraph(self) -> None:
        has_text = bool(self._row or self._n_rows)
        self._console.write(f"\r{self._row}{_CLEAR_RIGHT}" + ("\n" if has_text else ""))
        self._row, self._committed, self._n_rows = "", "", 0


def _short(name: str) -> str:
    """Return the end of a file's name that leaves room for the bar."""
    name = one_line(PurePath(name).name)
    return name if len(name) <= _MAX_NAME_CHARS else "…" + name[1 - _MAX_NAME_CHARS :]


def _visible(text: str) -> str:
    """Return a text on one line that keeps its outer blanks."""
    inner = one_line(text)
    if not inner:
        return " " if text else ""
    return " " * text[0].isspace() + inner + " " * text[-1].isspace()


def _width(text: str) -> int:
    """Return the terminal columns of a text."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _prefix(text: str, columns: int) -> str:
    """Return as much of a text as fits."""
    used = 0
    for i, c in enumerate(text):
        used += _width(c)
        if used > columns:
            return text[:i]
    return text


def _cut(text: str, columns: int) -> tuple[str, str]:
    """Cut a text that is too long at the last blank that fits, or in a word."""
    head = _prefix(text, columns)
    blank = head.rfind(" ") if text[len(head)] != " " else len(head)
    if blank > 0:
        return text[:blank], text[blank + 1 :]
    return head, text[len(head) :]
