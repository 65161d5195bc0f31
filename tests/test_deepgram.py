"""Deepgram's dialect without sockets: recorded conversations, audio and control messages, all results."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.protocol import deepgram_messages
from tests.deepgram_talk import (
    audio,
    connect,
    parsed,
    quiet,
    transcript,
)
from tests.dialogue import assert_recorded
from tests.fake_batcher import BAD_AUDIO, BROKEN_MODEL


@pytest.fixture(autouse=True)
def _version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepgram_messages, "_version", lambda: "1.2.3")


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
