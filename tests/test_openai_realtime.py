"""The OpenAI Realtime dialect without sockets: recorded conversations, invariants, settings, wrong events."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr.events import Final, Partial, SpeechEnded, SpeechStarted, Word
from service.config import Limits
from service.messages import Close, Error
from service.outbox import Outgoing
from service.protocol.dialect import BadRequest, Opening
from service.protocol.openai_realtime import (
    MAX_APPEND_BYTES,
    SUPPORTED_EVENTS,
    OpenAIRealtimeDialect,
    open_dialect,
)
from service.protocol.openai_realtime_settings import LOGPROBS
from service.stream_settings import AudioFormat, Progress, StreamSettings
from tests.dialogue import Dialogue, assert_recorded
from tests.fake_batcher import BROKEN_MODEL, QUIET

RATE = 24_000
TRANSCRIPTION = "conversation.item.input_audio_transcription"
APPEND, COMMIT, CLEAR = (f"input_audio_buffer.{name}" for name in ("append", "commit", "clear"))
MANUAL = {"audio": {"input": {"turn_detection": None}}}


def counted() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"{next(numbers):04}"


class Talk(Dialogue):
    """A client of OpenAI's protocol."""

    def __init__(
        self, *, headers: dict[str, str] | None = None, languages: tuple[str, ...] = ("en",)
    ) -> None:
        opening = Opening({"intent": ["transcription"]}, headers or {}, model="fake", languages=languages)
        super().__init__(OpenAIRealtimeDialect(opening, token=counted(), clock=lambda: 1_900_000_000.0))

    def event(self, kind: str, *, shown: str = "", **fields: Any) -> list[dict[str, Any]]:
        """Send an event; what came back."""
        return [json.loads(each) for each in self.send(json.dumps({"type": kind, **fields}), shown=shown)]

    def update(self, session: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
        return self.event("session.update", session={"type": "transcription", **session}, **fields)

    def speak(self, seconds: float, *, begin: bytes = b"", rate: int = 2 * RATE) -> list[dict[str, Any]]:
        """So much audio; a word each quarter second."""
        n_bytes = int(seconds * rate) // 2 * 2
        data = (begin + bytes(n_bytes))[:n_bytes]
        kind = "silence" if begin == QUIET else "speech"
        return self.event(APPEND, audio=base64.b64encode(data).decode(), shown=f"{seconds:g} s of {kind}")

    def rest(self, seconds: float) -> list[dict[str, Any]]:
        return self.speak(seconds, begin=QUIET)

    @property
    def asked(self) -> tuple[AudioFormat, StreamSettings]:
        """What the recogniser was asked for last."""
        return self.session.start.audio, self.session.start.settings


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Types without what all of them begin with."""
    return [each["type"].replace("conversation.item.", "").replace("input_audio_", "") for each in events]


def only_error(events: list[dict[str, Any]]) -> dict[str, Any]:
    (event,) = events
    assert event["type"] == "error"
    return event["error"]


# Recorded conversations


def test_recorded_turn_detection() -> None:
    """The server's turn detection makes items, the deltas come while somebody speaks."""
    talk = Talk()
    talk.update(
        {
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": RATE},
                    "transcription": {"model": "gpt-4o-transcribe", "language": "en", "delay": "low"},
                    "turn_detection": {"type": "server_vad", "silence_duration_ms": 300},
                }
            },
            "include": [LOGPROBS],
        },
        event_id="mine",
    )
    talk.speak(0.3)
    talk.speak(0.3)
    talk.rest(0.9)
    talk.speak(1.25)
    talk.rest(0.5)
    assert_recorded(talk, "openai_turn_detection")


def test_recorded_commits() -> None:
    """Without turn detection only commits make items, however long somebody speaks."""
    talk = Talk()
    talk.update(MANUAL)
    talk.speak(0.5)
    talk.speak(1)
    talk.event(COMMIT)
    talk.speak(0.5)
    talk.event(CLEAR)
    talk.speak(0.25)
    talk.event(COMMIT, event_id="second")
    talk.event(COMMIT, event_id="too-much")
    assert_recorded(talk, "openai_commits")


def test_recorded_beta() -> None:
    """The beta dialect: flat settings and one event for a new item."""
    talk = Talk(headers={"openai-beta": "realtime=v1"})
    talk.event(
        "transcription_session.update",
        session={
            "input_audio_format": "g711_ulaw",
            "input_audio_transcription": {"model": "whisper-1", "language": "en", "prompt": "Hi"},
            "input_audio_noise_reduction": {"type": "near_field"},
            "turn_detection": None,
        },
    )
    talk.speak(0.75, rate=8000)
    talk.event(COMMIT)
    assert_recorded(talk, "openai_beta")


