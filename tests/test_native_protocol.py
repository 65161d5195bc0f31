"""The native protocol's adapter: frames to commands and errors, messages to frames. No sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr.events import Final, Partial, SpeechEnded, SpeechStarted, Word
from service.config import Limits
from service.messages import Ack, Audio, Done, Error, Flush, Message, Ping, Pong, Problem, Ready, Start, Stop
from service.outbox import Outgoing
from service.protocol.native import encode, parse
from service.stream_settings import ENCODINGS, AudioFormat, Flushed, StreamSettings

DEFAULTS = StreamSettings(chunk_ms=160)
WORD = Word("hello", 8000, 16000, 0.5, True)
LATENCIES = "one of minimal, low, medium, high, a number from 0 to 2000 (transducer only), or null"


def parsed(**message: Any) -> Any:
    return parse(json.dumps(message), DEFAULTS)


def start(**fields: Any) -> Any:
    return parsed(type="start", **fields)


def encoded(message: Message, *, seq: int = 0, words: bool = True) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(encode(Outgoing(message, seq), words=words))
    return result


def test_an_empty_start_takes_the_defaults() -> None:
    """What a client leaves out is the protocol's default or the server's."""
    assert start() == Start(settings=StreamSettings(chunk_ms=160))


def test_every_field_of_start_arrives() -> None:
    """Each field ends up in the command, and unknown ones do not matter."""
    assert start(
        sample_rate=8000,
        encoding="mulaw",
        channels=2,
        decoder="whisper",
        language="en",
        chunk_ms=80,
        right_context_ms=40,
        beam_size=2,
        interim=False,
        words=False,
        second_pass=True,
        endpointing={"silence_ms": 500, "max_segment_s": 10, "new": 1},
        prompt="Dear Sir",
        hotwords=["foresound", "Whisper"],
        resume_token="abc",
        last_seq=7,
        something_new={"a": 1},
    ) == Start(
        audio=AudioFormat("mulaw", 8000, 2),
        settings=StreamSettings(
            "whisper", 80, 40, 2, "en", "Dear Sir", True, 500, 10.0, hotwords=("foresound", "Whisper")
        ),
        interim=False,
        words=False,
        resume_token="abc",
        last_seq=7,
    )


def test_hotwords_end_the_prompt() -> None:
    """Where a recogniser takes no hotwords, its prompt is the client's with the hotwords behind it."""
    assert start(prompt="Dear Sir.", hotwords=["Ann", "Bo"]).settings.full_prompt == "Dear Sir. Ann, Bo"
    assert start(hotwords=["Ann"]).settings.full_prompt == "Ann"
    assert start(prompt="").settings.full_prompt is None


@pytest.mark.parametrize(("latency", "ms"), [("minimal", 80), ("low", 160), ("medium", 300), ("high", 600)])
def test_latency_is_another_name_for_a_chunk_size(latency: str, ms: int) -> None:
    """Each name stands for a number of milliseconds."""
    assert start(latency=latency).settings.chunk_ms == ms


def test_every_encoding_is_known() -> None:
    """Encodings are those of the batcher, and ogg-opus may be written with a hyphen."""
    assert [start(encoding=name).audio.encoding for name in ENCODINGS] == list(ENCODINGS)
    assert start(encoding="ogg-opus").audio.encoding == "ogg_opus"


def test_the_other_commands() -> None:
    """Binary frames are audio, each control message is a command."""
    assert parse(b"\1\2", DEFAULTS) == Audio(b"\1\2")
    assert parse(b"", DEFAULTS) == Audio(b"")
    assert parsed(type="flush") == Flush()
    assert parsed(type="stop", more=1) == Stop()
    assert [parsed(type="ping", id=id).id for id in ("a", 1, None)] == ["a", 1, None]
    assert parsed(type="ping") == Ping()


@pytest.mark.parametrize(
    "text", ["", "{", "start", "\0", '"\\ud800', "[" * 100_000, '{"a":' + "9" * 5000 + "}"]
)
def test_what_is_no_json_is_invalid_json(text: str) -> None:
    """Also what the standard library's parser would crash on, or take."""
    assert parse(text, DEFAULTS).code == "invalid_json"  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["[]", "3", "null", '"start"', '[{"type": "stop"}]'])
