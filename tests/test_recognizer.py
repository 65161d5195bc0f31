from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from whisper.model import Whisper

from asr.adapters import shipped_adapter
from asr.batch import Step
from asr.decoder import DecoderJob, DecoderResult
from asr.errors import AudioError, OptionError
from asr.events import SAMPLE_RATE, Event, Final, Partial, SpeechEnded, SpeechStarted
from asr.recognizer import Recognizer
from asr.search import Search
from asr.second_pass import PendingFinal
from asr.stream import Stream
from tests.tiny import TINY_DIMS

needs_adapter = pytest.mark.skipif(shipped_adapter("tiny.en") is None, reason="no adapter ships for tiny.en")


def play(stream: Stream, samples: np.ndarray, *, block: int = 1600) -> list[Event]:
    """Feed a signal in blocks and finish; all events."""
    events: list[Event] = []
    for start in range(0, len(samples), block):
        events += stream.feed(samples[start : start + block])
    return events + stream.finish()


def told(events: Sequence[Event]) -> list[object]:
    """Events without the confidences, which depend on rounding."""
    return [
        (e.segment, e.committed, e.draft, [(w.text, w.start, w.end) for w in e.words], e.time)
        if isinstance(e, Partial)
        else (e.segment, e.text, e.start, e.end)
        if isinstance(e, Final)
        else e
        for e in events
    ]


def hiss(seconds: float, *, level: float = 0.01, seed: int = 0) -> np.ndarray:
    """White noise."""
    n_samples = int(seconds * SAMPLE_RATE)
    return (np.random.default_rng(seed).standard_normal(n_samples) * level).astype(np.float32)


