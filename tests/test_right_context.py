"""Right context: the newest frames are provisional; what is read from them is shown, but stays open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from asr.errors import OptionError
from asr.events import SAMPLE_RATE, Event, Final, Partial
from asr.features import LogMel
from asr.recognizer import Recognizer
from asr.stream import Stream
from training.metrics import play


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    """tiny.en in fp32: what 8-bit weights make of rounding decides a close call now and then."""
    return Recognizer.load("tiny.en", weights="fp32")


def listen(recognizer: Recognizer, samples: np.ndarray, *, block: int = 3200, **options: Any) -> list[Event]:
    stream = recognizer.stream(**options)
    events = []
    for start in range(0, len(samples), block):
        events += stream.feed(samples[start : start + block])
    return events + stream.finish()


def told(events: Sequence[Event]) -> list[Event]:
    """Events without confidences, whose last digits depend on what is computed together."""
    return [
        replace(event, words=tuple(replace(word, confidence=1.0) for word in event.words))
        if isinstance(event, Partial | Final)
        else event
        for event in events
    ]


@pytest.mark.parametrize("options", [{}, {"beam_size": 2}, {"hotwords": ["country"]}, {"adaptive": False}])
def test_only_what_lies_in_final_frames_is_committed(
    recognizer: Recognizer, jfk: np.ndarray, options: dict[str, Any]
) -> None:
    """Also where nothing is kept open for any other reason."""
    stream = recognizer.stream(chunk_ms=200, right_context_ms=600, open_tokens=0, silence_ms=3000, **options)
    n_committed = n_open = 0
    for start in range(0, 9 * SAMPLE_RATE, 1600):
        for event in stream.feed(jfk[start : start + 1600]):
            if isinstance(event, Partial):
                newest = stream._listener._search.committed[-1:]
                assert all(token.peak < stream._window.final_end for token in newest)
                n_committed, n_open = n_committed + bool(newest), n_open + bool(event.draft)
    assert n_committed > 10 and n_open > 10


def test_words_show_as_soon_and_are_heard_better(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """The clip's "ask not" needs what comes after it, and words are not shown later for it."""
    without, with_context = (
        play(recognizer.stream(chunk_ms=300, right_context_ms=right), jfk).words for right in (0, 300)
    )
    assert "ask not" in " ".join(word.text.lower() for word in with_context)
    assert "ask not" not in " ".join(word.text.lower() for word in without)
    shown = {word.text.lower(): word.emitted_s for word in without}
    both = [(word.emitted_s, shown[text]) for word in with_context if (text := word.text.lower()) in shown]
    assert len(both) > 10
    assert np.median([a - b for a, b in both]) <= 0


@pytest.mark.parametrize("block", [1000, 4801, 10**6])
def test_blocks_do_not_matter(tiny_recognizer: Recognizer, jfk: np.ndarray, block: int) -> None:
    options = {"chunk_ms": 160, "right_context_ms": 400}
    expected = listen(tiny_recognizer, jfk, block=160, **options)
    assert told(listen(tiny_recognizer, jfk, block=block, **options)) == told(expected)


def test_streams_with_other_contexts_share_a_batch(recognizer: Recognizer, jfk: np.ndarray) -> None:
    settings = [{"chunk_ms": 300, "right_context_ms": right} for right in (0, 300, 700)]
    clip = jfk[: 5 * SAMPLE_RATE]
    streams = [recognizer.stream(**each) for each in settings]
    events: list[list[Event]] = [[] for _ in streams]
    for start in range(0, len(clip), 3200):
        pairs = [(stream, clip[start : start + 3200]) for stream in streams]
        for kept, new in zip(events, recognizer.step_batch(pairs), strict=True):
            kept += new

    def shown(several: Sequence[Event]) -> list[str]:
        return [event.text for event in several if isinstance(event, Partial)]

    for each, kept in zip(settings, events, strict=True):
        alone = recognizer.stream(**each)
        assert shown(kept) == shown(
            [e for s in range(0, len(clip), 3200) for e in alone.feed(clip[s : s + 3200])]
        )


def test_a_flush_takes_its_silence_back(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """After a flush amid speech, the next frames are those that there are without it."""
    frames = []
    for flushes in (False, True):
        stream = recognizer.stream(chunk_ms=300, right_context_ms=300)
        stream.feed(jfk[: 4 * SAMPLE_RATE])
        if flushes:
            stream.flush()
        stream.feed(jfk[4 * SAMPLE_RATE : 5 * SAMPLE_RATE])
        cross = stream._window.cross
        frames.append(cross.frames[:, : cross.n_frames].clone())
    np.testing.assert_allclose(*(each.numpy() for each in frames), atol=1e-4)


def test_no_audio_is_waited_for_longer(tiny_recognizer: Recognizer) -> None:
    """Steps come when chunks are full; right context asks for no more audio before them."""

    def due(right_context_ms: int) -> list[int]:
        stream, lengths = tiny_recognizer.stream(chunk_ms=200, right_context_ms=right_context_ms), []
        for _ in range(5):
            lengths.append(stream.n_due)
            stream.feed(np.zeros(stream.n_due, np.float32))
        return lengths

    assert due(0) == due(600) == [6400 + LogMel.latency] + [3200] * 4


def test_usual_right_contexts(tiny_recognizer: Recognizer) -> None:
    def frames(stream: Stream) -> int:
        return stream._options.chunking.right_context

    contexts = {ms: frames(tiny_recognizer.stream(chunk_ms=ms)) for ms in (80, 300, 700, 800, 1000)}
    assert contexts == {80: 15, 300: 15, 700: 15, 800: 10, 1000: 0}
    assert frames(tiny_recognizer.stream(right_context_ms=0)) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"right_context_ms": 30}, "right_context_ms must be a multiple of 20 from 0 to 700 .* not 30"),
        ({"chunk_ms": 600, "right_context_ms": 420}, "from 0 to 400 with chunks of 600 ms, not 420"),
    ],
)
def test_wrong_right_contexts_are_refused(
    tiny_recognizer: Recognizer, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(OptionError, match=text):
        tiny_recognizer.stream(**options)
