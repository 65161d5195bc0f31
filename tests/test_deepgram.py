"""Deepgram's dialect without sockets: recorded conversations, results and pauses, wrong messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.events import SAMPLE_RATE, Final, Partial, SpeechEnded, SpeechStarted, Word
from service.protocol import deepgram_messages
from service.protocol.deepgram import DeepgramDialect
from service.protocol.deepgram_messages import Scribe
from service.protocol.deepgram_query import parse_query
from service.protocol.dialect import Opening
from service.stream_settings import Flushed, Progress
from tests.dialogue import Dialogue, assert_recorded
from tests.fake_batcher import BAD_AUDIO, BROKEN_MODEL, QUIET

RAW = {"encoding": ["linear16"], "sample_rate": ["16000"]}
INTERIM = {**RAW, "interim_results": ["true"]}


@pytest.fixture(autouse=True)
def _version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepgram_messages, "_version", lambda: "1.2.3")


def connect(**query: str | list[str]) -> Dialogue:
    """A client that has just connected with 16 kHz samples unless the query says otherwise."""
    given = {name: [value] if isinstance(value, str) else value for name, value in query.items()}
    opening = Opening({**RAW, **given} if "encoding" not in query else given, model="fake")
    options = parse_query(opening)
    scribe = Scribe("00000000-1111-4222-8333-444444444444", "fake", "whisper", None, options.punctuate)
    return Dialogue(DeepgramDialect(options, scribe, created="2030-01-02T03:04:05.678Z"))


def audio(seconds: float) -> bytes:
    return bytes(int(seconds * SAMPLE_RATE) * 2)


def quiet(seconds: float) -> bytes:
    return (QUIET + audio(seconds))[: len(audio(seconds))]


def samples(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE)


def words(*spans: tuple[str, float, float]) -> tuple[Word, ...]:
    return tuple(Word(text, samples(start), samples(end), 0.75, True) for text, start, end in spans)


def final(segment: int, spoken: Sequence[Word], *, end: float) -> Final:
    text = " ".join(word.text for word in spoken)
    return Final(segment, text, tuple(spoken), 0, samples(end), False, samples(end))


def parsed(frames: Sequence[str]) -> list[dict]:
    return [json.loads(frame) for frame in frames]


def transcript(message: dict) -> str:
    return message["channel"]["alternatives"][0]["transcript"]


def kinds(frames: Sequence[str]) -> list[str]:
    return [message["type"] for message in parsed(frames)]


# Recorded conversations


def test_recorded_dictation() -> None:
    """Interim results, a pause, KeepAlive, Finalize in speech and in silence, CloseStream."""
    client = connect(
        interim_results="true", vad_events="true", utterance_end_ms="1000", smart_format="true", keyterm="w"
    )
    client.send('{"type":"KeepAlive"}')
    client.send(audio(0.6), shown="0.6 s of speech")
    client.send(quiet(0.7), shown="0.7 s of silence")
    client.send(quiet(0.7), shown="0.7 s of silence")
    client.send(audio(0.7), shown="0.7 s of speech")
    client.send('{"type":"Finalize"}')
    client.send('{"type":"Finalize"}')
    client.send(audio(1.0), shown="1 s of speech")
    client.send('{"type":"CloseStream"}')
    assert client.closed == (1000, "")
    assert_recorded(client, "deepgram_dictation")


def test_recorded_telephone() -> None:
    """mu-law at 8 kHz without interim results; the stream is closed by an empty frame."""
    client = connect(encoding="mulaw", sample_rate="8000", endpointing="300")
    client.send(bytes(4000), shown="0.5 s of speech")
    client.send(bytes(8000), shown="1 s of speech")
    client.send(b"", shown="an empty binary frame")
    assert client.closed == (1000, "")
    assert_recorded(client, "deepgram_telephone")


def test_recorded_mistakes() -> None:
    """Wrong messages are answered and change nothing; audio that cannot be decoded ends the stream."""
    client = connect(encoding="flac")
    client.send("Hello?")
    client.send("[1, 2]")
    client.send('{"type":"Sing"}')
    client.send('{"type":"Configure","keyterms":"one"}')
    client.send('{"type":"Configure","keyterms":["one"]}')
    client.send('{"type":"Configure","features":{"numerals":true}}')
    client.send(audio(0.5), shown="0.5 s of speech")
    client.send(BAD_AUDIO, shown="nonsense")
    assert client.closed == (1008, "DATA-0000 the audio cannot be decoded")
    assert_recorded(client, "deepgram_mistakes")


# Results


def test_every_required_field_is_there_and_true() -> None:
    """A final result says when, which words, how sure, and by which model."""
    client = connect(punctuate="true")
    client.deliver(SpeechStarted(0), SpeechEnded(samples(1.0)))
    spoken = (Word("Hello,", 1600, 6400, 0.9, True), Word("World!", 6400, 12800, 0.7, True))
    (frame,) = client.deliver(Final(0, " Hello, World! ", spoken, 0, 20000, False, 20000))
    result = json.loads(frame)
    uuid = result["metadata"].pop("model_uuid")
    assert len(uuid) == 36
    assert result == {
        "type": "Results",
        "channel_index": [0, 1],
        "duration": 1.25,
        "start": 0.0,
        "is_final": True,
        "speech_final": True,
        "from_finalize": False,
        "channel": {
            "alternatives": [
                {
                    "transcript": "Hello, World!",
                    "confidence": 0.8,
                    "words": [
                        {
                            "word": "hello",
                            "start": 0.1,
                            "end": 0.4,
                            "confidence": 0.9,
                            "punctuated_word": "Hello,",
                        },
                        {
                            "word": "world",
                            "start": 0.4,
                            "end": 0.8,
                            "confidence": 0.7,
                            "punctuated_word": "World!",
                        },
                    ],
                }
            ]
        },
        "metadata": {
            "request_id": "5e551014-1111-4222-8333-444444444444",
            "model_info": {"name": "fake", "version": "1.2.3", "arch": "whisper"},
        },
    }


def test_without_punctuate_transcripts_are_plain() -> None:
    """As with Deepgram, punctuation and capitals come only where they are asked for."""
    client = connect(interim_results="true")
    spoken = words(("“It's", 0, 0.2), ("3.5", 0.2, 0.4), ("O'Clock!”", 0.4, 0.8))
    frames = client.deliver(
        Partial(0, "“It's 3.5", " O'Clock!”", spoken, samples(1)), final(0, spoken, end=1)
    )
    for result in parsed(frames):
        assert transcript(result) == "it's 3.5 o'clock"
        heard = result["channel"]["alternatives"][0]["words"]
        assert [word["word"] for word in heard] == ["it's", "3.5", "o'clock"]
        assert not any("punctuated_word" in word for word in heard)


def test_interim_results_grow_until_their_final() -> None:
    """Interim results hold everything since the last final; finals follow one another."""
    client = connect(interim_results="true")
    for _ in range(9):
        client.send(audio(0.25))
    results = client.messages()
    finals = [result for result in results if result["is_final"]]
    assert [transcript(result) for result in finals] == ["w0 w1 w2 w3", "w4 w5 w6 w7"]
    assert [(result["start"], result["duration"]) for result in finals] == [(0.0, 1.0), (1.0, 1.0)]
    shown = [(transcript(result), result["start"]) for result in results if not result["is_final"]]
    assert shown[:2] == [("w0 d", 0.0), ("w0 w1 d", 0.0)] and shown[-1] == ("w8 d", 2.0)


def test_without_interim_results_only_finals_come() -> None:
    """Nothing revisable is sent unless it was asked for."""
    client = connect()
    client.send(audio(1.9))
    assert all(message["is_final"] for message in client.messages())


# Pauses


def test_speech_final_needs_a_pause() -> None:
    """A segment that ended because of its length, or after speech without words, is final but not a pause."""
    client = connect(vad_events="true")
    client.deliver(SpeechStarted(0), SpeechEnded(samples(0.5)), SpeechStarted(samples(2)))
    first = client.deliver(final(0, words(("long", 2.0, 2.4)), end=20))
    client.deliver(SpeechEnded(samples(21)), SpeechStarted(samples(21.4)))
    second = client.deliver(final(1, words(("end", 20.5, 20.9)), end=21.5))
    assert [json.loads(frames[-1])["speech_final"] for frames in (first, second)] == [False, True]


def test_endpointing_false_never_tells_a_pause() -> None:
    """Results become final all the same."""
    client = connect(endpointing="false", vad_events="true")
    client.send(audio(0.5))
    (result,) = parsed(client.send(quiet(0.5)))
    assert result["is_final"] and not result["speech_final"]


def test_a_pause_longer_than_the_segments_silence_is_told_when_it_is_there() -> None:
    """With endpointing=3000 and utterance_end_ms=1000 words are final after 1 s, the pause after 3 s."""
    client = connect(interim_results="true", endpointing="3000", utterance_end_ms="1000")
    assert client.session.start.settings.silence_ms == 1000
    spoken = words(("hello", 0.5, 1.0))
    client.deliver(SpeechStarted(samples(0.5)), SpeechEnded(samples(1.0)))
    (result,) = parsed(client.deliver(final(0, spoken, end=2.0)))
    assert result["is_final"] and not result["speech_final"]
    assert kinds(client.deliver(Progress(samples(2.1)))) == ["UtteranceEnd"]
    assert client.deliver(Progress(samples(3.9))) == []
    (result,) = parsed(client.deliver(Progress(samples(4.1))))
    assert (transcript(result), result["speech_final"], result["start"], result["duration"]) == (
        "",
        True,
        2.0,
        0.0,
    )
    assert client.deliver(Progress(samples(9))) == []


def test_who_speaks_again_has_not_paused() -> None:
    """Speech within the pause cancels a speech_final that was still to come."""
    client = connect(interim_results="true", endpointing="3000", utterance_end_ms="1000")
    client.deliver(SpeechStarted(0), SpeechEnded(samples(1)), final(0, words(("hello", 0, 1)), end=1.9))
    client.deliver(SpeechStarted(samples(1.9)))
    assert client.deliver(Progress(samples(5))) == []


def test_utterance_end_waits_for_the_gap() -> None:
    """It comes once, after as much audio as was asked for, and not while words or speech are open."""
    client = connect(interim_results="true", utterance_end_ms="1500", endpointing="300")
    client.deliver(SpeechStarted(0), SpeechEnded(samples(1)), final(0, words(("one", 0.2, 1.0)), end=1.3))
    assert client.deliver(Progress(samples(2.4))) == []
    (told,) = parsed(client.deliver(Progress(samples(2.5))))
    assert told == {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 1.0}
    assert client.deliver(Progress(samples(9))) == []

    client.deliver(SpeechStarted(samples(10)), SpeechEnded(samples(11)))
    client.deliver(final(1, words(("two", 10.2, 11)), end=11.3), SpeechStarted(samples(12)))
    assert client.deliver(Progress(samples(13))) == []
    partial = Partial(2, "three", "", words(("three", 12.1, 12.5)), samples(13))
    assert kinds(client.deliver(partial, SpeechEnded(samples(12.6)), Progress(samples(13.4)))) == ["Results"]
    frames = client.deliver(final(2, partial.words, end=13.5), Progress(samples(14)))
    assert kinds(frames) == ["Results", "UtteranceEnd"]
    assert json.loads(frames[-1])["last_word_end"] == 12.5


def test_a_gap_between_words_counts_even_if_it_was_noticed_late() -> None:
    """For a slow reader progress is left out; the gap is then told before the words that end it."""
    client = connect(interim_results="true", utterance_end_ms="1000")
    client.deliver(SpeechStarted(0), SpeechEnded(samples(1)), final(0, words(("one", 0, 1)), end=1.3))
    client.deliver(SpeechStarted(samples(5)))
    frames = client.deliver(final(1, words(("two", 5, 6)), end=6.3))
    assert kinds(frames) == ["UtteranceEnd", "Results"]


# Finalize


def test_finalize_is_answered_exactly_once() -> None:
    """The result that Finalize made final says so; where nothing was open an empty one does."""
    client = connect()
    client.is_held = True
    client.send(audio(1.25))
    client.send('{"type":"Finalize"}')
    client.send('{"type":"Finalize"}')
    client.is_held = False
    client.send(audio(0.5))
    client.send('{"type":"Finalize"}')
    told = [(transcript(result), result["from_finalize"]) for result in client.messages()]
    assert told == [("w0 w1 w2 w3", False), ("w4", True), ("", True), ("w5 w6", True)]
    assert client.closed is None


def test_an_endpoint_before_the_flush_is_no_answer_to_finalize() -> None:
    """A segment that ended by itself while Finalize waited is an ordinary final result."""
    client = connect(vad_events="true")
    client.is_held = True
    client.send('{"type":"Finalize"}')
    assert client.deliver(final(0, words(("one", 0, 1)), end=1)) == []
    frames = client.deliver(SpeechStarted(samples(2)), Flushed(samples(3)))
    assert kinds(frames) == ["Results", "SpeechStarted", "Results"]
    results = [result for result in parsed(frames) if result["type"] == "Results"]
    assert [(transcript(result), result["from_finalize"]) for result in results] == [
        ("one", False),
        ("", True),
    ]


def test_close_stream_while_finalize_waits() -> None:
    """Everything is answered before Metadata, and what comes after CloseStream is ignored."""
    client = connect()
    client.is_held = True
    client.send(audio(0.5))
    client.send('{"type":"Finalize"}')
    client.send('{"type":"CloseStream"}')
    client.send(audio(0.5))
    client.send('{"type":"Finalize"}')
    client.is_held = False
    client.pump()
    told = client.messages()
    assert [message["type"] for message in told] == ["Results", "Metadata"]
    assert told[0]["from_finalize"]
    assert told[1]["duration"] == 0.5
    assert client.closed == (1000, "")


# Audio and control messages


def test_metadata_tells_the_audio_received() -> None:
    """Metadata has the SHA-256 of all audio bytes, however they were cut, and its length."""
    client = connect()
    data = bytes(range(256)) * 100
    for start in range(0, len(data), 333):
        client.send(data[start : start + 333])
    client.send('{"type":"CloseStream"}')
    (metadata,) = [message for message in client.messages() if message["type"] == "Metadata"]
    assert metadata["sha256"] == hashlib.sha256(data).hexdigest()
    assert metadata["duration"] == 0.8
    assert metadata["created"] == "2030-01-02T03:04:05.678Z"
    assert list(metadata["model_info"]) == metadata["models"]


def test_configure_replaces_keyterms() -> None:
    """New keyterms hold from there on; null leaves them; times and finals go on."""
    client = connect(keyterm=["one", "two"])
    client.send(audio(0.5))
    assert client.session.start.settings.hotwords == ("one", "two")
    frames = client.send('{"type":"Configure","keyterms":["three"]}')
    assert client.session.start.settings.hotwords == ("three",)
    assert parsed(frames)[-1] == {
        "type": "ConfigureSuccess",
        "request_id": "5e551014-1111-4222-8333-444444444444",
        "keyterms": ["three"],
    }
    (answer,) = parsed(client.send('{"type":"Configure","keyterms":null}'))
    assert answer["type"] == "ConfigureSuccess" and "keyterms" not in answer
    client.send(audio(0.5))
    client.send('{"type":"CloseStream"}')
    finals = [message for message in client.messages() if message["type"] == "Results"]
    assert [(result["start"], result["duration"]) for result in finals] == [(0.0, 0.5), (0.5, 0.5)]


def test_configure_with_too_many_keyterms_fails() -> None:
    """Deepgram's code tells so, and the old ones stay."""
    client = connect(keyterm="one")
    terms = json.dumps([f"term {n}" for n in range(101)])
    (answer,) = parsed(client.send(f'{{"type":"Configure","keyterms":{terms}}}'))
    assert (answer["type"], answer["code"]) == ("ConfigureFailure", "CONFIGURE_KEYTERM_LIMIT_EXCEEDED")
    assert client.session.start.settings.hotwords == ("one",)


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "17", "{}", '{"type":"Keepalive"}', '{"type":7}', '{"type":"Finalize"', "[" * 9999],
)
def test_schema_errors_leave_the_stream_open(text: str) -> None:
    """A text frame that is no message is sent back with what was expected."""
    client = connect()
    (error,) = parsed(client.send(text))
    assert (error["type"], error["variant"], error["message"]) == ("Error", "SchemaError", text[:1000])
    assert "KeepAlive, Finalize, CloseStream or Configure" in error["description"]
    client.send(audio(1))
    assert transcript(client.messages()[-1]) == "w0 w1 w2 w3"


