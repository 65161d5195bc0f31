"""Tests of training.metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import Event, Final, Partial, Transcript, Word
from training import metrics
from training.manifest import WordTime
from training.metrics import (
    NO_EDITS,
    EmissionLog,
    Latencies,
    ShownWord,
    WerResult,
    corpus_wer,
    count_edits,
    normalize,
    percentiles,
    play,
    spread,
    word_latencies,
)
from training.report import StreamedUtterance, format_table, summarize_streams


def words_of(text: str, *, stable: bool) -> tuple[Word, ...]:
    return tuple(Word(word, start=0, end=0, confidence=1.0, stable=stable) for word in text.split())


def partial(committed: str, draft: str, *, segment: int = 0) -> Partial:
    words = words_of(committed, stable=True) + words_of(draft, stable=False)
    return Partial(segment=segment, committed=committed, draft=draft, words=words, time=0)


def final(text: str, *, segment: int = 0) -> Final:
    words = words_of(text, stable=True)
    return Final(segment, text=text, words=words, start=0, end=0, second_pass=False, time=0)


class ScriptedStream:
    """A stream whose n-th call, ``finish`` being the last, takes a given time and gives given events."""

    def __init__(self, script: Sequence[tuple[float, list[Event]]], monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the clock that the measurement reads.

        Args:
            script: Seconds and events of every call.
            monkeypatch: Puts the clock back after the test.
        """
        self._calls = iter(script)
        self._now_s = 100.0
        self._finals: list[Final] = []
        self.block_sizes: list[int] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self._now_s)

    def feed(self, samples: np.ndarray) -> list[Event]:
        self.block_sizes.append(len(samples))
        return self.finish()

    def finish(self) -> list[Event]:
        took_s, events = next(self._calls)
        self._now_s += took_s
        self._finals += [event for event in events if isinstance(event, Final)]
        return events

    @property
    def transcript(self) -> Transcript:
        return Transcript(tuple(self._finals), duration=sum(self.block_sizes))


def play_script(
    script: Sequence[tuple[float, list[Event]]], *, n_samples: int, monkeypatch: pytest.MonkeyPatch
) -> metrics.TimedStream:
    stream = ScriptedStream(script, monkeypatch)
    return play(cast(Any, stream), np.zeros(n_samples, dtype=np.float32))


def test_latency_of_a_scripted_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """All three latencies of two words equal those computed by hand."""
    script: list[tuple[float, list[Event]]] = [
        (0.000, [partial("", "hell")]),  # heard 20 ms
        (0.030, [partial("", "hello")]),  # heard 40 ms, done at 70 ms
        (0.000, []),  # heard 60 ms, starts at 70 ms because the call before is not done
        (0.000, [partial("Hello,", "word")]),  # heard 80 ms
        (0.005, [partial("Hello,", "world")]),  # heard 100 ms, done at 105 ms
        (0.010, [final("Hello, world.")]),  # finish, done at 115 ms
    ]
    played = play_script(script, n_samples=1600, monkeypatch=monkeypatch)
    assert played.transcript.text == "Hello, world."
    assert played.compute_s == pytest.approx(0.045)
    reference = [WordTime("HELLO", 0.0, 0.03), WordTime("WORLD", 0.03, 0.07)]
    latencies = word_latencies(played.words, reference=reference)
    assert latencies.emission_ms == pytest.approx([40 - 30, 100 - 70])
    assert latencies.emission_compute_aware_ms == pytest.approx([70 - 30, 105 - 70])
    assert latencies.commit_ms == pytest.approx([80 - 30, 100 - 70])


def test_play_feeds_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are 20 ms and the rest, and time is the audio fed, not the audio rounded up."""
    script: list[tuple[float, list[Event]]] = [(0.0, []), (0.0, [partial("", "a")]), (0.0, [final("a")])]
    stream = ScriptedStream(script, monkeypatch)
    played = play(cast(Any, stream), np.zeros(400, dtype=np.float32))
    assert stream.block_sizes == [320, 80]
    assert played.words == [ShownWord("a", 0.025, 0.025, 0.025)]


def test_no_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that hears nothing is only finished."""
    played = play_script([(0.0, [])], n_samples=0, monkeypatch=monkeypatch)
    assert (played.words, played.compute_s) == ([], 0.0)