# Order and content of events


def test_a_turn_s_events_come_in_order() -> None:
    """Started, deltas, stopped, committed, the new item, the rest, completed."""
    talk = Talk()
    talk.is_held = True
    talk.speak(0.5)
    talk.is_held = False
    talk.pump()
    events = talk.messages()[1:] + talk.rest(0.5)
    assert kinds(events) == [
        "buffer.speech_started",
        "transcription.delta",
        "buffer.speech_stopped",
        "buffer.committed",
        "added",
        "done",
        "transcription.completed",
    ]
    started, delta, stopped, committed, added, done, completed = events
    (item_id,) = {each["item_id"] for each in (started, delta, stopped, committed, completed)}
    assert added["item"] == done["item"] and added["item"]["id"] == item_id
    assert (started["audio_start_ms"], stopped["audio_end_ms"]) == (0, 500)
    assert delta["delta"] == completed["transcript"] == "w0 w1"
    assert completed["usage"] == {"type": "duration", "seconds": 0.5}
    assert completed["words"] == delta["words"]
    assert completed["words"][1] == {
        "word": "w1",
        "start": 0.25,
        "end": 0.5,
        "confidence": 0.9,
        "stable": True,
    }


def test_words_that_may_change_are_told_as_such_and_are_in_no_delta() -> None:
    """Only committed text is a delta; drafts are words that are not stable."""
    talk = Talk()
    talk.speak(0.1)
    words = (Word("Hello,", 0, 4000, 0.9, True), Word("word", 4000, 8000, 0.5, False))
    (frame,) = talk.deliver(Partial(0, "Hello,", " word", words, 8000))
    event = json.loads(frame)
    assert event["delta"] == "Hello,"
    assert [(word["word"], word["stable"]) for word in event["words"]] == [("Hello,", True), ("word", False)]
    assert talk.deliver(Partial(0, "Hello,", " world", words, 9000)) == []


def test_log_probabilities_on_request() -> None:
    """One entry a word: its confidence's logarithm."""
    talk = Talk()
    assert "logprobs" not in talk.speak(0.25)[-1]
    talk = Talk()
    talk.update({"include": [LOGPROBS]})
    (*_, delta) = talk.speak(0.25)
    assert delta["logprobs"] == [{"token": "w0", "logprob": -0.1054, "bytes": [119, 48]}]


def test_commit_with_turn_detection_ends_the_open_item() -> None:
    """And a commit of silence makes an empty item, as every commit makes one."""
    talk = Talk()
    (started, _) = talk.speak(0.5)
    events = talk.event(COMMIT)
    assert kinds(events)[1:] == ["buffer.committed", "added", "done", "transcription.completed"]
    assert events[-1]["transcript"] == "w0 w1" and events[-1]["item_id"] == started["item_id"]
    talk.rest(0.5)
    (committed, *_, completed) = talk.event(COMMIT)
    assert completed["transcript"] == "" and committed["previous_item_id"] == started["item_id"]


def test_clear_forgets_what_was_said() -> None:
    """With and without turn detection: the item never completes, the next one begins anew."""
    for manual in (False, True):
        talk = Talk()
        if manual:
            talk.update(MANUAL)
        before = talk.speak(0.5)[-1]["item_id"]
        assert kinds(talk.event(CLEAR))[0] == "buffer.cleared"
        assert kinds(talk.event(CLEAR)) == ["buffer.cleared"]
        (*_, delta) = talk.speak(0.25)
        assert delta["delta"] == "w2" and delta["item_id"] != before
        assert talk.event(COMMIT)[-1]["transcript"] == "w2"


def test_commits_in_a_row_are_answered_in_order() -> None:
    """Three commits while the model is busy: each gets its own words."""
    talk = Talk()
    talk.update(MANUAL)
    talk.is_held = True
    for _ in range(3):
        talk.speak(0.25)
        talk.event(COMMIT)
    talk.is_held = False
    talk.pump()
    events = talk.messages()
    committed = [each["item_id"] for each in events if each["type"].endswith("committed")]
    completed = {each["item_id"]: each["transcript"] for each in events if each["type"].endswith("completed")}
    assert [completed[item_id] for item_id in committed] == ["w0", "w1", "w2"]


