"""A recognizer without weights that hears words on a schedule.

``python tests/fake_recognizer.py ARGS`` is the ``foresound`` command with it, for tests that need
a real process.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import numpy as np

import clients.transcribe
from asr.errors import AdapterError, CheckpointError, OptionError
from asr.events import SAMPLE_RATE, Event, Final, Partial, SpeechStarted, Transcript, Word
from clients.cli import main

WORD = SAMPLE_RATE // 2  # the fake hears a new word every half second
WORDS_PER_SEGMENT = 4


class FakeStream:
    """Commits word n, "w<n>", once (n + 1) half seconds were heard; four words are a segment."""

    def __init__(self, *, second_pass: bool, crash_at: int | None) -> None:
        self.finals: list[Final] = []
        self.n_words = self.heard = 0
        self.second_pass, self.crash_at = second_pass, crash_at

    def feed(self, samples: np.ndarray) -> list[Event]:
        assert samples.dtype == np.float32 and samples.ndim == 1
        events: list[Event] = [] if self.heard else [SpeechStarted(0)]
        self.heard += len(samples)
        if self.crash_at is not None and self.heard >= self.crash_at:
            raise KeyboardInterrupt
        while self.heard >= (self.n_words + 1) * WORD:
            self.n_words += 1
            words = self._open_words()
            text = " " + " ".join(word.text for word in words)
            events.append(Partial(len(self.finals), text, f" d{self.n_words}", words, self.heard))
            if len(words) == WORDS_PER_SEGMENT:
                events.append(self._final())
        return events

    def finish(self) -> list[Event]:
        return [self._final()] if self._open_words() else []

    @property
    def transcript(self) -> Transcript:
        finals = [*self.finals, *([self._make_final()] if self._open_words() else [])]
        return Transcript(tuple(finals), self.heard)

    def _open_words(self) -> tuple[Word, ...]:
        numbers = range(len(self.finals) * WORDS_PER_SEGMENT, self.n_words)
        return tuple(Word(f"w{n}", n * WORD, (n + 1) * WORD, 0.9, True) for n in numbers)

    def _make_final(self) -> Final:
        words = self._open_words()
        text = " ".join(word.text for word in words)
        text = text.upper() if self.second_pass else text
        start, end = words[0].start, words[-1].end
        return Final(len(self.finals), text, words, start, end, self.second_pass, self.heard)

    def _final(self) -> Final:
        final = self._make_final()
        self.finals.append(final)
        return final


class FakeRecognizer:
    name = "fake"
    languages = ("en",)
    crash_at: int | None = None

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def stream(self, **options: Any) -> FakeStream:
        if options["language"] not in (None, *self.languages):
            raise OptionError(f"language is '{options['language']}'; expected en")
        self.options.append(options)
        return FakeStream(second_pass=options["second_pass"], crash_at=self.crash_at)


def fake_load(args: Any) -> FakeRecognizer:
    if args.model != "tiny.en":
        raise CheckpointError(f"model '{args.model}' is unknown; expected tiny.en")
    if args.adapter not in ("auto", "none"):
        raise AdapterError(f"{args.adapter}: adapter_config.json cannot be read; expected a peft folder")
    return FakeRecognizer()


if __name__ == "__main__":
    # A background job of a shell ignores Ctrl-C; the tests send it all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    clients.transcribe.load_recognizer = fake_load  # type: ignore[assignment]
    sys.exit(main())