def emitted_s(*calls: Sequence[Event]) -> list[tuple[str, float, float]]:
    """Text, emission and commitment of every word when the n-th call ends at n seconds."""
    log = EmissionLog()
    for time_s, events in enumerate(calls, start=1):
        log.add(events, time_s=float(time_s), compute_aware_s=float(time_s))
    return [(word.text, word.emitted_s, word.committed_s) for word in log.words()]


def test_a_word_that_vanishes_counts_from_its_return() -> None:
    """Flicker is not emission: only the last uninterrupted showing counts."""
    shown = emitted_s([partial("", "so")], [partial("", "")], [partial("", "so")], [final("so")])
    assert shown == [("so", 3, 4)]


def test_a_word_in_the_wrong_place_is_not_shown() -> None:
    """A word that an insertion moves was shown in another place before."""
    shown = emitted_s([partial("", "a dog")], [partial("", "a big dog")], [final("a big dog")])
    assert shown == [("a", 1, 3), ("big", 2, 3), ("dog", 2, 3)]


def test_spelling_is_no_change() -> None:
    """Case and punctuation that come later do not delay a word."""
    assert emitted_s([partial("", "hello")], [partial("Hello,", "")], [final("Hello,")]) == [("Hello,", 1, 2)]


def test_a_segment_seam_does_not_delay() -> None:
    """A word that a new segment takes over stays on the screen; so do those of the finished one."""
    shown = emitted_s(
        [partial("one", "two")],
        [final("one"), partial("", "two", segment=1)],
        [final("two", segment=1)],
    )
    assert shown == [("one", 1, 1), ("two", 1, 3)]


def test_a_stream_without_final_counts_as_shown_last() -> None:
    """Words of an unfinished segment have the times of what was shown."""
    assert emitted_s([partial("", "a")], [partial("a", "b")]) == [("a", 1, 2), ("b", 2, 2)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.sampled_from("abc"), max_size=4), st.integers(0, 4)), min_size=1))
def test_emission_comes_before_commitment(states: list[tuple[list[str], int]]) -> None:
    """Whatever flickers, a word is emitted no later than committed, and no later than the end."""
    calls: list[list[Event]] = [
        [partial(" ".join(text[:n_committed]), " ".join(text[n_committed:]))] for text, n_committed in states
    ]
    calls.append([final(" ".join(states[-1][0]))])
    shown = emitted_s(*calls)
    assert [text for text, _, _ in shown] == states[-1][0]
    for index, (text, emitted, committed) in enumerate(shown):
        assert 1 <= emitted <= committed <= len(calls)
        for state, _ in states[int(emitted) - 1 :]:
            assert state[index] == text


def shown_at(**times_s: float) -> list[ShownWord]:
    return [ShownWord(word, time_s, time_s + 1, time_s + 2) for word, time_s in times_s.items()]


def test_only_matching_words_have_a_latency() -> None:
    """Substituted, inserted and missing words are left out; early words have a negative latency."""
    reference = [WordTime("THE", 0.0, 0.5), WordTime("GREY", 0.5, 1.0), WordTime("FOX", 1.0, 1.5)]
    latencies = word_latencies(shown_at(the=0.4, old=0.9, gray=1.25, box=2.0), reference=reference)
    assert latencies.emission_ms == pytest.approx([-100, 250])
    assert latencies.emission_compute_aware_ms == pytest.approx([900, 1250])
    assert latencies.commit_ms == pytest.approx([1900, 2250])


