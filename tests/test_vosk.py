"""The dialect of vosk-server without sockets: recorded conversations, one reply for each message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import OptionError
from asr.events import SAMPLE_RATE, Final, Partial, Word
from service.messages import Audio, Start
from service.protocol.dialect import Opening
from service.protocol.vosk import VoskDialect, open_dialect
from service.stream_settings import AudioFormat, Progress, StreamSettings
from tests.dialogue import Dialogue, assert_recorded
from tests.fake_batcher import BROKEN_MODEL, QUIET

CONFIG = '{ "config" : { "sample_rate" : 16000 } }'
EOF = '{"eof" : 1}'
RESET = '{"reset" : 1}'


def connect(config: str = CONFIG) -> Dialogue:
    """A client that has sent its configuration."""
    client = Dialogue(open_dialect(Opening()))
    if config:
        assert client.send(config) == []
    return client


def audio(seconds: float, *, rate: int = SAMPLE_RATE) -> bytes:
    return bytes(int(seconds * rate) * 2)


def quiet(seconds: float) -> bytes:
    return QUIET + audio(seconds)[len(QUIET) :]


def ask(client: Dialogue, frame: str | bytes) -> dict[str, Any]:
    """Send a message; its one reply."""
    (reply,) = client.send(frame)
    return json.loads(reply)


def samples(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE)


def test_recorded_dictation() -> None:
    """Words come with their times; a reset ends a segment, eof the conversation."""
    client = connect(
        '{ "config" : { "sample_rate" : 16000, "words" : true, "phrase_list" : ["w", "[unk]"] } }'
    )
    for _ in range(6):
        client.send(audio(0.2), shown="0.2 s of speech")
    client.send(quiet(0.4), shown="0.4 s of silence")
    client.send(audio(0.5), shown="0.5 s of speech")
    client.send(RESET)
    client.send(RESET)
    client.send(audio(0.6), shown="0.6 s of speech")
    client.send(EOF)
    assert client.closed == (1000, "")
    assert_recorded(client, "vosk_dictation")


def test_recorded_telephone() -> None:
    """Without a configuration audio has 8 kHz; alternatives come as a list; an unknown text is a question."""
    client = connect("")
    client.send(audio(0.5, rate=8000), shown="0.5 s of speech")
    client.send('{"config": {"words": 0, "max_alternatives": 3, "sample_rate": 44100}}')
    client.send("How far are you?")
    client.send(audio(0.5, rate=8000), shown="0.5 s of speech")
    client.send(b"", shown="an empty binary frame")
    client.send(EOF)
    assert client.session.start.audio == AudioFormat("pcm_s16le", 8000, 1)
    assert_recorded(client, "vosk_telephone")


def test_configuration_reaches_the_stream() -> None:
    """The rate may be any kind of number; phrases become hotwords; other settings are the server's."""
    dialect = VoskDialect(Opening(defaults=StreamSettings(chunk_ms=160, second_pass=True)))
    phrases = ["turn on", "turn off", "[unk]", "turn on", "", "x" * 101]
    config = {"sample_rate": "22050.0", "phrase_list": phrases, "model": "any"}
    assert dialect.receive(json.dumps({"config": config})) == ()
    start, sound, _ = dialect.receive(audio(0.1))
    assert isinstance(start, Start) and isinstance(sound, Audio)
    assert start.audio == AudioFormat("pcm_s16le", 22050, 1)
    assert start.settings == StreamSettings(chunk_ms=160, hotwords=("turn on", "turn off"))


def test_a_long_grammar_is_cut() -> None:
    """Of thousands of phrases the first hundred are kept."""
    client = connect(json.dumps({"config": {"phrase_list": [f"phrase {n}" for n in range(5000)]}}))
    ask(client, audio(0.1))
    assert len(client.session.start.settings.hotwords) == 100


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("config", "the configuration is no JSON object"),
        ('{"config": 16000}', "config is no object"),
        ('{"config": {"sample_rate": 4000}}', "sample_rate is 4000; expected a number from 8000 to 48000"),
        ('{"config": {"sample_rate": "fast"}}', 'sample_rate is "fast"; expected a number'),
        ('{"config": {"sample_rate": 1e999}}', "sample_rate is"),
        ('{"config": {"max_alternatives": null}}', "max_alternatives is null; expected an integer"),
        ('{"config": {"phrase_list": "one"}}', "phrase_list is no list of texts"),
        ('{"config": {"phrase_list": [1]}}', "phrase_list is no list of texts"),
    ],
)
@pytest.mark.parametrize("is_late", [False, True])
def test_a_wrong_configuration_closes_the_connection(config: str, said: str, is_late: bool) -> None:
    """There is no reply to a configuration, so the reason stands in the close frame."""
    client = connect("")
    if is_late:
        ask(client, audio(0.1))
    assert client.send(config) == []
    client.pump()
    assert client.closed is not None
    code, reason = client.closed
    assert code == 1008 and said in reason and len(reason.encode()) <= 123