def test_speech_without_words_gives_an_empty_item() -> None:
    """As soon as it is certain that there will be none, or when the next words come."""
    talk = Talk()
    talk.rest(0.1)
    talk.deliver(SpeechStarted(1600), SpeechEnded(3200), Progress(3200 + 8000 + 3199))
    assert kinds(talk.messages())[-1] == "buffer.speech_stopped"
    events = [json.loads(each) for each in talk.deliver(Progress(3200 + 8000 + 3200))]
    assert kinds(events) == ["buffer.committed", "added", "done", "transcription.completed"]
    assert events[-1]["transcript"] == "" and events[-1]["usage"]["seconds"] == 0.1
    talk.deliver(SpeechStarted(32_000), SpeechEnded(33_000), SpeechStarted(48_000))
    word = Word("Yes.", 48_100, 50_000, 0.9, True)
    events = [json.loads(each) for each in talk.deliver(Final(0, "Yes.", (word,), 0, 50_000, False, 50_000))]
    assert [each["transcript"] for each in events if "transcript" in each] == ["", "Yes."]


def test_the_words_of_a_late_final_stay_with_their_speech() -> None:
    """Speech that begins before the final of the speech before it does not take its words."""
    talk = Talk()
    talk.rest(0.1)
    word = Word("One.", 1600, 3200, 0.9, True)
    talk.deliver(SpeechStarted(1600), SpeechEnded(3200), SpeechStarted(16_000))
    events = [json.loads(each) for each in talk.deliver(Final(0, "One.", (word,), 0, 16_000, False, 16_000))]
    (completed,) = (each for each in events if "transcript" in each)
    started = [each["item_id"] for each in talk.messages() if each["type"].endswith("started")]
    assert (completed["item_id"], completed["transcript"]) == (started[0], "One.")


def test_a_long_speech_goes_on_in_another_item() -> None:
    """Where the recogniser ends a segment in speech, the item ends and no voice event is made up."""
    talk = Talk()
    first = Final(0, "One", (Word("One", 0, 8000, 0.9, True),), 0, 8000, False, 8000)
    talk.rest(0.1)
    talk.deliver(SpeechStarted(0), first)
    talk.deliver(Partial(1, "two", "", (Word("two", 8000, 9000, 0.9, True),), 9000))
    events = talk.messages()
    assert [kind for kind in kinds(events) if "speech" in kind] == ["buffer.speech_started"]
    assert events[-1]["delta"] == "two" and events[-1]["item_id"] != events[-2]["item_id"]


# Settings


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
    assert talk.asked[1].chunk_ms == ms


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


# Wrong events


@pytest.mark.parametrize(
    ("event", "code", "param"),
    [
        ({"type": "response.create"}, "invalid_value", "type"),
        ({"type": ""}, "invalid_value", "type"),
        ({"type": 3}, "invalid_type", "type"),
        ({}, "missing_required_parameter", "type"),
        ({"type": APPEND}, "missing_required_parameter", "audio"),
        ({"type": APPEND, "audio": 7}, "invalid_type", "audio"),
        ({"type": APPEND, "audio": "no base64!"}, "invalid_value", "audio"),
        ({"type": APPEND, "audio": "AAA"}, "invalid_value", "audio"),
        ({"type": APPEND, "audio": "é"}, "invalid_value", "audio"),
        ({"type": COMMIT}, "input_audio_buffer_commit_empty", None),
        ({"type": "session.update"}, "missing_required_parameter", "session"),
        ({"type": "session.update", "session": []}, "invalid_type", "session"),
    ],
)
def test_wrong_events(event: dict[str, Any], code: str, param: str | None) -> None:
    """An error in the protocol's form that names the client's event; the conversation goes on."""
    talk = Talk()
    frame = json.dumps({"event_id": "mine", **event})
    error = only_error([json.loads(each) for each in talk.send(frame)])
    assert error["type"] == "invalid_request_error" and error["message"]
    assert (error["code"], error["param"], error["event_id"]) == (code, param, "mine")
    assert talk.speak(0.25)[-1]["delta"] == "w0"


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


def test_an_append_beyond_the_limit_is_dropped() -> None:
    """More than 15 MiB of audio in one event."""
    talk = Talk()
    text = base64.b64encode(bytes(MAX_APPEND_BYTES + 3)).decode()
    assert only_error(talk.event(APPEND, audio=text, shown="much"))["code"] == "string_above_max_length"
    assert only_error(talk.event(COMMIT))["code"] == "input_audio_buffer_commit_empty"


