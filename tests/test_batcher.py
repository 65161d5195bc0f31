"""The batcher: many streams share ticks, and each hears what it would hear alone."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import soundfile

from asr.errors import AudioError, OptionError
from asr.events import SAMPLE_RATE, Event, Final, Partial
from asr.recognizer import Recognizer
from service.admission import Tick
from service.batcher import Batcher, NoSlotError, Slot
from service.stream_settings import AudioFormat, Failed, Finished, Flushed, Output, StreamSettings

PCM = AudioFormat()
DEFAULTS = StreamSettings()


def pcm(samples: np.ndarray) -> bytes:
    """Samples as 16-bit PCM."""
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def heard(samples: np.ndarray) -> np.ndarray:
    """What the recogniser gets of samples sent as 16-bit PCM."""
    return np.frombuffer(pcm(samples), "<i2").astype(np.float32) / 32768


class Sink:
    """Collects a slot's outputs."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.ended = asyncio.Event()

    def __call__(self, outputs: Sequence[Output]) -> None:
        self.outputs += outputs
        if any(isinstance(output, Finished | Failed) for output in outputs):
            self.ended.set()

    @property
    def finals(self) -> list[Final]:
        return [output for output in self.outputs if isinstance(output, Final)]

    @property
    def texts(self) -> list[str]:
        return [final.text for final in self.finals]


def times(finals: Sequence[Final]) -> list[int]:
    """Starts and ends of all words."""
    return [time for final in finals for word in final.words for time in (word.start, word.end)]


async def play(
    batcher: Batcher,
    samples: np.ndarray,
    settings: StreamSettings = DEFAULTS,
    *,
    block: int = 3200,
    delay_s: float = 0.0,
) -> Sink:
    """Feed a clip and finish."""
    sink = Sink()
    slot = await batcher.open(PCM, settings, sink)
    for start in range(0, len(samples), block):
        slot.feed(pcm(samples[start : start + block]))
        await asyncio.sleep(delay_s)
    slot.finish()
    await asyncio.wait_for(sink.ended.wait(), 60)
    return sink


def alone(recognizer: Recognizer, samples: np.ndarray, settings: StreamSettings) -> list[Event]:
    """The events of a stream of its own."""
    stream = recognizer.stream(
        chunk_ms=settings.chunk_ms, second_pass=settings.second_pass, silence_ms=settings.silence_ms
    )
    return stream.feed(heard(samples)) + stream.finish()


