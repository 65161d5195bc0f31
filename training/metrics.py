"""Word error rate and word latency of streaming recognition.

Definitions used in every number that foresound reports:

Word error rate (WER)
    (substitutions + deletions + insertions) / reference words, summed over a whole corpus before
    dividing, after Whisper's English normaliser on both sides.
Emission
    A streamed word is *emitted* at the end of the first call from which on it was shown, in
    committed or draft text, at its place and never changed until the stream's end. It is
    *committed* at the end of the first call from which on it was shown as committed. Letter case,
    punctuation and whatever else the normaliser removes do not count as a change.
Latency of a word
    Time of its emission (or commitment) minus the end of the same word in the reference times.
    Only words that match exactly in the minimal edit alignment count. It is negative when a word
    is shown before it has ended.
Lookahead of a frame
    How much audio after its own end a frame of a transducer's needed, because it or a frame before
    it chose to look at it, directly or through the layers below; whether that audio came in the same
    chunk does not matter. That of a word is the lookahead of the frame at which its last token came
    out. Whisper's decoder has none.
Compute-unaware time
    Seconds of audio that had been fed when the call returned: what an infinitely fast computer
    would show, audio being heard in small blocks.
Compute-aware time
    Each call starts when its audio has arrived and the call before it is done, and lasts as long
    as it was measured to last: what a listener to this computer sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

import jiwer
import numpy as np
from whisper.normalizers import EnglishTextNormalizer

from asr import SAMPLE_RATE, Event, Final, Partial, Stream, Transcript, Word
from training.manifest import WordTime

Token = tuple[str, ...]
"""A word as the normaliser writes it: mostly one part, "I'm" has two, "um" has none."""


@cache
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()


def normalize(text: str) -> str:
    """Return a text in lower case, without punctuation and with one spelling per word.

    Args:
        text: Any English text.

    Returns:
        The output of Whisper's English normaliser, words separated by single blanks.
    """
    return " ".join(_normalizer()(text).split())


@lru_cache(maxsize=65_536)
def word_parts(word: str) -> Token:
    """Return a word as the normaliser writes it, in parts."""
    return tuple(normalize(word).split())


@dataclass(frozen=True)
class WerResult:
    """Edit counts of a corpus or a part of one; parts add up with ``+``."""

    n_words: int = 0
    """Normalised reference words."""
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def n_edits(self) -> int:
        """All edits together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Edits per reference word; without reference words 0.0, or infinity if there are edits."""
        if self.n_words == 0:
            return float("inf") if self.n_edits else 0.0
        return self.n_edits / self.n_words

    def __add__(self, other: WerResult) -> WerResult:
        """Return the counts of both parts together."""
        return WerResult(
            n_words=self.n_words + other.n_words,
            substitutions=self.substitutions + other.substitutions,
            deletions=self.deletions + other.deletions,
            insertions=self.insertions + other.insertions,
        )


NO_EDITS = WerResult()


def count_edits(reference: str, *, hypothesis: str) -> WerResult:
    """Count the edits between two texts after normalising both.

    Args:
        reference: What was said.
        hypothesis: What was recognised.

    Returns:
        The counts; an empty reference turns every recognised word into an insertion.
    """
    output = jiwer.process_words(normalize(reference), normalize(hypothesis))
    return WerResult(
        n_words=output.hits + output.substitutions + output.deletions,
        substitutions=output.substitutions,
        deletions=output.deletions,
        insertions=output.insertions,
    )


def corpus_wer(parts: Iterable[WerResult]) -> float | None:
    """Return the word error rate of all parts together, None where there are no reference words."""
    total = sum(parts, NO_EDITS)
    return total.wer if total.n_words else None


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return median and 95th percentile, interpolated linearly.

    Args:
        values: Numbers of one unit, in any order.

    Returns:
        ``p50`` and ``p95`` in the unit of the values; None without values.
    """
    if not values:
        return None
    p50, p95 = np.percentile(np.asarray(values, dtype=np.float64), [50, 95])
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return the mean beside :func:`percentiles`.

    Args:
        values: Numbers of one unit, in any order.
    """
    found = percentiles(values)
    return found and {"mean": round(float(np.mean(values)), 3), **found}


@dataclass(frozen=True)
class ShownWord:
    """One word of the finished stream and when it came; times in seconds from the stream's start."""

    text: str
    emitted_s: float
    emitted_compute_aware_s: float
    committed_s: float


@dataclass(frozen=True)
class _State:
    """What is on the screen after one call, and when; ``n_committed`` words of it are for good."""

    tokens: tuple[Token, ...]
    n_committed: int
    time_s: float
    compute_aware_s: float


