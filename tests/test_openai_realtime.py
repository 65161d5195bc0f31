"""The OpenAI Realtime dialect without sockets: recorded conversations, events, wrong ones, the end."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from asr.events import Final, Partial, SpeechEnded, SpeechStarted, Word
from service.config import Limits
from service.messages import Close, Error
from service.outbox import Outgoing
from service.protocol.openai_realtime import (
    MAX_APPEND_BYTES,
)
from service.protocol.openai_realtime_settings import LOGPROBS
from service.stream_settings import Progress
from tests.dialogue import assert_recorded
from tests.fake_batcher import BROKEN_MODEL
from tests.openai_talk import APPEND, CLEAR, COMMIT, MANUAL, RATE, TRANSCRIPTION, Talk, kinds, only_error

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