def test_too_many_errors_end_the_stream() -> None:
    """The fifty-first wrong message is one too many; what was said comes first."""
    client = connect()
    client.send(audio(0.5))
    for _ in range(51):
        client.send("?")
    assert client.closed == (1008, "too many errors")
    told = client.messages()
    assert transcript(told[-2]) == "w0 w1" and told[-1]["type"] == "Error"


@pytest.mark.parametrize(
    ("code", "close"),
    [
        ("idle_timeout", (1011, "NET-0001 no audio and no message came in time")),
        ("session_limit", (1008, "the session has lasted too long")),
        ("shutting_down", (1001, "the server shuts down")),
    ],
)
def test_limits_end_with_results_metadata_and_deepgrams_code(code: str, close: tuple[int, str]) -> None:
    """What was said becomes final before the server closes for a reason of its own."""
    client = connect()
    client.send(audio(0.5))
    client.session.expire(code, "why")
    client.slot.finish()
    client.pump()
    told = [message["type"] for message in client.messages()]
    assert [kind for kind in told if kind != "Error"] == ["Results", "Metadata"]
    assert client.closed == close


def test_a_broken_model_is_net_0000() -> None:
    """What was committed is told before the connection closes."""
    client = connect(interim_results="true")
    client.send(audio(0.5))
    client.send(BROKEN_MODEL)
    told = client.messages()
    assert transcript(told[-2]) == "w0 w1" and told[-2]["is_final"]
    assert (told[-1]["type"], told[-1]["variant"]) == ("Error", "NET-0000")
    assert client.closed == (1011, "NET-0000 the server failed")