@pytest.mark.parametrize("frame", ["", "{", "[]", "3", b"\xff", '"\\ud800"', "[" * 5000])
def test_what_is_no_event(frame: str | bytes) -> None:
    """No JSON object: an error, and the conversation goes on."""
    talk = Talk()
    assert only_error([json.loads(each) for each in talk.send(frame)])["code"] == "invalid_json"
    assert kinds(talk.update({})) == ["session.updated"]


def test_a_refused_language_is_told_and_can_be_corrected() -> None:
    """Where the languages are not known beforehand, the recogniser's refusal is the client's error."""
    talk = Talk(languages=())
    talk.update({**MANUAL, "audio": {"input": {"transcription": {"language": "xx"}, "turn_detection": None}}})
    talk.session.receive(*talk.dialect.receive(json.dumps({"type": APPEND, "audio": "AAAA"}))[:1], now=0)
    error = Error("invalid_field", "language must be one of en", field="language")
    (event,) = talk.dialect.send(Outgoing(error))
    assert json.loads(event)["error"]["param"] == "session.audio.input.transcription.language"
    assert talk.dialect.send(Outgoing(Error("not_started", ""))) == ()
    talk.update({"audio": {"input": {"transcription": {"language": "en"}}}})
    assert talk.speak(0.25)[-1]["delta"] == "w0"


# The end


def test_a_broken_model_fails_what_was_committed() -> None:
    """Each committed item gets its failure; then close 1011, on which clients reconnect."""
    talk = Talk()
    talk.update(MANUAL)
    talk.is_held = True
    talk.speak(0.25, begin=BROKEN_MODEL)
    talk.event(COMMIT)
    talk.is_held = False
    assert talk.slot
    talk.slot.tick()
    talk.session.fail("model_error", "broken")
    talk._write()
    *_, committed, _, _, failed, error = talk.messages()
    assert failed["type"] == f"{TRANSCRIPTION}.failed" and failed["item_id"] == committed["item_id"]
    assert failed["error"]["type"] == error["error"]["type"] == "server_error"
    assert talk.closed == (1011, "model_error")


@pytest.mark.parametrize("manual", [True, False])
def test_what_was_said_is_an_item_when_the_server_shuts_down(manual: bool) -> None:
    """Nothing is lost without a commit, there is no error, and the close code makes clients come back."""
    talk = Talk()
    if manual:
        talk.update(MANUAL)
    talk.speak(0.5)
    talk.session.expire("shutting_down", "bye")
    assert talk.slot
    talk.slot.finish()
    talk.pump()
    assert talk.messages()[-1]["transcript"] == "w0 w1"
    assert talk.closed == (1001, "shutting_down")


def test_a_session_that_is_too_old_is_told_so() -> None:
    """As OpenAI does, and clients come back."""
    talk = Talk()
    talk.session.expire("session_limit", "too long")
    talk.pump()
    assert talk.messages()[-1]["error"]["code"] == "session_expired"
    assert talk.closed == (1001, "session_limit")


def test_too_many_errors_end_the_connection() -> None:
    """Fifty are forgiven; close code 1008, on which clients do not reconnect."""
    talk = Talk()
    for _ in range(51):
        assert talk.closed is None
        talk.send("?")
    assert talk.closed == (1008, "too_many_errors")


def test_a_silent_client_is_not_hurried() -> None:
    """The protocol knows no keepalive: a session lasts as long as it may."""
    patience = Talk().dialect.patience(Limits(session_s=100, idle_s=1, start_s=1))
    assert (patience.start_s, patience.idle_s) == (100, 100)
    assert Talk().dialect.close(Close(1000, "stop")) == ((), 1000, "stop")


# Invariants


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
FIELDS = (
    *("type", "audio", "input", "format", "transcription", "turn_detection", "input_audio_format", "include"),
    *("language", "languages", "prompt", "keywords", "delay", "input_audio_transcription", "threshold"),
)
ANSWERS = {
    "error",
    "session.created",
    "session.updated",
    "transcription_session.updated",
    "input_audio_buffer.cleared",
}
nested = st.recursive(
    json_values | st.sampled_from(["transcription", "server_vad", "audio/pcm", "en", "low"]),
    lambda inner: st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([*SUPPORTED_EVENTS, "other"]), nested)