def check_invariants(events: Sequence[Event], *, duration: int) -> None:
    """What every stream promises: growing text, ordered words, finals that tile, times that increase."""
    committed: dict[int, str] = {}
    finals: list[Final] = []
    time = 0
    for event in events:
        if isinstance(event, Partial | Final):
            assert time <= event.time <= duration
            time = event.time
            words = event.words
            assert all(0 < word.confidence <= 1 for word in words)
            assert all(a.end <= b.start for a, b in zip(words[:-1], words[1:], strict=True))
            assert all(word.start <= word.end <= duration for word in words)
            assert all(word.text == word.text.strip() != "" for word in words)
        if isinstance(event, Partial):
            before = committed.get(event.segment, "")
            assert event.committed.startswith(before)
            assert not (event.committed or event.draft).startswith(" ")
            committed[event.segment] = event.committed
            assert event.segment == len(finals)
            joined = "".join(word.text for word in event.words)
            assert joined.replace(" ", "") == event.text.replace(" ", "")
        elif isinstance(event, Final):
            assert event.segment == len(finals)
            assert event.text == event.text.strip() != ""
            assert event.text.startswith(committed.get(event.segment, "").strip()) or event.second_pass
            assert event.start == (finals[-1].end if finals else 0) <= event.end <= duration
            assert all(word.stable and event.start <= word.start for word in event.words)
            finals.append(event)
    spoken = [event for event in events if isinstance(event, SpeechStarted | SpeechEnded)]
    assert [type(event) for event in spoken] == [SpeechStarted, SpeechEnded] * (len(spoken) // 2)
    assert all(a.time <= b.time for a, b in zip(spoken[:-1], spoken[1:], strict=True))


@pytest.mark.parametrize("chunk_ms", [40, 160, 300, 1000])
@pytest.mark.parametrize("beam_size", [1, 2])
def test_events_keep_their_promises(
    tiny_recognizer: Recognizer, jfk: np.ndarray, chunk_ms: int, beam_size: int
) -> None:
    """Whatever the weights say, the events are in order and consistent."""
    samples = jfk[: 5 * SAMPLE_RATE]
    stream = tiny_recognizer.stream(chunk_ms=chunk_ms, beam_size=beam_size)
    events = play(stream, samples)
    check_invariants(events, duration=len(samples))
    finals = [event for event in events if isinstance(event, Final)]
    assert finals and list(stream.transcript.segments) == finals
    assert stream.transcript.duration == len(samples)


def test_real_weights_keep_the_promises(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """The same with tiny.en on the whole clip."""
    events = play(recognizer.stream(), jfk)
    check_invariants(events, duration=len(jfk))
    assert any(isinstance(event, Final) for event in events)


@needs_adapter
def test_golden_transcript(jfk: np.ndarray) -> None:
    """The shipped adapter hears the clip's words, computed as it was trained."""
    stream = Recognizer.load("tiny.en", weights="fp32").stream(left_context_s=10, adaptive=False)
    play(stream, jfk)
    assert stream.transcript.text == (
        "And so my fellow Americans. Ask not. What your country can do for you? "
        "Ask what you can do for your country."
    )


@pytest.mark.parametrize("block", [1, 317, 4096, 50_000, 10**6])
def test_blocks_do_not_matter(tiny_recognizer: Recognizer, jfk: np.ndarray, block: int) -> None:
    """The same events come in the same order for blocks of any size."""
    samples = jfk[: SAMPLE_RATE // 2] if block == 1 else jfk[: 6 * SAMPLE_RATE]
    expected = play(tiny_recognizer.stream(), samples, block=1600)
    assert told(play(tiny_recognizer.stream(), samples, block=block)) == told(expected)


def test_interleaved_streams_equal_streams_alone(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Two streams that take turns never see each other."""
    a, b = jfk[: 5 * SAMPLE_RATE], jfk[4 * SAMPLE_RATE : 9 * SAMPLE_RATE]
    alone = [told(play(tiny_recognizer.stream(), samples)) for samples in (a, b)]
    streams = [tiny_recognizer.stream(), tiny_recognizer.stream()]
    events: list[list[Event]] = [[], []]
    for start in range(0, len(a), 1600):
        for stream, samples, mine in zip(streams, (a, b), events, strict=True):
            mine += stream.feed(samples[start : start + 1600])
    for stream, mine in zip(streams, events, strict=True):
        mine += stream.finish()
    assert [told(mine) for mine in events] == alone


def play_together(
    recognizer: Recognizer, streams: Sequence[Stream], clips: Sequence[np.ndarray], *, block: int = 3200
) -> list[list[Event]]:
    """Feed streams in batches; each joins one block later than the one before it."""
    events: list[list[Event]] = [[] for _ in streams]
    starts = [-block * k for k in range(len(streams))]
    while any(start < len(clip) for start, clip in zip(starts, clips, strict=True)):
        going = [i for i, start in enumerate(starts) if 0 <= start < len(clips[i])]
        pairs = [(streams[i], clips[i][starts[i] : starts[i] + block]) for i in going]
        for i, new in zip(going, recognizer.step_batch(pairs), strict=True):
            events[i] += new
        starts = [start + block for start in starts]
    for stream, mine in zip(streams, events, strict=True):
        mine += stream.finish()
    return events


def test_batch_encodes_like_streams_alone(tiny_recognizer: Recognizer) -> None:
    """Streams of different chunk sizes that started at different times share forwards without a trace."""
    chunks_ms = (80, 80, 80, 160, 160, 1000)
    clips = [hiss(3, seed=k) for k in range(len(chunks_ms))]
    together = [tiny_recognizer.stream(chunk_ms=ms, adaptive=False) for ms in chunks_ms]
    alone = [tiny_recognizer.stream(chunk_ms=ms, adaptive=False) for ms in chunks_ms]
    play_together(tiny_recognizer, together, clips)
    for stream, other, clip in zip(together, alone, clips, strict=True):
        play(other, clip)
        ours, theirs = stream._window.cross, other._window.cross
        assert ours.n_frames == theirs.n_frames >= 3 * SAMPLE_RATE // 320
        n_frames = ours.n_frames
        torch.testing.assert_close(
            ours.frames[:, :n_frames], theirs.frames[:, :n_frames], atol=1e-4, rtol=1e-4
        )


def test_batch_hears_like_streams_alone(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """The words are the same in company as alone."""
    clips = [jfk[: 3 * SAMPLE_RATE], jfk[5 * SAMPLE_RATE : 8 * SAMPLE_RATE]]
    streams = [recognizer.stream(), recognizer.stream()]
    play_together(recognizer, streams, clips)
    for stream, clip in zip(streams, clips, strict=True):
        alone = recognizer.stream()
        play(alone, clip)
        assert stream.transcript.text == alone.transcript.text != ""


def test_batch_refuses_a_stream_twice(tiny_recognizer: Recognizer) -> None:
    """One stream has one next block."""
    stream = tiny_recognizer.stream()
    with pytest.raises(OptionError, match="twice"):
        tiny_recognizer.step_batch([(stream, hiss(0.1)), (stream, hiss(0.1))])


def test_later_audio_never_changes_earlier_events(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Two signals with the same beginning give the same events until they part."""
    parting = 4 * SAMPLE_RATE
    other = np.concatenate([jfk[:parting], hiss(3, level=0.3)])
    early = [
        [event for event in told(tiny_recognizer.stream().feed(samples[:parting]))]
        for samples in (jfk, other)
    ]
    streams = [tiny_recognizer.stream(), tiny_recognizer.stream()]
    events = [stream.feed(s[: 7 * SAMPLE_RATE]) for stream, s in zip(streams, (jfk, other), strict=True)]
    assert early[0] == early[1]
    assert [told(mine)[: len(early[0])] for mine in events] == early
    assert told(events[0]) != told(events[1])


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.01, 0.3])
def test_silence_and_noise_give_no_words(recognizer: Recognizer, level: float) -> None:
    """Where nobody speaks, nothing is said."""
    stream = recognizer.stream()
    events = play(stream, hiss(6, level=level))
    assert stream.transcript.text == "" and stream.transcript.segments == ()
    assert not any(isinstance(event, Partial | Final) for event in events)


@pytest.mark.parametrize("n_samples", [0, 160, 4000])
def test_very_short_streams(recognizer: Recognizer, n_samples: int) -> None:
    """An empty stream, one of 10 ms and one of a quarter of a second end without words."""
    stream = recognizer.stream()
    assert play(stream, hiss(n_samples / SAMPLE_RATE)) == []
    assert stream.transcript.duration == n_samples


def test_pauses_end_segments(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """The clip's long pauses make several finals, each told after its speech has ended."""
    events = play(recognizer.stream(), jfk)
    finals = [event for event in events if isinstance(event, Final)]
    assert len(finals) >= 2
    for final in finals[:-1]:
        at = events.index(final)
        assert any(isinstance(event, SpeechEnded) for event in events[:at])


def test_long_speech_is_cut_into_segments(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Without a pause a segment ends before it is longer than the rules allow."""
    stream = tiny_recognizer.stream(silence_ms=5000, max_segment_s=5)
    events = play(stream, jfk)
    check_invariants(events, duration=len(jfk))
    finals = [event for event in events if isinstance(event, Final)]
    assert len(finals) >= 2
    assert all(final.end - final.start <= 6 * SAMPLE_RATE for final in finals)


def state_size(stream: Stream) -> int:
    """Bytes of every tensor that a stream holds, but for its text cache, which grows with a window's text."""
    window, search = stream._listener.window, stream._listener._search
    beams = [] if search._beam_cache is None else [search._beam_cache.keys, search._beam_cache.values]
    others = [window._mel_state.tail, *beams]
    slot = stream._listener._slot
    assert slot.text.keys.shape[2] <= 448
    return slot.n_bytes - slot.text.n_bytes + sum(tensor.nbytes for tensor in others)


@pytest.mark.parametrize("chunk_ms", [160, 1000])
def test_a_stream_has_no_end(tiny_recognizer: Recognizer, jfk: np.ndarray, chunk_ms: int) -> None:
    """Minutes of speech pass the encoder's 1500 positions with a state of constant size."""
    speech = jfk[: int(2.2 * SAMPLE_RATE)]
    stream = tiny_recognizer.stream(chunk_ms=chunk_ms, silence_ms=5000)  # no pause helps
    events: list[Event] = []
    sizes, positions, anchors = [], [], set()
    for _ in range(45):
        events += stream.feed(speech)
        sizes.append(state_size(stream))
        positions.append(stream._window.position)
        anchors.add(stream._window.anchor)
        assert len(stream._listener._context) <= 128 and len(stream._listener._search.committed) <= 448
    events += stream.finish()
    check_invariants(events, duration=45 * len(speech))
    assert len(anchors) >= 4
    assert max(positions) <= 1400
    assert max(sizes) - min(sizes) <= 1600  # a few samples of the log-mel's tail


def test_window_restarts_in_a_pause(
    tiny_recognizer: Recognizer, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long window the next one starts in the silence, so that no word is encoded twice."""
    monkeypatch.setattr("asr.stream.STALL", 10**9)  # random weights stall anywhere
    monkeypatch.setattr("asr.stream.STALL_AT_END", 10**9)
    stream = tiny_recognizer.stream()
    samples = np.concatenate([jfk, jfk, np.zeros(2 * SAMPLE_RATE, np.float32)])
    restarts = []
    for start in range(0, len(samples), 1600):
        anchor, was_long = stream._window.anchor, stream._listener.is_long
        stream.feed(samples[start : start + 1600])
        if stream._window.anchor != anchor and was_long:
            restarts.append(stream._window.origin)
            assert stream._listener._search.committed == []
    assert restarts
    for origin in restarts:
        around = samples[origin : origin + 3200]
        assert np.abs(around).max() < 0.5 * np.abs(samples).max()


@needs_adapter
def test_no_word_is_lost_or_doubled_at_a_seam(jfk: np.ndarray) -> None:
    """Speech without a pause across two re-anchorings reads like the same speech in one window."""
    spoken = [(0.3, 2.4), (3.2, 4.5), (5.3, 7.7), (8.1, 10.6)]  # seconds, without the pauses between
    piece = np.concatenate([jfk[int(a * SAMPLE_RATE) : int(b * SAMPLE_RATE)] for a, b in spoken])
    # What repeats tells formats apart, and in the middle of a window, with much right context, makes tiny.en
    # say a sentence twice.
    stream = Recognizer.load("tiny.en", weights="fp32").stream(right_context_ms=100)
    play(stream, np.tile(piece, 9))
    words = [word.text.strip(".,?!").lower() for word in stream.transcript.words]
    assert abs(words.count("country") - 9 * 2) <= 1
    assert abs(len(words) - 9 * 22) <= 6


def test_attention_at_rest_has_nothing_read_twice(jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where attention never leaves a window's start, words that keep coming show that no place is lost."""

    def at_rest(search: Search, result: DecoderResult) -> list[list[int]]:
        n_rows, n_new = result.attention.shape[0], result.attention.shape[2]
        return [[search._origin] * n_new for _ in range(n_rows)]

    recognizer = Recognizer.load("tiny.en", weights="fp32")
    monkeypatch.setattr(Search, "_peaks", at_rest)
    stream = recognizer.stream()
    play(stream, jfk)
    words = [word.text.strip(".,?!").lower() for word in stream.transcript.words]
    assert words.count("ask") == 2 and words.count("country") == 2 and len(words) == 22


def test_second_pass_is_the_original_whisper(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Finals carry offline Whisper's text, times inside the segment, and say so."""
    events = play(recognizer.stream(second_pass=True), jfk)
    check_invariants(events, duration=len(jfk))
    finals = [event for event in events if isinstance(event, Final)]
    assert all(final.second_pass for final in finals)
    text = " ".join(final.text for final in finals).lower()
    assert "fellow americans" in text and "what your country can do for you" in text
    times = {word.text.strip(".,").lower(): word.start_s for final in finals for word in final.words}
    assert times["americans"] == pytest.approx(1.7, abs=0.4)


def test_offline_is_whisper(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Adapters off, the clip's words are all there."""
    text = recognizer.transcribe_offline(jfk).lower()
    assert "ask not what your country can do for you" in text
    assert recognizer.transcribe_offline(np.zeros(0, np.float32)) == ""


def test_int16_equals_float(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """16-bit integers are the same audio."""
    integers = (jfk[: 3 * SAMPLE_RATE] * 32767).astype(np.int16)
    floats = integers.astype(np.float32) / 32768
    assert told(play(tiny_recognizer.stream(), integers)) == told(play(tiny_recognizer.stream(), floats))


@pytest.mark.parametrize(
    "bad",
    [
        np.array([0.0, np.nan], np.float32),
        np.array([np.inf, 0.0], np.float32),
        np.zeros((2, 100), np.float32),
        np.array([1, 2, 3], np.int64),
        np.array([0.0, 20000.0], np.float32),
    ],
)
def test_bad_samples_are_refused(tiny_recognizer: Recognizer, jfk: np.ndarray, bad: np.ndarray) -> None:
    """They raise, and the stream goes on as if they had not been fed."""
    expected = told(play(tiny_recognizer.stream(), jfk[: 2 * SAMPLE_RATE], block=SAMPLE_RATE))
    stream = tiny_recognizer.stream()
    events = stream.feed(jfk[:SAMPLE_RATE])
    with pytest.raises(AudioError):
        stream.feed(bad)
    events += stream.feed(jfk[SAMPLE_RATE : 2 * SAMPLE_RATE]) + stream.finish()
    assert told(events) == expected


def test_bad_samples_are_found_before_any_stream_moves(tiny_recognizer: Recognizer) -> None:
    """A batch with one bad block leaves the others as they were, and the message tells the time."""
    good, bad = tiny_recognizer.stream(), tiny_recognizer.stream()
    bad.feed(hiss(1))
    with pytest.raises(AudioError, match=r"1\.000 s is nan"):
        tiny_recognizer.step_batch([(good, hiss(1)), (bad, np.array([np.nan], np.float32))])
    assert good.transcript.duration == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "transducer9"}, "one of whisper"),
        ({"chunk_ms": 30}, "from 40 to 1000"),
        ({"chunk_ms": 110}, "multiple of 20"),
        ({"beam_size": 0}, "from 1 to 16"),
        ({"open_tokens": -1}, "from 0 to 16"),
        ({"left_context_s": 0.0}, "at most 30"),
        ({"language": "de"}, "one of en"),
    ],
)
def test_wrong_options_say_what_is_right(
    tiny_recognizer: Recognizer, options: dict[str, object], message: str
) -> None:
    """Each bad value is refused with the valid ones."""
    with pytest.raises(OptionError, match=message):
        tiny_recognizer.stream(**options)  # type: ignore[arg-type]


def test_a_finished_stream_refuses_more(tiny_recognizer: Recognizer) -> None:
    """Feeding and finishing after the end are errors."""
    stream = tiny_recognizer.stream()
    stream.finish()
    with pytest.raises(OptionError, match="finished"):
        stream.feed(hiss(0.1))
    with pytest.raises(OptionError, match="finished"):
        stream.finish()


def test_transcript_while_streaming(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Before the end the transcript holds the finals and what is committed since."""
    stream = tiny_recognizer.stream()
    events = stream.feed(jfk[: 5 * SAMPLE_RATE // 2])
    last = [event for event in events if isinstance(event, Partial)][-1]
    assert last.committed and stream.transcript.segments[-1].text == last.committed.strip()
    assert stream.transcript.duration_s == 2.5


def test_prompt_changes_what_is_heard(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """The prompt stands before the text, is not shown, and may be longer than there is room."""
    plain, prompted = tiny_recognizer.stream(), tiny_recognizer.stream(prompt="Kennedy, " * 200)
    play(plain, jfk[: 3 * SAMPLE_RATE])
    play(prompted, jfk[: 3 * SAMPLE_RATE])
    assert "Kennedy, Kennedy" not in prompted.transcript.text
    assert plain.transcript.text != prompted.transcript.text


@pytest.fixture(scope="module")
def multilingual(tiny_model: Whisper) -> Recognizer:
    model = Whisper(replace(TINY_DIMS, n_vocab=51865)).eval().requires_grad_(False)
    torch.manual_seed(0)
    weights = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    table = "decoder.token_embedding.weight"
    weights[table] = torch.cat([weights[table], weights[table][:1]])
    model.load_state_dict(weights, strict=False)
    return Recognizer(model, model, name="tiny-multilingual")


def test_languages(tiny_recognizer: Recognizer, multilingual: Recognizer) -> None:
    """English-only models know English, others Whisper's list; names work like codes."""
    assert tiny_recognizer.languages == ("en",)
    assert {"en", "de", "zh"} <= set(multilingual.languages)
    multilingual.stream(language="German")
    with pytest.raises(OptionError, match="de"):
        multilingual.stream(language="klingon")


def test_an_adapters_language_is_not_looked_for(
    multilingual: Recognizer, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams speak it from the first word on, unless told otherwise."""

    def refuse(*_: object) -> str:
        raise AssertionError("the language is known")

    monkeypatch.setattr("asr.offline.detect_language", refuse)
    models = multilingual.base_model, multilingual.streaming_model
    english = Recognizer(*models, name="tiny-adapted", language="en")
    samples = jfk[: 3 * SAMPLE_RATE]
    assert told(play(english.stream(), samples)) == told(play(multilingual.stream(language="en"), samples))
    assert told(play(english.stream(language="de"), samples)) != told(play(english.stream(), samples))


@pytest.mark.parametrize("seconds", [1.5, 5.0])
def test_language_is_detected(multilingual: Recognizer, jfk: np.ndarray, seconds: float) -> None:
    """Without a language the first seconds decide, even if there are hardly any."""
    stream = multilingual.stream()
    samples = jfk[: int(seconds * SAMPLE_RATE)]
    events = play(stream, samples)
    check_invariants(events, duration=len(samples))
    assert not stream._must_detect
    assert stream.transcript.text
    given = multilingual.stream(language=stream._listener.text.tokenizer.language)
    play(given, samples)
    assert given.transcript.text


@pytest.mark.parametrize("chunk_ms", [80, 300, 1000])
def test_flush_takes_its_silence_back(
    tiny_recognizer: Recognizer, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch, chunk_ms: int
) -> None:
    """After flushes anywhere the window holds exactly the final frames of a stream never flushed."""
    monkeypatch.setattr("asr.stream.STALL", 10**9)  # random weights stall anywhere
    monkeypatch.setattr("asr.stream.STALL_AT_END", 10**9)
    plain, flushed = (tiny_recognizer.stream(chunk_ms=chunk_ms, silence_ms=5000) for _ in range(2))
    events: list[Event] = []
    cuts = [0, 9000, 20_000, 41_111, 41_200, 70_000, 6 * SAMPLE_RATE]
    for start, end in zip(cuts, cuts[1:], strict=False):
        plain.feed(jfk[start:end])
        events += flushed.feed(jfk[start:end])
        events += flushed.flush()
        assert flushed.flush() == []
    ours, theirs = flushed._window.cross, plain._window.cross
    n_frames = plain._window.position
    assert flushed._window.position == n_frames > 200
    torch.testing.assert_close(ours.frames[:, :n_frames], theirs.frames[:, :n_frames], atol=1e-4, rtol=1e-4)
    finals = [event for event in events if isinstance(event, Final)]
    assert len(finals) >= 2 and all(final.end in cuts for final in finals)
    events += flushed.finish()
    check_invariants(events, duration=6 * SAMPLE_RATE)


def test_flush_before_any_speech_says_nothing(tiny_recognizer: Recognizer) -> None:
    """There is nothing to make final."""
    stream = tiny_recognizer.stream()
    assert stream.flush() == []
    stream.feed(np.zeros(SAMPLE_RATE, np.float32))
    assert stream.flush() == []
    stream.finish()
    with pytest.raises(OptionError, match="finished"):
        stream.flush()


def test_a_failing_stream_fails_alone(
    tiny_recognizer: Recognizer, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in one stream's share of a batched step is that stream's outcome; the others go on."""
    engine = tiny_recognizer._engine
    streams = [tiny_recognizer.stream() for _ in range(3)]
    culprit, step = streams[1]._window.cross, engine.decoder.step

    def fail(jobs: Sequence[DecoderJob]) -> list[DecoderResult]:
        if any(job.cross is culprit for job in jobs):
            raise RuntimeError("broken")
        return step(jobs)

    monkeypatch.setattr(engine.decoder, "step", fail)
    outcomes = tiny_recognizer.advance([Step(stream, jfk[: 4 * SAMPLE_RATE]) for stream in streams])
    assert isinstance(outcomes[1], RuntimeError)
    monkeypatch.undo()
    alone = told(tiny_recognizer.stream().feed(jfk[: 4 * SAMPLE_RATE]))
    for index in (0, 2):
        assert told(outcomes[index]) == alone  # type: ignore[arg-type]
    again = tiny_recognizer.advance([Step(streams[0], jfk[:800]), Step(streams[1], jfk[:800])])
    assert isinstance(again[0], list) and isinstance(again[1], OptionError)


def test_second_passes_can_be_run_elsewhere(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """What advance() leaves pending becomes, in another thread, the Final that the stream alone gives."""
    stream = recognizer.stream(second_pass=True)
    (outcome,) = recognizer.advance([Step(stream, jfk[: 4 * SAMPLE_RATE], "finish")])
    assert isinstance(outcome, list)
    pending = [each for each in outcome if isinstance(each, PendingFinal)]
    assert pending and all(not each.first.second_pass for each in pending)
    with ThreadPoolExecutor(1) as pool:
        finals = list(pool.map(lambda each: each.run(), pending))
    alone = recognizer.stream(second_pass=True)
    events = alone.feed(jfk[: 4 * SAMPLE_RATE]) + alone.finish()
    assert told(finals) == told([event for event in events if isinstance(event, Final)])
    assert all(final.second_pass for final in finals)


def test_slots_are_lent_and_come_back(tiny_recognizer: Recognizer) -> None:
    """A pool has as many slots as it was given; a slot that comes back can be taken again."""
    pool = tiny_recognizer.slots(2)
    first, second = pool.take(), pool.take()
    assert first is not None and second is not None and pool.take() is None and pool.n_free == 0
    pool.give_back(first)
    assert pool.take() is first and first.n_bytes > 0


def test_silence_is_passed_over(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """In a long silence nothing is encoded; what is said after it is heard, at its own time."""
    signal = np.concatenate([np.zeros(6 * SAMPLE_RATE, np.float32), jfk[: 4 * SAMPLE_RATE]])
    n_encoded: dict[bool, list[int]] = {}
    starts = {}
    for adaptive in (True, False):
        stream = tiny_recognizer.stream(adaptive=adaptive)
        n_encoded[adaptive] = []
        events: list[Event] = []
        for start in range(0, len(signal), 1600):
            before = stream._window.origin, stream._window.position
            events += stream.feed(signal[start : start + 1600])
            after = stream._window.origin, stream._window.position
            n_encoded[adaptive].append(after[1] - (before[1] if after[0] == before[0] else 0))
        events += stream.finish()
        check_invariants(events, duration=len(signal))
        starts[adaptive] = [event for event in events if isinstance(event, SpeechStarted)]
    silent = slice(30, 60)  # from a second after what is needed to be sure of the silence
    assert sum(n_encoded[True][silent]) == 0 < sum(n_encoded[False][silent])
    assert sum(n_encoded[True]) >= 4 * SAMPLE_RATE // 320 - 30
    assert starts[True] == starts[False] != []


@needs_adapter
def test_a_quiet_pause_is_read_once(
    recognizer: Recognizer, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last speech the decoder is asked until nothing changes any more, and then not again."""
    decoder = recognizer._engine.decoder
    step, asked, texts = decoder.step, {True: 0, False: 0}, {}
    for adaptive in asked:

        def count(jobs: Sequence[DecoderJob], adaptive: bool = adaptive) -> list[DecoderResult]:
            asked[adaptive] += 1
            return step(jobs)

        monkeypatch.setattr(decoder, "step", count)
        stream = recognizer.stream(adaptive=adaptive, silence_ms=3000)
        stream.feed(np.concatenate([jfk[: 2 * SAMPLE_RATE], np.zeros(2 * SAMPLE_RATE, np.float32)]))
        stream.finish()
        texts[adaptive] = stream.transcript.text
    assert 0 < asked[True] < asked[False]
    assert texts[True] == texts[False] != ""