def test_contractions_match_their_parts() -> None:
    """One word here may be two there; it counts once, against the end of its last part."""
    reference = [WordTime("I", 0.0, 0.25), WordTime("AM", 0.25, 0.5), WordTime("HERE", 0.5, 1.0)]
    shown = [ShownWord("I'm", 1.0, 1.0, 1.0), ShownWord("here.", 2.0, 2.0, 2.0)]
    assert word_latencies(shown, reference=reference).emission_ms == pytest.approx([500, 1000])
    half = [ShownWord("I'm", 1.0, 1.0, 1.0)]
    assert word_latencies(half, reference=reference[:1]) == Latencies()


def test_no_words_no_latency() -> None:
    """Nothing said or nothing recognised gives no latencies."""
    assert word_latencies([], reference=[WordTime("a", 0.0, 1.0)]) == Latencies()
    assert word_latencies(shown_at(a=1.0), reference=[]) == Latencies()


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("MISTER SMITH'S COLOUR", "Mr. Smith's color!", WerResult(n_words=4)),
        ("TWENTY ONE", "21", WerResult(n_words=1)),
        ("UM WELL", "Well,", WerResult(n_words=1)),
        ("A B C D", "a x c", WerResult(n_words=4, substitutions=1, deletions=1)),
        ("A", "a b c", WerResult(n_words=1, insertions=2)),
        ("", "you", WerResult(n_words=0, insertions=1)),
        ("GONE", "", WerResult(n_words=1, deletions=1)),
        ("", "", WerResult()),
    ],
)
def test_count_edits(reference: str, hypothesis: str, expected: WerResult) -> None:
    """Edits are counted after normalising both sides."""
    assert count_edits(reference, hypothesis=hypothesis) == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.text("abc "), st.text("abc ")), min_size=1, max_size=5))
def test_corpus_wer_is_jiwers(pairs: list[tuple[str, str]]) -> None:
    """Summed counts give the corpus word error rate that jiwer gives for the whole list."""
    references = [normalize(reference) for reference, _ in pairs]
    hypotheses = [normalize(hypothesis) for _, hypothesis in pairs]
    wer = corpus_wer(count_edits(reference, hypothesis=hypothesis) for reference, hypothesis in pairs)
    if any(references):
        assert wer == pytest.approx(jiwer.wer(references, hypotheses))
    else:
        assert wer is None


def test_wer_without_reference_words() -> None:
    """Without reference words the rate is 0 or infinite, and None where it is reported."""
    assert WerResult().wer == 0.0
    assert WerResult(insertions=1).wer == float("inf")
    assert corpus_wer([WerResult(insertions=1)]) is None


def test_percentiles() -> None:
    """Percentiles are interpolated; there are none of nothing."""
    assert percentiles([float(value) for value in range(101)]) == {"p50": 50.0, "p95": 95.0}
    assert percentiles([1.0, 2.0]) == {"p50": 1.5, "p95": pytest.approx(1.95)}
    assert percentiles([]) is None
    assert spread([1.0, 2.0]) == {"mean": 1.5, "p50": 1.5, "p95": 1.95} and spread([]) is None


def test_summary_and_table() -> None:
    """A summary pools words over utterances, and the table has a dash for what is missing."""
    one = StreamedUtterance(300, "a", WerResult(4, 1), 0.5, Latencies([100.0], [200.0], [300.0]))
    two = StreamedUtterance(300, "b", WerResult(6, 0, 0, 1), 1.0, Latencies([300.0], [400.0], [500.0]))
    numbers = summarize_streams([one, two], duration_s=10.0)
    assert numbers["wer"] == 0.2 and numbers["rtf"] == 0.15
    assert numbers["latency_ms"] == {"p50": 200.0, "p95": pytest.approx(290.0)}
    assert numbers["second_pass_wer"] is None
    table = format_table([{"chunk_ms": 300, **numbers, "offline_wer": None, "wer_ratio": None}])
    header, rule, row = table.splitlines()
    assert len(header) == len(rule) == len(row)
    assert row.split() == ["300", "20.00", "1/0/1", "-", "-", "200/290", "300/390", "400/490", "0.150"]
    assert summarize_streams([], duration_s=0.0)["wer"] is None
    assert corpus_wer([]) is None and NO_EDITS.n_edits == 0
