"""Live text is replayed on a small screen."""

from __future__ import annotations

import io
import shutil

import pytest

from asr.events import Final, Partial
from clients.display import AudioBar, Console, LiveText


def final(text: str) -> Final:
    return Final(0, text, (), start=0, end=16_000, second_pass=False, time=16_000)


class Screen(io.StringIO):
    """Just enough of a terminal: CR, LF, cursor up, clear to the right and below, dim."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.rows, self.row, self.column = [""], 0, 0

    def write(self, text: str) -> int:
        i = 0
        while i < len(text):
            if text[i] == "\x1b":
                j = i + 2
                while not text[j].isalpha():
                    j += 1
                self._control(text[j], text[i + 2 : j])
                i = j + 1
                continue
            if text[i] == "\r":
                self.column = 0
            elif text[i] == "\n":
                self.row, self.column = self.row + 1, 0
                self.rows += [""] * (self.row + 1 - len(self.rows))
            else:
                assert self.column < self.columns - 1, "the last column must stay free"
                line = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = line[: self.column] + text[i] + line[self.column + 1 :]
                self.column += 1
            i += 1
        return len(text)

    def _control(self, letter: str, number: str) -> None:
        if letter == "A":
            self.row -= int(number)
        elif letter in "KJ":
            self.rows[self.row] = self.rows[self.row][: self.column]
            if letter == "J":
                del self.rows[self.row + 1 :]
        else:
            assert letter == "m"

    @property
    def lines(self) -> list[str]:
        return [row.rstrip() for row in self.rows if row.strip()]


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> tuple[LiveText, Screen]:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: (20, 10))
    screen = Screen(20)
    bar = AudioBar.over("x", duration_s=1.0, out=screen, row=1, hidden=True)
    return LiveText(Console(screen, bar)), screen


def partial(committed: str, draft: str = "") -> Partial:
    return Partial(segment=0, committed=committed, draft=draft, words=(), time=0)


def test_live_text_wraps_words_and_replaces_drafts(live: tuple[LiveText, Screen]) -> None:
    """Committed words stay, a draft is replaced, and no row reaches the edge."""
    text, screen = live
    text.handle(partial("", " And zo"))
    assert screen.lines == ["And zo"]
    text.handle(partial(" And so", " my fellow Amerika and more"))
    assert screen.lines == ["And so my fellow Am"]
    text.handle(partial(" And so my fellow Ame"))
    text.handle(partial(" And so my fellow Americans", " ask"))
    assert screen.lines == ["And so my fellow", "Americans ask"]
    text.handle(final("And so my fellow Americans ask not"))
    text.handle(partial("Next"))
    assert screen.lines == ["And so my fellow", "Americans ask not", "Next"]
    text.close()
    assert screen.lines[-1] == "Next" and screen.column == 0


def test_live_text_rewrites_a_segment_after_its_second_pass(live: tuple[LiveText, Screen]) -> None:
    """The rows of the first pass give way to the second pass's text."""
    text, screen = live
    text.handle(final("One."))
    text.handle(partial("and zo my fellow Amerikans ask knot", " what"))
    text.handle(final("And so my fellow Americans, ask not."))
    assert screen.lines == ["One.", "And so my fellow", "Americans, ask not."]
    text.handle(partial("hm", "m"))
    text.handle(final(""))
    assert screen.lines[-1] == "Americans, ask not."
    text.close()


def test_live_text_cuts_words_longer_than_a_row_and_wide_letters(
    live: tuple[LiveText, Screen],
) -> None:
    """Text without blanks is cut; wide letters count two columns."""
    text, screen = live
    text.handle(final("x" * 45))
    assert screen.lines == ["x" * 19, "x" * 19, "x" * 7]
    text.handle(final("世" * 12))
    assert screen.lines[3:] == ["世" * 9, "世" * 3]
    text.close()


def test_live_text_of_a_long_segment_is_printed_again(live: tuple[LiveText, Screen]) -> None:
    """What has scrolled off the screen cannot be rewritten; the new text follows it."""
    text, screen = live
    text.handle(partial("word " * 60))
    text.handle(final("Other " * 3))
    assert screen.lines[-1] == "Other Other Other"
    assert screen.lines[0] == "word word word word"
    text.close()