def test_odd_cuts() -> None:
    """Samples that are cut in two are put together again."""
    client = connect()
    replies = [*(ask(client, bytes(999)) for _ in range(41)), ask(client, EOF)]
    assert [reply["text"] for reply in replies if "text" in reply] == ["w0 w1 w2 w3", "w4"]


def test_a_result_is_told_once_and_the_partial_starts_again() -> None:
    """After a segment the next reply is its result, then come the partial texts of the next one."""
    client = connect()
    client.is_scripted = True
    word = Word("“Hello!”", 1600, 8000, 0.5, True)
    replies = [ask(client, audio(0.3))]
    client.deliver(Partial(0, "“Hello", "!”", (word,), 4000))
    replies.append(ask(client, audio(0.3)))
    client.deliver(Final(0, "“Hello!”", (word,), 0, 9000, False, 9000))
    replies += [ask(client, audio(0.3)), ask(client, audio(0.1))]
    client.deliver(Partial(1, "", " So?", (), 15000))
    replies.append(ask(client, audio(0.05)))
    assert replies == [
        {"partial": ""},
        {"partial": "hello"},
        {"result": [{"conf": 0.5, "end": 0.5, "start": 0.1, "word": "hello"}], "text": "hello"},
        {"partial": ""},
        {"partial": "so"},
    ]


def test_replies_wait_for_a_slow_recogniser() -> None:
    """A client that reads a file gets its reply when the recogniser is close behind."""
    client = connect()
    client.is_scripted = True
    n_sent = 1
    while client.send(audio(0.2)):
        n_sent += 1
    assert n_sent == 6  # more than 1.1 s, which is two chunks and a bit, are not recognised
    assert client.deliver(Progress(samples(0.6), samples(0.3))) == []
    assert len(client.deliver(Progress(samples(0.95), samples(0.3)))) == 1
    assert len(client.send(audio(0.02))) == 1
    assert client.send(audio(0.2)) == []
    assert len(client.deliver(Progress(samples(1.25), samples(0.3)))) == 1


def test_a_refused_stream_answers_and_then_closes() -> None:
    """Should the model refuse the stream, the waiting client is answered and learns why next."""
    dialect = open_dialect(Opening())
    client = Dialogue(dialect)
    client._open = lambda: client.session.refused(OptionError("chunk_ms is 7"))  # type: ignore[method-assign]
    assert ask(client, audio(0.1)) == {"partial": ""}
    assert client.send(audio(0.1)) == []
    assert client.closed is not None and client.closed[0] == 1008 and "chunk_ms is 7" in client.closed[1]


@pytest.mark.parametrize(
    ("code", "close_code"), [("shutting_down", 1001), ("idle_timeout", 1008), ("session_limit", 1008)]
)
def test_limits_close_without_a_reply_too_many(code: str, close_code: int) -> None:
    """A client that has all its replies gets no more when the server ends the session."""
    client = connect()
    ask(client, audio(0.5))
    client.session.expire(code, "why")
    client.slot.finish()
    client.pump()
    assert len(client.received) == 1
    assert client.closed is not None and client.closed[0] == close_code


def test_a_broken_model_closes() -> None:
    """The connection ends with an error code."""
    client = connect()
    ask(client, audio(0.5))
    client.send(BROKEN_MODEL)
    assert client.closed is not None and client.closed[0] == 1011


steps = st.lists(
    st.tuples(
        st.sampled_from(["speech", "quiet", "reset", "text", "config", "hold", "release"]),
        st.sampled_from([0.1, 0.25, 0.4, 1.0, 2.3]),
    ),
    max_size=30,
)


@given(steps)
def test_one_reply_for_each_message(steps: list[tuple[str, float]]) -> None:
    """However fast the recogniser is, and even if the client does not wait: as many replies as messages."""
    client = connect()
    n_asked = 0
    for kind, seconds in steps:
        n_asked += kind not in ("config", "hold", "release")
        match kind:
            case "speech" | "quiet":
                client.send(audio(seconds) if kind == "speech" else quiet(seconds))
            case "reset":
                client.send(RESET)
            case "text":
                client.send('{"hello": 1}')
            case "config":
                client.send('{"config": {"max_alternatives": 0}}')
            case _:
                client.is_held = kind == "hold"
        if not client.is_held:
            client.pump()
    client.is_held = False
    client.send(EOF)
    assert client.closed == (1000, "")
    replies = client.messages()
    assert len(replies) == n_asked + 1
    words = [word for reply in replies for word in reply.get("result", ())]
    numbers = [int(word["word"][1:]) for word in words]
    assert numbers == sorted(set(numbers))
    assert [word["word"] for word in words] == " ".join(reply.get("text", "") for reply in replies).split()
    heard = [int(word[1:]) for reply in replies for word in reply.get("partial", "").split() if word != "d"]
    assert set(heard) <= set(numbers)
