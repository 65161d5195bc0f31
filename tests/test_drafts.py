"""Drafts: the beginning of a chunk is shown as it is heard, and nothing of it stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from asr.decoder import Decoder
from asr.encoder import FRAME_SAMPLES, CausalEncoder, Chunking
from asr.errors import OptionError
from asr.events import SAMPLE_RATE, Event, Final, Partial
from asr.features import LogMel, RunningNorm
from asr.recognizer import Recognizer
from asr.search import Search, Steps, _Hypothesis
from asr.slots import new_slot
from asr.window import Window, WindowJob
from tests.tiny import tiny_whisper
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


def without_drafts(events: Sequence[Event]) -> list[Any]:
    """What was committed, in order: changes of committed text, and everything that is not a partial."""
    kept: list[Any] = []
    for event in told(events):
        if not isinstance(event, Partial):
            kept.append(event)
        elif event.committed and (event.segment, event.committed) not in kept:
            kept.append((event.segment, event.committed))
    return kept


@torch.no_grad()
@pytest.mark.parametrize(("chunk_ms", "draft_ms"), [(300, 80), (600, 300), (1000, 160), (600, 260)])
def test_a_draft_is_one_pass_over_what_was_heard(chunk_ms: int, draft_ms: int) -> None:
    """A draft's frames are those of a signal that ends there, and chunks are the same with and without."""
    model = tiny_whisper()
    encoder, mel = CausalEncoder(model.encoder), LogMel(80)
    decoder = Decoder(model.decoder, model.alignment_heads)
    chunking = Chunking.from_ms(chunk_ms, left_context_s=2.0)
    signal = torch.from_numpy(np.random.default_rng(0).standard_normal(12 * SAMPLE_RATE).astype(np.float32))[
        None
    ]
    raw = mel.forward(signal)
    whole = encoder.forward(RunningNorm().forward(raw)[0][..., :1199], chunking)
    slot = new_slot(encoder, decoder, mel, left_context=chunking.left_context)
    for tensor in (slot.encoder.keys, slot.encoder.values, slot.cross.frames):
        tensor.fill_(torch.nan)
    window = Window(mel, chunking, slot, draft_size=draft_ms // 20)
    heard = n_drafts = 0
    while True:
        due = window.due if window.draft_due is None else window.draft_due
        if due > signal.shape[1]:
            break
        window.hear(signal[:, heard:due])
        heard = due
        start = window.position
        if due < window.due:
            job = window.draft_job()
            frames = encoder.step([job.encoder])[0]
            end = start + frames.shape[1]
            assert end * FRAME_SAMPLES + mel.latency <= heard < (end + 1) * FRAME_SAMPLES + 2 * mel.latency
            cut = encoder.forward(RunningNorm().forward(raw[..., : 2 * end + 1])[0], chunking)
            torch.testing.assert_close(frames, cut[:, start:end], rtol=0, atol=2e-5)
            window.drop_draft()
            n_drafts += 1
        else:
            frames = encoder.step([window.next_job().encoder])[0]
            torch.testing.assert_close(frames, whole[:, start : start + frames.shape[1]], rtol=0, atol=2e-5)
            window.accept()
    assert n_drafts >= 10


@pytest.mark.parametrize("options", [{}, {"beam_size": 2}, {"hotwords": ["country"]}, {"adaptive": False}])
def test_what_is_committed_does_not_depend_on_drafts(
    recognizer: Recognizer, jfk: np.ndarray, options: dict[str, Any]
) -> None:
    plain = listen(recognizer, jfk, chunk_ms=600, **options)
    drafted = listen(recognizer, jfk, chunk_ms=600, draft_ms=160, **options)
    assert without_drafts(drafted) == without_drafts(plain)
    assert len(drafted) > len(plain)


def test_words_show_up_sooner(recognizer: Recognizer, jfk: np.ndarray) -> None:
    chunks, drafts = (
        play(recognizer.stream(chunk_ms=1000, draft_ms=draft_ms), jfk).words for draft_ms in (None, 200)
    )
    assert [word.text for word in drafts] == [word.text for word in chunks]
    assert [word.committed_s for word in drafts] == [word.committed_s for word in chunks]
    gained = np.subtract([word.emitted_s for word in chunks], [word.emitted_s for word in drafts])
    assert gained.min() > -0.05  # a word that a draft had wrong
    assert gained.mean() > 0.2


@pytest.mark.parametrize("block", [1000, 4801, 10**6])
def test_blocks_do_not_matter(tiny_recognizer: Recognizer, jfk: np.ndarray, block: int) -> None:
    expected = listen(tiny_recognizer, jfk, chunk_ms=600, draft_ms=200, block=160)
    events = listen(tiny_recognizer, jfk, chunk_ms=600, draft_ms=200, block=block)
    assert told(events) == told(expected)


def test_streams_with_and_without_drafts_share_a_batch(recognizer: Recognizer, jfk: np.ndarray) -> None:
    settings: list[dict[str, Any]] = [
        {"chunk_ms": 600, "draft_ms": 200},
        {"chunk_ms": 300},
        {"chunk_ms": 600},
    ]
    clip = jfk[: 5 * SAMPLE_RATE]
    streams = [recognizer.stream(**each) for each in settings]
    events: list[list[Event]] = [[] for _ in streams]
    for start in range(0, len(clip), 3200):
        pairs = [(stream, clip[start : start + 3200]) for stream in streams]
        for kept, new in zip(events, recognizer.step_batch(pairs), strict=True):
            kept += new
    for each, stream, kept in zip(settings, streams, events, strict=True):
        alone = recognizer.stream(**each)
        expected = [
            event for start in range(0, len(clip), 3200) for event in alone.feed(clip[start : start + 3200])
        ]
        assert [event.text for event in kept if isinstance(event, Partial)] == [
            event.text for event in expected if isinstance(event, Partial)
        ]
        assert stream.transcript.text == alone.transcript.text


def test_a_flush_between_drafts_changes_nothing(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    finals = []
    for draft_ms in (None, 100):
        stream = tiny_recognizer.stream(chunk_ms=600, draft_ms=draft_ms)
        for start in range(0, 6 * SAMPLE_RATE, 2000):
            stream.feed(jfk[start : start + 2000])
            if start % 36_000 == 0:
                stream.flush()
        stream.finish()
        finals.append(told(stream.transcript.segments))
    assert finals[0] == finals[1]


def test_what_was_heard_before_is_not_drafted_again(
    tiny_recognizer: Recognizer, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speech that gives no word is read again from a window that restarts in it, in one step."""
    due: list[int | None] = []
    anchors = set()
    draft_job, restart = Window.draft_job, Window.restart

    def hear_nothing(*_: object) -> Steps[list[_Hypothesis]]:
        yield from ()
        return [_Hypothesis((), 0.0, ended=True)]

    def note_draft(window: Window) -> WindowJob:
        due.append(window.draft_due)
        return draft_job(window)

    def note_restart(window: Window, anchor: int, *, n_frames: int) -> None:
        anchors.add(anchor)
        restart(window, anchor, n_frames=n_frames)

    monkeypatch.setattr(Search, "_read", hear_nothing)
    monkeypatch.setattr(Window, "draft_job", note_draft)
    monkeypatch.setattr(Window, "restart", note_restart)
    listen(tiny_recognizer, np.tile(jfk[8 * SAMPLE_RATE : 10 * SAMPLE_RATE], 6), chunk_ms=600, draft_ms=200)
    assert len(anchors) > 1 and len(due) > 20
    assert all(a is not None and b is not None and a < b for a, b in zip(due[:-1], due[1:], strict=True))


def test_samples_due_are_those_of_the_next_draft(tiny_recognizer: Recognizer) -> None:
    stream = tiny_recognizer.stream(chunk_ms=600, draft_ms=200)
    latency = LogMel.latency
    due = [stream.n_due]
    for _ in range(8):
        stream.feed(np.zeros(stream.n_due, np.float32))
        due.append(stream.n_due)
    assert due == [3200 + latency] + [3200] * 8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"draft_ms": 30}, "draft_ms must be from 40 to 1000, not 30"),
        ({"draft_ms": 50}, "draft_ms must be a multiple of 20, not 50"),
        ({"draft_ms": 200, "decoder": "transducer"}, "draft_ms is for Whisper's decoder"),
    ],
)
def test_wrong_drafts_are_refused(tiny_recognizer: Recognizer, options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        tiny_recognizer.stream(**options)


def test_drafts_as_long_as_chunks_are_of_the_first_one_only(tiny_recognizer: Recognizer) -> None:
    stream = tiny_recognizer.stream(chunk_ms=300, draft_ms=300)
    due = []
    for _ in range(4):
        due.append(stream.n_due)
        stream.feed(np.zeros(stream.n_due, np.float32))
    assert due == [4800 + LogMel.latency, 4800, 4800, 4800]
    assert tiny_recognizer.stream(chunk_ms=300, draft_ms=600).n_due == 9600 + LogMel.latency