def test_no_event_raises(kind: str, value: Any) -> None:
    """Whatever a client sends there is an answer, and every answer is an event with a name of its own."""
    talk = Talk()
    talk.send(json.dumps({"type": kind, "session": value, "audio": value, "event_id": value}))
    talk.send(json.dumps(value))
    events = talk.messages()
    assert len({each["event_id"] for each in events}) == len(events)
    assert {each["type"] for each in events} <= ANSWERS


actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["speak", "speak", "speak", "rest", "commit", "clear", "manual", "vad", "hold", "go"]
        ),
        st.integers(1, 9),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(actions)
def test_deltas_add_up_and_each_word_is_final_once(script: list[tuple[str, int]]) -> None:
    """However a client speaks, commits, clears and changes its mind, and however slowly it is served."""
    talk = Talk()
    for action, amount in script:
        match action:
            case "speak":
                talk.speak(amount / 8)
            case "rest":
                talk.rest(amount / 8)
            case "commit":
                talk.event(COMMIT)
            case "clear":
                talk.event(CLEAR)
            case "manual":
                talk.update(MANUAL)
            case "vad":
                talk.update({"audio": {"input": {"turn_detection": {"type": "server_vad"}}}})
            case _:
                talk.is_held = action == "hold"
                talk.pump()
    talk.is_held = False
    talk.pump()
    talk.session.expire("shutting_down", "")
    if talk.slot and talk.session.state.value == "finishing":
        talk.slot.finish()
    talk.pump()
    check_invariants(talk.messages())


def check_invariants(events: list[dict[str, Any]]) -> None:
    """What holds in every conversation."""
    told: dict[str, str] = {}
    words: dict[str, list[float]] = {}
    committed: list[str] = []
    completed: list[str] = []
    speaking: str | None = None
    all_words: list[float] = []
    for event in events:
        item_id = event.get("item_id", "")
        match event["type"].rpartition(".")[2]:
            case "delta":
                assert event["delta"] and item_id not in completed
                told[item_id] = told.get(item_id, "") + event["delta"]
                stable = [word["start"] for word in event["words"] if word["stable"]]
                words.setdefault(item_id, []).extend(stable)
                all_words += stable
            case "committed":
                assert item_id not in committed
                assert event["previous_item_id"] == (committed[-1] if committed else None)
                committed.append(item_id)
            case "completed":
                assert item_id in committed and item_id not in completed
                completed.append(item_id)
                assert event["transcript"] == told.get(item_id, "")
                assert [word["start"] for word in event["words"]] == words.get(item_id, [])
                assert " ".join(word["word"] for word in event["words"]) == event["transcript"]
            case "speech_started":
                assert speaking is None
                speaking = item_id
            case "speech_stopped":
                speaking = None
    assert completed == committed
    assert all_words == sorted(set(all_words)), "a word was finalised twice or out of order"


@st.composite
def histories(draw: st.DrawFn) -> list[Partial | Final]:
    """Segments whose committed text grows by any pieces, with drafts that come and go."""
    pieces = st.text(alphabet="ab é,.\u3042", min_size=1, max_size=4)
    events: list[Partial | Final] = []
    for segment in range(draw(st.integers(1, 3))):
        text = ""
        for piece in draw(st.lists(pieces, max_size=5)):
            text = (text + piece).lstrip()
            events.append(Partial(segment, text, draw(pieces), (), 0))
        text += draw(pieces)
        events.append(Final(segment, text.strip(), (), 0, 0, False, 0))
    return events


@settings(deadline=None)
@given(histories(), st.booleans(), st.randoms(use_true_random=False))
def test_deltas_add_up_to_the_recognised_text(
    events: list[Partial | Final], manual: bool, random: Any
) -> None:
    """For any text, with blanks anywhere and partials left out, nothing is lost and nothing is taken back."""
    talk = Talk()
    if manual:
        talk.update(MANUAL)
    talk.speak(0.01)
    for event in events:
        if isinstance(event, Final) or random.random() < 0.7:
            talk.deliver(event)
    talk.event(COMMIT)
    messages = talk.messages()
    deltas = "".join(each.get("delta", "") for each in messages)
    transcripts = [each["transcript"] for each in messages if "transcript" in each]
    texts = [event.text for event in events if isinstance(event, Final)]
    if manual:
        assert transcripts == [deltas] == [" ".join(texts).strip() if any(texts) else ""]
    else:
        assert deltas == "".join(transcripts) and transcripts[: len(texts)] == texts