# Whatever is said


def step_strategy() -> st.SearchStrategy[tuple[str, float]]:
    seconds = st.sampled_from([0.1, 0.25, 0.4, 1.0, 2.3])
    kinds = ["speech", "quiet", "Finalize", "KeepAlive", "Configure", "nonsense", "hold", "release"]
    return st.tuples(st.sampled_from(kinds), seconds)


@given(
    steps=st.lists(step_strategy(), max_size=25),
    query=st.fixed_dictionaries(
        {
            "interim_results": st.just("true"),
            "endpointing": st.sampled_from(["100", "3000", "false"]),
            "utterance_end_ms": st.sampled_from(["", "1000"]),
            "vad_events": st.sampled_from(["true", "false"]),
        }
    ),
)
def test_invariants(steps: list[tuple[str, float]], query: dict[str, str]) -> None:
    """Finals are disjoint and in order, words become final once and for ever, each Finalize is answered."""
    client = connect(**query)
    n_finalize = 0
    for kind, seconds in steps:
        match kind:
            case "speech" | "quiet":
                client.send(audio(seconds) if kind == "speech" else quiet(seconds))
            case "Finalize" | "KeepAlive":
                n_finalize += kind == "Finalize"
                client.send(json.dumps({"type": kind}))
            case "Configure":
                client.send('{"type":"Configure","keyterms":["k"]}')
            case "nonsense":
                client.send("{")
            case _:
                client.is_held = kind == "hold"
    client.is_held = False
    client.send('{"type":"CloseStream"}')
    assert client.closed == (1000, "")
    assert client.messages()[-1]["type"] == "Metadata"
    check(client.messages(), n_finalize=n_finalize)


def check(messages: list[dict], *, n_finalize: int) -> None:
    """What holds for every conversation."""
    results = [message for message in messages if message["type"] == "Results"]
    assert sum(result["from_finalize"] for result in results) == n_finalize
    covered = 0.0
    said: list[tuple[str, float, float]] = []
    for result in results:
        heard = result["channel"]["alternatives"][0]["words"]
        assert result["start"] == covered and result["duration"] >= 0
        assert transcript(result).split()[: len(heard)] == [word["word"] for word in heard]
        spans = [(word["word"], word["start"], word["end"]) for word in heard]
        assert not set(spans) & set(said), "a word that is final comes again"
        assert all(span[1] >= covered for span in spans)
        if result["is_final"]:
            covered = round(covered + result["duration"], 3)
            said += spans
        else:
            assert not (result["speech_final"] or result["from_finalize"])
    assert said == sorted(said, key=lambda span: span[1]) and len(said) == len(set(said))
    ends = [message["last_word_end"] for message in messages if message["type"] == "UtteranceEnd"]
    assert ends == sorted(set(ends)) and set(ends) <= {span[2] for span in said}
