"""What clients of OpenAI's Realtime protocol can set: merging, formats, turns, languages, wrong values."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from service.protocol.dialect import BadRequest, Opening
from service.protocol.openai_realtime import (
    open_dialect,
)
from service.protocol.openai_realtime_settings import LOGPROBS
from service.stream_settings import AudioFormat, StreamSettings
from tests.openai_talk import APPEND, CLEAR, COMMIT, RATE, Talk, kinds, only_error


def test_updates_merge() -> None:
    """What an update leaves out stays as it was; null is the default."""
    talk = Talk()
    talk.update({"audio": {"input": {"transcription": {"language": "en", "prompt": "Hi"}}}})
    talk.update({"audio": {"input": {"turn_detection": {"silence_duration_ms": 700}}}})
    talk.update({"audio": {"input": {"transcription": {"keywords": ["Ann"], "delay": "xhigh"}}}})
    (updated,) = talk.update({"audio": {"input": {"transcription": {"prompt": None, "model": "x"}}}})
    inside = updated["session"]["audio"]["input"]
    expected = {"model": "x", "language": "en", "keywords": ["Ann"], "delay": "xhigh", "prompt": None}
    assert inside["transcription"] == expected
    assert inside["turn_detection"]["silence_duration_ms"] == 700
    assert inside["turn_detection"]["threshold"] == 0.5
    talk.speak(0.1)
    _, asked = talk.asked
    assert asked == StreamSettings(chunk_ms=1000, language="en", silence_ms=700, hotwords=("Ann",))


@pytest.mark.parametrize(
    ("delay", "ms"), [("minimal", 80), ("low", 160), ("medium", 300), ("high", 600), ("xhigh", 1000)]
)
def test_delay_is_a_chunk_size(delay: str, ms: int) -> None:
    """Each name stands for a number of milliseconds."""
    talk = Talk()
    talk.update({"audio": {"input": {"transcription": {"delay": delay}}}})
    talk.speak(0.1)
    assert talk.asked[1].chunk_ms == ms and talk.asked[1].latency is None


@pytest.mark.parametrize(("delay", "latency"), [("minimal", "minimal"), ("xhigh", "high"), (None, 90.0)])
def test_delay_turns_the_dial_of_a_servers_transducer(delay: str | None, latency: str | float) -> None:
    """Where the server has chosen that decoder; its own latency stands where the client gives none."""
    talk = Talk(defaults=StreamSettings(decoder="transducer", latency=90.0))
    talk.update({"audio": {"input": {"transcription": {"delay": delay}}}})
    talk.speak(0.1)
    assert talk.asked[-1].latency == latency


@pytest.mark.parametrize(
    ("ga", "beta", "audio"),
    [
        ({"type": "audio/pcm", "rate": 24000}, "pcm16", AudioFormat("pcm_s16le", 24_000)),
        ({"type": "audio/pcmu"}, "g711_ulaw", AudioFormat("mulaw", 8000)),
        ({"type": "audio/pcma"}, "g711_alaw", AudioFormat("alaw", 8000)),
    ],
)
def test_formats(ga: dict[str, Any], beta: str, audio: AudioFormat) -> None:
    """In the words of both dialects."""
    for session in ({"audio": {"input": {"format": ga}}}, {"input_audio_format": beta}):
        talk = Talk()
        talk.update(session)
        talk.speak(0.1)
        assert talk.asked[0] == audio


@pytest.mark.parametrize(
    ("turns", "ms"),
    [
        (None, 800),
        ({"type": "server_vad"}, 500),
        ({"type": "server_vad", "silence_duration_ms": 200}, 200),
        ({"type": "server_vad", "silence_duration_ms": 10}, 100),
        ({"type": "server_vad", "silence_duration_ms": 60_000}, 5000),
        ({"type": "semantic_vad"}, 800),
        ({"type": "semantic_vad", "eagerness": "high"}, 400),
        ({"type": "semantic_vad", "eagerness": "low"}, 1500),
    ],
)
def test_turn_detection_is_a_silence(turns: dict[str, Any] | None, ms: int) -> None:
    """What a turn ends with; without turn detection segments end unseen."""
    talk = Talk()
    talk.update({"audio": {"input": {"turn_detection": turns}}})
    talk.speak(0.1)
    assert talk.asked[1].silence_ms == ms


def test_what_changes_nothing_here_is_taken() -> None:
    """Never an error for input that can be ignored: clients take any error for the end."""
    talk = Talk()
    turns = {"type": "server_vad", "threshold": 0.9, "prefix_padding_ms": 100, "create_response": True}
    turns |= {"interrupt_response": False, "idle_timeout_ms": 6000}
    session = {
        "audio": {
            "input": {"noise_reduction": {"type": "far_field", "strength": 0.5}, "turn_detection": turns}
        },
        "include": [LOGPROBS, "item.something.new"],
        "model": "gpt-realtime",
        "new": {"a": [1]},
    }
    assert kinds(talk.update(session, extra=1)) == ["session.updated"]
    assert talk.event(APPEND, audio="") == []
    assert talk.session.state.value == "waiting"
    assert kinds(talk.event(CLEAR)) == ["buffer.cleared"]


def test_languages() -> None:
    """Codes with a region, lists, and what the model does not know."""
    for transcription in ({"language": "en-US"}, {"language": ""}, {"languages": ["en", "de"]}):
        talk = Talk()
        talk.update({"audio": {"input": {"transcription": transcription}}})
        talk.speak(0.1)
        assert talk.asked[1].language in ("en", None)
    error = only_error(Talk().update({"audio": {"input": {"transcription": {"language": "fr"}}}}))
    assert error["param"] == "session.audio.input.transcription.language" and "'en'" in error["message"]
    error = only_error(
        Talk().event("session.update", session={"input_audio_transcription": {"language": "fr"}})
    )
    assert error["param"] == "session.input_audio_transcription.language"


def test_settings_may_change_in_the_middle() -> None:
    """What was sent before is recognised as it was sent; times and items go on."""
    talk = Talk()
    talk.speak(0.5)
    events = talk.update({"audio": {"input": {"format": {"type": "audio/pcmu"}, "turn_detection": None}}})
    assert kinds(events)[-1] == "session.updated" and "transcription.completed" in kinds(events)
    (delta,) = talk.speak(0.25, rate=8000)
    assert delta["words"][0]["start"] == 0.5
    (*_, completed) = talk.event(COMMIT)
    assert completed["usage"]["seconds"] == 0.75 and completed["transcript"] == "w0"
    (*_,) = talk.speak(0.25, rate=8000)
    events = talk.update({"audio": {"input": {"turn_detection": {"type": "server_vad"}}}})
    assert kinds(events) == ["session.updated"]
    events = talk.speak(0.25, rate=8000) + talk.event(COMMIT)
    assert [each["transcript"] for each in events if "transcript" in each] == ["w1 w0"]


def test_the_model_in_the_address_is_the_one_that_is_told() -> None:
    """Whatever the client calls it."""
    dialect = open_dialect(Opening({"model": ["gpt-4o-transcribe"]}, model="tiny.en"))
    (frame,) = dialect.opened("x")
    session = json.loads(frame)["session"]
    assert session["audio"]["input"]["transcription"]["model"] == "gpt-4o-transcribe"
    assert session["id"] == "sess_x"


def test_only_transcription_can_be_asked_for() -> None:
    """Another intent is refused at the handshake, another type of session by an error."""
    with pytest.raises(BadRequest, match="intent is 'conversation'"):
        open_dialect(Opening({"intent": ["conversation"]}))
    error = only_error(Talk().event("session.update", session={"type": "realtime"}))
    assert (error["code"], error["param"]) == ("invalid_value", "session.type")


def test_an_odd_number_of_bytes_is_no_matter() -> None:
    """Appends are one stream of bytes."""
    talk = Talk()
    half = bytes(RATE // 4 + 1)
    talk.event(APPEND, audio=base64.b64encode(half).decode())
    (*_, delta) = talk.event(APPEND, audio=base64.b64encode(half[:-2]).decode())
    assert delta["delta"] == "w0"


def test_a_long_append_is_fed_in_pieces() -> None:
    """A minute at once does not block the others for as long as it takes to decode."""
    talk = Talk()
    talk.is_held = True
    talk.speak(60)
    assert talk.slot is not None and len(talk.slot._work) == 60


@pytest.mark.parametrize(
    ("inside", "param", "code"),
    [
        ({"format": {"type": "audio/mp3"}}, "format.type", "invalid_value"),
        ({"format": {"type": "audio/pcm", "rate": 16000}}, "format.rate", "invalid_value"),
        ({"format": "pcm16"}, "format", "invalid_type"),
        ({"transcription": {"delay": "none"}}, "transcription.delay", "invalid_value"),
        ({"transcription": {"prompt": 3}}, "transcription.prompt", "invalid_type"),
        ({"transcription": {"keywords": "Ann"}}, "transcription.keywords", "invalid_type"),
        ({"transcription": {"keywords": ["a"] * 101}}, "transcription.keywords", "array_above_max_length"),
        ({"transcription": {"keywords": ["a" * 101]}}, "transcription.keywords.0", "string_above_max_length"),
        ({"turn_detection": {"type": "none"}}, "turn_detection.type", "invalid_value"),
        ({"turn_detection": {"threshold": 1.5}}, "turn_detection.threshold", "invalid_value"),
        (
            {"turn_detection": {"silence_duration_ms": "1"}},
            "turn_detection.silence_duration_ms",
            "invalid_type",
        ),
    ],
)
def test_wrong_settings(inside: dict[str, Any], param: str, code: str) -> None:
    """The error names the field as the client wrote it, and nothing has changed."""
    talk = Talk()
    error = only_error(talk.update({"audio": {"input": {"transcription": {"language": "en"}, **inside}}}))
    assert (error["code"], error["param"]) == (code, f"session.audio.input.{param}")
    (updated,) = talk.update({})
    assert updated["session"]["audio"]["input"]["transcription"]["language"] is None
