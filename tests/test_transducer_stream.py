"""Streams read by a transducer, through the recogniser: alone, in company, in slots, to their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.batch import Step
from asr.biasing import Strength
from asr.checkpoint import load_checkpoint
from asr.errors import AdapterError, OptionError
from asr.events import SAMPLE_RATE, Event, Final, Partial
from asr.frontier import LookPolicy
from asr.head_files import save_head
from asr.recognizer import Recognizer
from asr.second_pass import PendingFinal
from asr.stream import Stream
from asr.transducer_reader import Reading, ReadJob, read
from tests.test_recognizer import check_invariants, hiss, play, play_together, told
from tests.tiny import tiny_whisper
from tests.transducers import head_card, speaking_head, transducer_recognizer


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return transducer_recognizer()


def listen(recognizer: Recognizer, **options: object) -> Stream:
    """A stream of the transducer."""
    return recognizer.stream(decoder="transducer", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk_ms", [80, 300])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_events_keep_their_promises(
    recognizer: Recognizer, jfk: np.ndarray, chunk_ms: int, beam_size: int
) -> None:
    """Whatever a head says, the events are in order and consistent."""
    samples = jfk[: 5 * SAMPLE_RATE]
    stream = listen(recognizer, chunk_ms=chunk_ms, beam_size=beam_size, silence_ms=300)
    events = play(stream, samples)
    check_invariants(events, duration=len(samples))
    finals = [event for event in events if isinstance(event, Final)]
    assert finals and list(stream.transcript.segments) == finals
    assert any(isinstance(event, Partial) for event in events)


@pytest.mark.parametrize("block", [317, 4096, 10**6])
def test_blocks_do_not_matter(recognizer: Recognizer, jfk: np.ndarray, block: int) -> None:
    """The same events come in the same order for blocks of any size."""
    samples = jfk[: 5 * SAMPLE_RATE]
    assert told(play(listen(recognizer), samples, block=block)) == told(play(listen(recognizer), samples))


def test_company_changes_nothing(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Both decoders, other dials, chunks and beams in one batch say what each says alone."""
    options: list[dict[str, object]] = [
        {"decoder": "transducer", "chunk_ms": 300},
        {"decoder": "whisper", "chunk_ms": 300},
        {"decoder": "transducer", "chunk_ms": 80, "latency": "minimal"},
        {"decoder": "transducer", "chunk_ms": 300, "latency": 200.0, "beam_size": 2},
    ]
    clips = [jfk[k * 8000 : k * 8000 + 3 * SAMPLE_RATE] for k in range(len(options))]
    streams = [recognizer.stream(**each) for each in options]  # type: ignore[arg-type]
    together = play_together(recognizer, streams, clips)
    for each, clip, events in zip(options, clips, together, strict=True):
        alone = play(recognizer.stream(**each), clip, block=3200)  # type: ignore[arg-type]
        assert [event.text for event in events if isinstance(event, Final)] == [
            event.text for event in alone if isinstance(event, Final)
        ]