def test_what_is_no_object_is_not_an_object(text: str) -> None:
    """Any JSON value but an object."""
    assert parse(text, DEFAULTS).code == "not_an_object"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    ["{}", '{"type": NaN}', '{"type": "begin"}', '{"type": 3}', '{"type": ["start"]}', '{"type": null}'],
)
def test_unknown_types_are_answered_with_the_known_ones(text: str) -> None:
    """The error lists what could have been meant."""
    problem = parse(text, DEFAULTS)
    assert isinstance(problem, Problem) and problem.code == "unknown_type"
    assert problem.message.endswith("expected one of start, flush, stop, ping")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("sample_rate", "16000", "an integer from 8000 to 48000"),
        ("sample_rate", True, "an integer from 8000 to 48000"),
        ("sample_rate", 16000.0, "an integer from 8000 to 48000"),
        ("sample_rate", 7999, "an integer from 8000 to 48000"),
        ("sample_rate", 48001, "an integer from 8000 to 48000"),
        ("sample_rate", None, "an integer from 8000 to 48000"),
        ("encoding", "mp3", "one of pcm_s16le, pcm_f32le, mulaw, alaw, flac, ogg_opus"),
        ("encoding", 16, "one of pcm_s16le, pcm_f32le, mulaw, alaw, flac, ogg_opus"),
        ("channels", 0, "an integer from 1 to 8"),
        ("channels", 9, "an integer from 1 to 8"),
        ("decoder", 1, "whisper, transducer, or null"),
        ("language", ["en"], "a language code such as en, or null"),
        ("chunk_ms", 50, "an integer from 40 to 1000 in steps of 20"),
        ("chunk_ms", 20, "an integer from 40 to 1000 in steps of 20"),
        ("chunk_ms", 1020, "an integer from 40 to 1000 in steps of 20"),
        ("right_context_ms", 980, "an integer from 0 to 960 in steps of 20"),
        ("latency", "tiny", LATENCIES),
        ("latency", -1, LATENCIES),
        ("latency", 2001.0, LATENCIES),
        ("latency", True, LATENCIES),
        ("beam_size", 9, "an integer from 1 to 8"),
        ("interim", 1, "true or false"),
        ("words", "yes", "true or false"),
        ("second_pass", None, "true or false"),
        ("endpointing", [], "an object with silence_ms and max_segment_s"),
        ("prompt", "a" * 1001, "a text of at most 1000 characters, or null"),
        ("hotwords", "a", "a list of at most 100 texts, each of 1 to 100 characters"),
        ("hotwords", ["a"] * 101, "a list of at most 100 texts, each of 1 to 100 characters"),
        ("resume_token", 7, "the resume_token of ready, or null"),
        ("last_seq", -1, "an integer of at least 0"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(field: str, value: Any, expected: str) -> None:
    """Nothing is coerced: the error names the field, shows the value and lists the valid ones."""
    problem = start(**{field: value})
    assert isinstance(problem, Problem)
    assert (problem.code, problem.field) == ("invalid_field", field)
    shown = json.dumps(value)[:60]
    assert problem.message.startswith(f"{field} is {shown}") and problem.message.endswith(
        f"expected {expected}"
    )


def test_fields_inside_fields_are_named_with_their_path() -> None:
    """A nested field and an item of a list."""
    problem = start(endpointing={"silence_ms": 99})
    assert (problem.field, problem.message) == (
        "endpointing.silence_ms",
        "endpointing.silence_ms is 99; expected an integer from 100 to 5000",
    )
    assert start(endpointing={"max_segment_s": True}).field == "endpointing.max_segment_s"
    assert start(endpointing={"max_segment_s": 5}).settings.max_segment_s == 5.0
    assert start(hotwords=["a", ""]).field == "hotwords.1"
    for id in (True, 1.5, "a" * 101, 2**53, [1]):
        assert parsed(type="ping", id=id).field == "id"


def test_chunk_ms_and_latency_contradict_each_other() -> None:
    """Only one of the two may be given, and no other latency, where Whisper's decoder reads."""
    assert start(chunk_ms=80, latency="low").field == "latency"
    assert start(latency=80).field == "latency"


def test_the_servers_right_context_is_that_of_its_chunks_and_decoder() -> None:
    """With others it is the usual one, unless the client says which."""
    defaults = StreamSettings(chunk_ms=600, right_context_ms=200)
    for fields, expected in (
        ({}, 200),
        ({"right_context_ms": 0}, 0),
        ({"chunk_ms": 300}, None),  # another chunk size has the usual one
        ({"latency": "minimal"}, None),
        ({"latency": "high"}, 200),
        ({"decoder": "transducer"}, None),
        ({"decoder": "transducer", "right_context_ms": 80}, 80),
    ):
        begun: Any = parse(json.dumps({"type": "start", **fields}), defaults)
        assert begun.settings.right_context_ms == expected
    problem = start(chunk_ms=700, right_context_ms=320)
    assert problem.message == "right_context_ms is 320; with chunks of 700 ms at most 300"


def test_latency_turns_the_transducers_dial() -> None:
    """A name chooses the chunks besides, unless they are given; a number does not."""
    low = start(decoder="transducer", latency="low").settings
    assert (low.latency, low.chunk_ms) == ("low", 160)
    low = start(decoder="transducer", latency="low", chunk_ms=80).settings
    assert (low.latency, low.chunk_ms) == ("low", 80)
    none = start(decoder="transducer", latency=0).settings
    assert (none.latency, none.chunk_ms) == (0.0, DEFAULTS.chunk_ms)
    assert start(latency="low").settings.latency is None


def test_the_servers_latency_is_its_transducers() -> None:
    """Who gives none has the server's, who asks for Whisper's decoder has none."""
    defaults = StreamSettings(decoder="transducer", latency="high")

    def settings(**fields: object) -> StreamSettings:
        command = parse(json.dumps({"type": "start", **fields}), defaults)
        assert isinstance(command, Start)
        return command.settings

    assert settings() == defaults
    assert settings(latency=0).latency == 0.0
    assert settings(decoder="whisper").latency is None


def test_messages_to_the_client() -> None:
    """The JSON form of every message."""
    assert encoded(SpeechStarted(8000), seq=1) == {"type": "speech_started", "time": 0.5, "seq": 1}
    assert encoded(SpeechEnded(8000), seq=2) == {"type": "speech_ended", "time": 0.5, "seq": 2}
    assert encoded(Flushed(16000), seq=3) == {"type": "flushed", "samples": 16000, "seq": 3}
    assert encoded(Ack(160, 320)) == {"type": "ack", "samples": 160, "bytes": 320}
    assert encoded(Pong("x")) == {"type": "pong", "id": "x"}
    error = {"type": "error", "code": "c", "message": "m", "fatal": False}
    assert encoded(Error("c", "m")) == error
    assert encoded(Error("c", "m", fatal=True, field="f")) == error | {"fatal": True, "field": "f"}
    done = {"type": "done", "seq": 4, "audio_s": 1.5, "rtf": 0.333, "reason": "stop"}
    assert encoded(Done(1.5, 1 / 3, "stop"), seq=4) == done


def test_partials_and_finals_leave_words_out_on_request() -> None:
    """Words only where the client wants them; nothing but finals has a number."""
    word = {"text": "hello", "start": 0.5, "end": 1.0, "confidence": 0.5, "stable": True}
    body = {"type": "partial", "segment": 2, "committed": "hello", "draft": " wörld", "time": 1.0}
    partial = Partial(2, "hello", " wörld", (WORD,), 16000)
    assert encoded(partial) == body | {"words": [word]}
    assert encoded(partial, words=False) == body
    assert "wörld" in encode(Outgoing(partial), words=False)
    final = Final(2, "hello", (WORD,), 0, 16000, False, 16000)
    body = {"type": "final", "seq": 9, "segment": 2, "text": "hello", "start": 0.0, "end": 1.0}
    body |= {"second_pass": False, "time": 1.0}
    assert encoded(final, seq=9) == body | {"words": [word]}
    assert encoded(final, seq=9, words=False) == body


def test_ready_echoes_settings_that_start_would_take() -> None:
    """A client may send the settings of ready as its next start."""
    command = start(sample_rate=8000, language="en", hotwords=["Ann"], endpointing={"silence_ms": 300})
    ready = Ready("id", "token", False, 0, 0, "tiny.en", command, Limits())
    body = encoded(ready)
    assert start(**body["settings"]) == command
    assert body["limits"] == {
        "message_bytes": 1 << 20,
        "queue_s": 10.0,
        "idle_s": 60.0,
        "session_s": 14400.0,
        "resume_s": 60.0,
    }
    assert {
        key: body[key] for key in ("session", "resume_token", "resumed", "samples", "bytes", "model")
    } == {
        "session": "id",
        "resume_token": "token",
        "resumed": False,
        "samples": 0,
        "bytes": 0,
        "model": "tiny.en",
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
FIELDS = [
    *encoded(Ready("", "", False, 0, 0, "", Start(), Limits()))["settings"],
    "latency",
    "last_seq",
    "id",
]
messages = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages, st.sampled_from(["start", "flush", "stop", "ping", "other"]))
def test_no_object_raises(fields: dict[str, Any], kind: str) -> None:
    """Whatever the fields hold, there is a command or an error that says what to do."""
    command = parsed(type=kind, **fields)
    if isinstance(command, Problem):
        assert command.message and (command.field is None or command.field.split(".")[0] in FIELDS)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text() | st.binary())
def test_no_frame_raises(frame: str | bytes) -> None:
    """Nor does any text or any bytes."""
    parse(frame, DEFAULTS)