def test_company_changes_nothing(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Streams of other chunk sizes, settings and phases say what each says alone, with the same times."""
    settings = [
        StreamSettings(chunk_ms=chunk_ms, silence_ms=silence_ms)
        for chunk_ms, silence_ms in ((300, 800), (80, 800), (300, 300), (600, 800), (160, 500), (1000, 800))
    ]
    clips = [jfk[k * 8000 : k * 8000 + 4 * SAMPLE_RATE] for k in range(len(settings))]

    async def run() -> list[Sink]:
        async with Batcher(recognizer, n_slots=len(clips)) as batcher:
            plays = zip(clips, settings, strict=True)
            sinks = await asyncio.gather(*(play(batcher, clip, each, delay_s=0.002) for clip, each in plays))
            assert batcher.n_used == 0
            assert batcher.n_ticks < sum(
                len(clip) // (each.chunk_ms * 16) for clip, each in zip(clips, settings, strict=True)
            )
            return sinks

    for sink, clip, each in zip(asyncio.run(run()), clips, settings, strict=True):
        expected = [event for event in alone(recognizer, clip, each) if isinstance(event, Final)]
        assert sink.texts == [final.text for final in expected] != []
        # Products of other shapes round otherwise, which may move a word's end by a frame or two.
        assert times(sink.finals) == pytest.approx(times(expected), abs=0.06 * SAMPLE_RATE)
        assert any(isinstance(output, Partial) for output in sink.outputs)
        ended = sink.outputs[-1]
        assert isinstance(ended, Finished)
        assert ended.audio_s == pytest.approx(len(clip) / SAMPLE_RATE) and ended.busy_s > 0


def test_slots_are_reused_without_a_trace(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """A slot that heard other speech before gives a new stream what a fresh one gives."""
    clip = jfk[: 3 * SAMPLE_RATE]

    async def run() -> list[Sink]:
        async with Batcher(tiny_recognizer, n_slots=1) as batcher:
            return [await play(batcher, part) for part in (clip, jfk[4 * SAMPLE_RATE :], clip)]

    first, _, again = asyncio.run(run())
    assert first.texts == again.texts != []


def test_all_slots_taken(tiny_recognizer: Recognizer) -> None:
    """One more stream is refused until one is closed."""

    async def run() -> None:
        async with Batcher(tiny_recognizer, n_slots=2) as batcher:
            first = await batcher.open(PCM, StreamSettings(), Sink())
            await batcher.open(PCM, StreamSettings(), Sink())
            with pytest.raises(NoSlotError, match="all 2 slots"):
                await batcher.open(PCM, StreamSettings(), Sink())
            first.close()
            third = await batcher.open(PCM, StreamSettings(), Sink())
            assert isinstance(third, Slot) and batcher.n_used == 2

    asyncio.run(run())


def test_ticks_are_told(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Every tick is reported, with the streams in it and what it heard of them."""
    ticks: list[Tick] = []

    async def run() -> int:
        async with Batcher(tiny_recognizer, n_slots=2, on_tick=ticks.append) as batcher:
            clips = [jfk[: 2 * SAMPLE_RATE], jfk[SAMPLE_RATE : 3 * SAMPLE_RATE]]
            await asyncio.gather(*(play(batcher, clip) for clip in clips))
            return batcher.n_ticks

    assert asyncio.run(run()) == len(ticks)
    assert {tick.n_lanes for tick in ticks} == {1} and max(tick.n_streams for tick in ticks) == 2
    assert sum(tick.audio_s for tick in ticks) == pytest.approx(4)


def test_refused_settings_leave_the_slot_free(tiny_recognizer: Recognizer) -> None:
    """What the model refuses comes back as its own error."""

    async def run() -> None:
        async with Batcher(tiny_recognizer, n_slots=1) as batcher:
            with pytest.raises(OptionError, match="language must be one of en"):
                await batcher.open(PCM, StreamSettings(language="de"), Sink())
            assert batcher.n_used == 0

    asyncio.run(run())


def test_a_closed_slot_is_silent(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """After close() nothing is delivered, whatever was under way."""

    async def run() -> None:
        async with Batcher(tiny_recognizer, n_slots=1) as batcher:
            sink = Sink()
            slot = await batcher.open(PCM, StreamSettings(), sink)
            slot.feed(pcm(jfk))
            slot.close()
            n_outputs = len(sink.outputs)
            while batcher.n_used:
                await asyncio.sleep(0.01)
            await play(batcher, jfk[:SAMPLE_RATE])
            assert len(sink.outputs) == n_outputs

    asyncio.run(run())


def test_flush_finals_now_and_goes_on(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """A flush in mid-sentence makes the words so far final; those after it follow, none lost or doubled."""
    cut = int(9.2 * SAMPLE_RATE)

    async def run() -> Sink:
        async with Batcher(recognizer, n_slots=1) as batcher:
            sink = Sink()
            slot = await batcher.open(PCM, StreamSettings(), sink)
            slot.feed(pcm(jfk[:cut]))
            for _ in range(3):
                slot.flush()
            while sum(isinstance(output, Flushed) for output in sink.outputs) < 3:
                await asyncio.sleep(0.01)
            assert sink.finals[-1].end == cut
            slot.feed(pcm(jfk[cut:]))
            slot.finish()
            await asyncio.wait_for(sink.ended.wait(), 60)
            return sink

    sink = asyncio.run(run())
    flushed = [output for output in sink.outputs if isinstance(output, Flushed)]
    assert flushed == [Flushed(cut)] * 3
    words = [word.text.strip(".,?!").lower() for final in sink.finals for word in final.words]
    expected = [
        word.text.strip(".,?!").lower()
        for event in alone(recognizer, jfk, StreamSettings())
        if isinstance(event, Final)
        for word in event.words
    ]
    assert abs(len(words) - len(expected)) <= 1
    assert words.count("country") == expected.count("country")
    assert all(a.end <= b.start for a, b in zip(sink.finals, sink.finals[1:], strict=False))


def test_flush_lies_where_it_was_asked_for(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Audio that is fed after a flush before the worker gets to it does not hold the flush up."""

    async def run() -> Sink:
        async with Batcher(tiny_recognizer, n_slots=1) as batcher:
            sink = Sink()
            slot = await batcher.open(PCM, StreamSettings(), sink)
            for start in range(0, len(jfk), SAMPLE_RATE):
                slot.feed(pcm(jfk[start : start + SAMPLE_RATE]))
                slot.flush()
                await asyncio.sleep(0.05)
            slot.finish()
            await asyncio.wait_for(sink.ended.wait(), 60)
            return sink

    sink = asyncio.run(run())
    samples = [output.samples for output in sink.outputs if isinstance(output, Flushed)]
    assert len(samples) == 11 and samples == sorted(samples)
    assert isinstance(sink.outputs[-1], Finished)


def test_an_error_in_one_stream_leaves_the_others(
    tiny_recognizer: Recognizer, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream whose step fails ends with what it had; a stream in the same ticks hears everything."""
    step = tiny_recognizer._engine.decoder.step
    clip = jfk[: 6 * SAMPLE_RATE]

    def fail_late(jobs: Sequence[object]) -> object:
        if any(job.cross.n_frames > 200 and job.cross is culprit for job in jobs):  # type: ignore[attr-defined]
            raise RuntimeError("out of memory")
        return step(jobs)  # type: ignore[arg-type]

    culprit: object = None

    async def run() -> tuple[Sink, Sink]:
        nonlocal culprit
        async with Batcher(tiny_recognizer, n_slots=2) as batcher:
            bad, good = Sink(), Sink()
            slots = [await batcher.open(PCM, StreamSettings(), sink) for sink in (bad, good)]
            culprit = slots[0].work.state.cross
            monkeypatch.setattr(tiny_recognizer._engine.decoder, "step", fail_late)
            for start in range(0, len(clip), 4800):
                for slot in slots:
                    slot.feed(pcm(clip[start : start + 4800]))
                await asyncio.sleep(0.005)
            slots[1].finish()
            await asyncio.wait_for(asyncio.gather(bad.ended.wait(), good.ended.wait()), 60)
            assert batcher.n_used == 0
            return bad, good

    bad, good = asyncio.run(run())
    failed = bad.outputs[-1]
    assert isinstance(failed, Failed) and "out of memory" in str(failed.error)
    committed = [output.committed for output in bad.outputs if isinstance(output, Partial)]
    assert bad.texts and bad.texts[-1] == committed[-1].strip()
    monkeypatch.undo()
    expected = [
        event.text for event in alone(tiny_recognizer, clip, StreamSettings()) if isinstance(event, Final)
    ]
    assert good.texts == expected


def test_second_pass_delays_nobody(
    recognizer: Recognizer, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a second pass runs, ticks go on; its Final still comes before what follows it."""
    from asr.second_pass import PendingFinal

    release, run_pass = threading.Event(), PendingFinal.run

    def slow(pending: PendingFinal) -> Final:
        assert release.wait(60)
        return run_pass(pending)

    monkeypatch.setattr(PendingFinal, "run", slow)
    settings = StreamSettings(second_pass=True, silence_ms=300)

    async def run() -> Sink:
        async with Batcher(recognizer, n_slots=2) as batcher:
            sink = Sink()
            slot = await batcher.open(PCM, settings, sink)
            slot.feed(pcm(jfk))
            slot.flush()
            slot.finish()
            other = await play(batcher, jfk[: 3 * SAMPLE_RATE])
            assert isinstance(other.outputs[-1], Finished)
            while not any(isinstance(output, Partial) and output.segment > 1 for output in sink.outputs):
                await asyncio.sleep(0.01)
            assert not sink.finals
            release.set()
            await asyncio.wait_for(sink.ended.wait(), 60)
            return sink

    sink = asyncio.run(run())
    assert [final.segment for final in sink.finals] == list(range(len(sink.finals)))
    assert len(sink.finals) > 1 and all(final.second_pass for final in sink.finals)
    kinds = [type(output) for output in sink.outputs[-2:]]
    assert Flushed in [type(output) for output in sink.outputs] and kinds[-1] is Finished
    monkeypatch.undo()
    expected = [event.text for event in alone(recognizer, jfk, settings) if isinstance(event, Final)]
    assert sink.texts == expected


def encoded(samples: np.ndarray, encoding: str, rate: int) -> bytes:
    """Audio as a client would send it."""
    if encoding == "pcm_f32le":
        return samples.astype("<f4").tobytes()
    kind = {
        "mulaw": ("RAW", "ULAW"),
        "alaw": ("RAW", "ALAW"),
        "flac": ("FLAC", "PCM_16"),
        "ogg_opus": ("OGG", "OPUS"),
    }
    file = io.BytesIO()
    container, subtype = kind[encoding]
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(
    ("encoding", "rate", "piece"),
    [
        ("mulaw", 8000, 160),
        ("alaw", 8000, 4001),
        ("pcm_f32le", 44_100, 4000),
        ("flac", 48_000, 3001),
        ("ogg_opus", 48_000, 777),
    ],
)
def test_encodings(recognizer: Recognizer, jfk: np.ndarray, encoding: str, rate: int, piece: int) -> None:
    """Every encoding, cut into odd pieces, is heard as the speech that it is."""
    import soxr

    clip = jfk[: 3 * SAMPLE_RATE]
    data = encoded(soxr.resample(clip, SAMPLE_RATE, rate), encoding, rate)

    async def run() -> Sink:
        async with Batcher(recognizer, n_slots=1) as batcher:
            sink = Sink()
            slot = await batcher.open(AudioFormat(encoding, rate), StreamSettings(), sink)
            for start in range(0, len(data), piece):
                slot.feed(data[start : start + piece])
            slot.finish()
            await asyncio.wait_for(sink.ended.wait(), 60)
            assert slot.queued_s == pytest.approx(0, abs=0.01)
            return sink

    sink = asyncio.run(run())
    ended = sink.outputs[-1]
    assert isinstance(ended, Finished) and ended.audio_s == pytest.approx(3, abs=0.05)
    assert "fellow" in " ".join(sink.texts).lower()


@pytest.mark.parametrize("encoding", ["flac", "ogg_opus"])
def test_compressed_nonsense_fails_cleanly(tiny_recognizer: Recognizer, encoding: str) -> None:
    """Bytes that are no such stream end it with an AudioError that names the encoding."""
    noise = np.random.default_rng(0).bytes(60_000)

    async def run() -> Sink:
        async with Batcher(tiny_recognizer, n_slots=1) as batcher:
            sink = Sink()
            slot = await batcher.open(AudioFormat(encoding), StreamSettings(), sink)
            slot.feed(noise)
            slot.finish()
            await asyncio.wait_for(sink.ended.wait(), 60)
            assert batcher.n_used == 0
            return sink

    failed = asyncio.run(run()).outputs[-1]
    assert isinstance(failed, Failed) and isinstance(failed.error, AudioError)
    assert encoding in str(failed.error)


def test_bad_floats_end_with_what_was_heard(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """NaN after speech: the speech becomes final, then the stream fails."""

    async def run() -> Sink:
        async with Batcher(tiny_recognizer, n_slots=1) as batcher:
            sink = Sink()
            slot = await batcher.open(AudioFormat("pcm_f32le"), StreamSettings(), sink)
            slot.feed(encoded(jfk[: 4 * SAMPLE_RATE], "pcm_f32le", SAMPLE_RATE))
            await asyncio.sleep(0.5)
            slot.feed(np.full(100, np.nan, "<f4").tobytes())
            await asyncio.wait_for(sink.ended.wait(), 60)
            return sink

    sink = asyncio.run(run())
    failed = sink.outputs[-1]
    assert isinstance(failed, Failed) and "finite" in str(failed.error)
    assert sink.texts


def test_queue_is_told(tiny_recognizer: Recognizer) -> None:
    """queued_s counts what is fed and not heard, and falls as ticks go by."""

    async def run() -> None:
        async with Batcher(tiny_recognizer, n_slots=1) as batcher:
            slot = await batcher.open(AudioFormat(sample_rate=8000, channels=2), StreamSettings(), Sink())
            slot.feed(bytes(8000 * 4 * 5))
            assert 3 < slot.queued_s <= 5.01
            while slot.queued_s > 0.6:
                await asyncio.sleep(0.01)

    asyncio.run(run())