def test_the_dial_decides_how_long_frames_wait(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Waits grow with the dial; every head frame has one, and Whisper's decoder has none."""
    samples = jfk[: 3 * SAMPLE_RATE]
    means = []
    for latency in (0, None, "high"):
        stream = listen(recognizer, latency=latency, chunk_ms=40, right_context_ms=0)
        play(stream, samples)
        waits = stream.waits.frames_ms()
        assert len(waits) >= 3 * 25
        means.append(np.mean(waits))
        words = stream.waits.words_ms(stream.transcript.words)
        assert len(words) == len(stream.transcript.words) > 0 and set(words) <= set(waits)
    assert means[0] == 0.0 < means[1] < means[2] <= 240.0
    whisper = recognizer.stream()
    play(whisper, samples)
    assert whisper.waits.frames_ms() == []


def test_slots_are_reused_without_a_trace(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """A slot serves both decoders in turn; unwritten rings hold nan and are never read."""
    (slot,) = [recognizer.slots(1).take()]
    assert slot is not None
    play(listen(recognizer, slot=slot), jfk[:SAMPLE_RATE])
    assert slot.head is not None
    with torch.inference_mode():
        for block in slot.head.lookahead.blocks:
            for ring in block.tensors:
                ring.fill_(torch.nan)
    expected = told(play(listen(recognizer), jfk[: 3 * SAMPLE_RATE]))
    for _ in range(2):
        slot.reset()
        play(listen(recognizer, latency="high", slot=slot), jfk[2 * SAMPLE_RATE : 5 * SAMPLE_RATE])
        slot.reset()
        play(recognizer.stream(slot=slot), jfk[: 2 * SAMPLE_RATE])
        slot.reset()
        assert told(play(listen(recognizer, slot=slot), jfk[: 3 * SAMPLE_RATE])) == expected


def test_a_slot_has_a_head_once_a_transducer_reads_it(recognizer: Recognizer) -> None:
    """Memory is taken only for what is used, and once for all streams of a slot."""
    slot = recognizer.slots(1).take()
    assert slot is not None
    play(recognizer.stream(slot=slot), hiss(1))
    assert slot.head is None
    before = slot.n_bytes
    slot.reset()
    play(listen(recognizer, slot=slot), hiss(1))
    head = slot.head
    assert head is not None and slot.n_bytes > before
    slot.reset()
    play(listen(recognizer, slot=slot), hiss(1))
    assert slot.head is head


def test_flush_makes_everything_final(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """What was said before is told at once, the stream goes on, and no frame is read twice."""
    stream = listen(recognizer, silence_ms=5000)
    events: list[Event] = []
    cuts = [0, 9000, 41_111, 41_200, 70_000, 6 * SAMPLE_RATE]
    for start, end in zip(cuts, cuts[1:], strict=False):
        events += stream.feed(jfk[start:end])
        events += stream.flush()
        assert stream.flush() == []
    finals = [event for event in events if isinstance(event, Final)]
    assert len(finals) >= 2 and all(final.end in cuts for final in finals)
    events += stream.finish()
    check_invariants(events, duration=6 * SAMPLE_RATE)
    plain = listen(recognizer, silence_ms=5000)
    play(plain, jfk[: 6 * SAMPLE_RATE])
    assert len(stream.waits.frames) == len(plain.waits.frames)


def test_silence_gives_no_words(recognizer: Recognizer) -> None:
    """Where nobody speaks, what a head says is not told."""
    stream = listen(recognizer)
    events = play(stream, hiss(5, level=0.001))
    assert stream.waits.frames_ms()
    assert not any(isinstance(event, Partial | Final) for event in events)


def test_very_short_streams(recognizer: Recognizer) -> None:
    """An empty stream and one of 10 ms end without words."""
    for n_samples in (0, 160):
        assert play(listen(recognizer), hiss(n_samples / SAMPLE_RATE)) == []


def test_a_segment_ends_after_its_last_word(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """In a pause the text becomes final before the stream ends, also where the pause is a long one."""
    speech, pause = jfk[: 2 * SAMPLE_RATE], hiss(3, level=0.0005)
    for silence_ms in (300, 1500):
        stream = listen(recognizer, silence_ms=silence_ms)
        events = stream.feed(np.concatenate([speech, pause]))
        assert [event for event in events if isinstance(event, Final)]
        assert not any(isinstance(event, Final) for event in stream.finish())


def test_a_long_stream_restarts_its_window(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Past the encoder's positions every frame is still read once."""
    stream = listen(recognizer, chunk_ms=1000, silence_ms=5000)
    speech = jfk[: int(2.2 * SAMPLE_RATE)]
    events: list[Event] = []
    for _ in range(16):
        events += stream.feed(speech)
    events += stream.finish()
    check_invariants(events, duration=16 * len(speech))
    assert stream._window.anchor > 0
    assert len(stream.waits.frames) == pytest.approx(16 * 2.2 * 25, abs=40)


def test_a_second_pass_is_whispers(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """What the transducer heard can be given to the original Whisper."""
    (outcome,) = recognizer.advance(
        [Step(listen(recognizer, second_pass=True), jfk[: 2 * SAMPLE_RATE], "finish")]
    )
    assert isinstance(outcome, list)
    (pending,) = [each for each in outcome if isinstance(each, PendingFinal)]
    assert pending.model is recognizer.base_model and len(pending.samples) > SAMPLE_RATE


def test_a_failing_stream_fails_alone(
    recognizer: Recognizer, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while many streams are read together is the culprit's alone."""
    streams = [listen(recognizer) for _ in range(3)]
    culprit = streams[1]._listener._reader  # type: ignore[union-attr]

    def fail(head: object, jobs: Sequence[ReadJob]) -> list[Reading]:
        if any(job.reader is culprit for job in jobs):
            raise RuntimeError("broken")
        return read(speaking_head(), jobs)

    monkeypatch.setattr("asr.engine.read", fail)
    outcomes = recognizer.advance([Step(stream, jfk[: 2 * SAMPLE_RATE]) for stream in streams])
    assert isinstance(outcomes[1], RuntimeError)
    alone = told(listen(recognizer).feed(jfk[: 2 * SAMPLE_RATE]))
    for index in (0, 2):
        assert told(outcomes[index]) == alone  # type: ignore[arg-type]


def test_wrong_options_say_what_is_right(recognizer: Recognizer, tiny_recognizer: Recognizer) -> None:
    """A transducer without a head, a dial that nobody measured, a latency for Whisper's decoder."""
    assert recognizer.decoders == ("whisper", "transducer") and tiny_recognizer.decoders == ("whisper",)
    with pytest.raises(OptionError, match="needs a head"):
        tiny_recognizer.stream(decoder="transducer")
    with pytest.raises(OptionError, match="one of whisper, transducer, not"):
        recognizer.stream(decoder="ctc")
    with pytest.raises(OptionError, match="for the transducer"):
        recognizer.stream(latency="low")
    with pytest.raises(OptionError, match="one of minimal, low"):
        listen(recognizer, latency="fast")
    with pytest.raises(OptionError, match="at least 0"):
        listen(recognizer, latency=-1.0)
    card = replace(head_card(), dial=[])
    model = recognizer.base_model
    undialled = Recognizer(model, model, name="tiny", head=(speaking_head(), card))
    listen(undialled)
    with pytest.raises(OptionError, match="has not been measured"):
        listen(undialled, latency="low")


def test_heads_are_loaded_with_what_they_were_trained_on(tmp_path: Path) -> None:
    """From a folder; another adapter's is refused; without one there is no transducer."""
    checkpoint = load_checkpoint("tiny.en")
    save_head(speaking_head(), tmp_path / "other", head_card(checkpoint.weights_hash, "f" * 64))
    save_head(speaking_head(), tmp_path / "none", head_card(checkpoint.weights_hash))
    loaded = Recognizer.load("tiny.en", adapter=None, head=tmp_path / "none")
    assert loaded.decoders == ("whisper", "transducer")
    assert loaded._engine.head is not None
    with pytest.raises(AdapterError, match="made for the adapter ffff"):
        Recognizer.load("tiny.en", head=tmp_path / "other")
    with pytest.raises(AdapterError, match="no such head folder"):
        Recognizer.load("tiny.en", head=tmp_path / "missing")
    assert Recognizer.load("tiny.en", adapter="none").decoders == ("whisper",)
    assert Recognizer.load("tiny.en", head="none").decoders == ("whisper",)


def test_a_latency_is_a_position_of_the_dial(recognizer: Recognizer) -> None:
    """A name or a number turns it as the head's card says; None leaves it as it was trained."""
    policies = [
        listen(recognizer, latency=latency)._options.transducer for latency in (None, "low", 160, "high")
    ]
    assert [each and each.policy for each in policies] == [
        LookPolicy(),
        LookPolicy(0.0),
        LookPolicy(40.0),
        LookPolicy(80.0),
    ]


def test_a_reference_looks_as_it_was_trained() -> None:
    """A head whose frames always looked equally far does so in streams."""
    model, card = tiny_whisper(), replace(head_card(), training={"fixed_look": [3, 1]}, dial=[])
    reference = Recognizer(model, model, name="tiny", head=(speaking_head(), card))
    stream = listen(reference, chunk_ms=40, right_context_ms=0)
    play(stream, hiss(1))
    waits = stream.waits.frames_ms()
    assert max(waits) == 160 and waits[3:-4] == [160] * (len(waits) - 7)


def test_frames_can_be_made_to_look_always_as_far(recognizer: Recognizer) -> None:
    """References on the head that ships: never ahead, or always the same; what cannot be is refused."""
    max_look, n_blocks = speaking_head().config.max_look, speaking_head().config.n_blocks
    for look in (0, max_look):
        stream = listen(recognizer, fixed_look=look, chunk_ms=40, right_context_ms=0)
        play(stream, hiss(1))
        waits = stream.waits.frames_ms()
        inner = waits[: len(waits) - n_blocks * max_look]
        assert inner == [40 * n_blocks * look] * len(inner) != []
    with pytest.raises(OptionError, match=f"fixed_look must be from 0 to {max_look}"):
        listen(recognizer, fixed_look=max_look + 1)
    with pytest.raises(OptionError, match="exclude each other"):
        listen(recognizer, fixed_look=1, latency="low")
    with pytest.raises(OptionError, match="fixed_look is for the transducer"):
        recognizer.stream(fixed_look=1)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_hotwords_are_preferred(recognizer: Recognizer, jfk: np.ndarray, beam_size: int) -> None:
    """A listed term, spelled with the head's few tokens, comes more often; also through a flush."""
    counts = []
    for hotwords in ((), ("Oz",)):
        stream = listen(
            recognizer,
            beam_size=beam_size,
            hotwords=hotwords,
            hotword_strength=Strength(begin=12.0, go_on=16.0),
        )
        stream.feed(jfk[: 2 * SAMPLE_RATE])
        stream.flush()
        stream.feed(jfk[2 * SAMPLE_RATE : 4 * SAMPLE_RATE])
        stream.finish()
        counts.append(stream.transcript.text.lower().count("oz"))
    assert counts[0] == 0 < counts[1]