@dataclass
class EmissionLog:
    """Follows one stream's events and tells for every word when it was shown for good."""

    _states: list[_State] = field(default_factory=list)
    _finished: list[Word] = field(default_factory=list)
    """Words of the segments that have their final."""
    _open: tuple[Word, ...] = ()
    """Words of the segment that is being spoken."""

    def add(self, events: Sequence[Event], *, time_s: float, compute_aware_s: float) -> None:
        """Take the events of one call, all shown when the call returns.

        Args:
            events: In the order in which the stream gave them.
            time_s: Seconds of audio fed when the call returned.
            compute_aware_s: Seconds on the simulated clock when the call returned.
        """
        for event in events:
            match event:
                case Partial():
                    self._open = event.words
                case Final():
                    self._finished.extend(event.words)
                    self._open = ()
        if not any(isinstance(event, Partial | Final) for event in events):
            return
        n_stable = next((i for i, word in enumerate(self._open) if not word.stable), len(self._open))
        self._states.append(
            _State(
                tokens=tuple(word_parts(word.text) for word in (*self._finished, *self._open)),
                n_committed=len(self._finished) + n_stable,
                time_s=time_s,
                compute_aware_s=compute_aware_s,
            )
        )

    def words(self) -> list[ShownWord]:
        """Return the words of the finished stream with their times.

        Returns:
            The words of all finals; a segment without a final counts as it was last shown.
        """
        shown: list[ShownWord] = []
        for index, word in enumerate((*self._finished, *self._open)):
            emitted = self._first_for_good(index, committed=False)
            committed = self._first_for_good(index, committed=True)
            shown.append(
                ShownWord(
                    text=word.text,
                    emitted_s=emitted.time_s,
                    emitted_compute_aware_s=emitted.compute_aware_s,
                    committed_s=committed.time_s,
                )
            )
        return shown

    def _first_for_good(self, index: int, *, committed: bool) -> _State:
        """Return the first state from which on the word at an index stays as in the last state."""
        first = self._states[-1]
        token = first.tokens[index]
        for state in reversed(self._states):
            n_shown = state.n_committed if committed else len(state.tokens)
            if index >= n_shown or state.tokens[index] != token:
                break
            first = state
        return first


@dataclass(frozen=True)
class TimedStream:
    """One stream played to its end."""

    transcript: Transcript
    words: list[ShownWord]
    compute_s: float
    """Measured seconds inside ``feed`` and ``finish``."""


def play(stream: Stream, samples: np.ndarray, *, block_ms: int = 20) -> TimedStream:
    """Feed samples block by block as a microphone would and time every call.

    Nothing waits: real time is simulated from the measured durations of the calls.

    Args:
        stream: A fresh stream.
        samples: float32 at 16 kHz, shape (n_samples,).
        block_ms: Length of a block; the times are as fine as this.

    Returns:
        The transcript and the words with the times at which they were shown.
    """
    block = SAMPLE_RATE * block_ms // 1000
    log = EmissionLog()
    clock_s = compute_s = 0.0
    starts = [*range(0, len(samples), block), None]
    for start in starts:
        heard_s = (len(samples) if start is None else min(start + block, len(samples))) / SAMPLE_RATE
        began_s = time.perf_counter()
        events = stream.finish() if start is None else stream.feed(samples[start : start + block])
        took_s = time.perf_counter() - began_s
        clock_s = max(clock_s, heard_s) + took_s
        compute_s += took_s
        log.add(events, time_s=heard_s, compute_aware_s=clock_s)
    return TimedStream(transcript=stream.transcript, words=log.words(), compute_s=compute_s)


def transcribe(stream: Stream, samples: np.ndarray) -> str:
    """Return the text of samples fed to a fresh stream at once."""
    stream.feed(samples)
    stream.finish()
    return stream.transcript.text


@dataclass(frozen=True)
class Latencies:
    """Latency of every matched word in milliseconds, three ways; one list entry per word."""

    emission_ms: list[float] = field(default_factory=list)
    emission_compute_aware_ms: list[float] = field(default_factory=list)
    commit_ms: list[float] = field(default_factory=list)


def word_latencies(words: Sequence[ShownWord], *, reference: Sequence[WordTime]) -> Latencies:
    """Match streamed words with reference times and return how late each matched word was.

    Words are normalised one by one, so that "I'm" meets "I am"; such a word counts, against the
    end of the last part, when all its parts match.

    Args:
        words: The words of the finished stream.
        reference: Times of the words that were said.

    Returns:
        Latencies of the words that match exactly.
    """
    hypothesis_parts = [(part, i) for i, word in enumerate(words) for part in word_parts(word.text)]
    reference_parts = [(part, i) for i, word in enumerate(reference) for part in word_parts(word.word)]
    output = jiwer.process_words(
        " ".join(part for part, _ in reference_parts), " ".join(part for part, _ in hypothesis_parts)
    )
    matched: dict[int, list[int]] = {}
    for chunk in output.alignments[0]:
        if chunk.type == "equal":
            for offset in range(chunk.hyp_end_idx - chunk.hyp_start_idx):
                word_index = hypothesis_parts[chunk.hyp_start_idx + offset][1]
                matched.setdefault(word_index, []).append(reference_parts[chunk.ref_start_idx + offset][1])
    latencies = Latencies()
    for word_index, reference_indexes in matched.items():
        word = words[word_index]
        if len(reference_indexes) < len(word_parts(word.text)):
            continue
        end_s = reference[reference_indexes[-1]].end_s
        latencies.emission_ms.append(_lag_ms(word.emitted_s, end_s))
        latencies.emission_compute_aware_ms.append(_lag_ms(word.emitted_compute_aware_s, end_s))
        latencies.commit_ms.append(_lag_ms(word.committed_s, end_s))
    return latencies


def _lag_ms(time_s: float, end_s: float) -> float:
    return round(1000 * (time_s - end_s), 3)
