"""The parameters of Deepgram's address: what they become, and which contradict each other."""

from __future__ import annotations

from urllib.parse import parse_qs

import pytest

from service.protocol.deepgram_query import ListenOptions, parse_query
from service.protocol.dialect import BadRequest, Opening
from service.stream_settings import AudioFormat, StreamSettings

RAW = "encoding=linear16&sample_rate=16000"


def parse(
    query: str, *, languages: tuple[str, ...] = (), defaults: StreamSettings | None = None
) -> ListenOptions:
    values = parse_qs(query, keep_blank_values=True)
    return parse_query(Opening(values, defaults=defaults or StreamSettings(), languages=languages))


@pytest.mark.parametrize(
    ("query", "audio"),
    [
        ("encoding=linear16&sample_rate=44100&channels=2", AudioFormat("pcm_s16le", 44_100, 2)),
        ("encoding=linear32&sample_rate=48000", AudioFormat("pcm_f32le", 48_000)),
        ("encoding=mulaw&sample_rate=8000", AudioFormat("mulaw", 8000)),
        ("encoding=alaw&sample_rate=8000&channels=1&multichannel=true", AudioFormat("alaw", 8000)),
        ("encoding=flac&sample_rate=16000", AudioFormat("flac")),
        ("encoding=ogg-opus", AudioFormat("ogg_opus")),
        ("encoding=opus&sample_rate=48000&channels=2", AudioFormat("opus")),
        ("", AudioFormat("container")),
        ("sample_rate=16000&channels=2&encoding=", AudioFormat("container")),
    ],
)
def test_audio(query: str, audio: AudioFormat) -> None:
    """Every encoding, and a container where none is named; its own sample rate then counts."""
    assert parse(query).start.audio == audio


def test_defaults() -> None:
    """What is left out: no interim results, no events, plain transcripts, the server's settings."""
    options = parse(RAW, defaults=StreamSettings(chunk_ms=160, language="de", beam_size=2, silence_ms=700))
    assert options.start.settings == StreamSettings(chunk_ms=160, language="de", beam_size=2, silence_ms=100)
    assert not options.start.interim and options.start.progress
    assert options.endpointing_ms == 100
    assert (options.utterance_end_ms, options.vad_events, options.punctuate) == (None, False, False)


def test_flags() -> None:
    """True is true in any case, as the Python SDK writes it; smart_format punctuates too."""
    options = parse(f"{RAW}&interim_results=True&vad_events=true&smart_format=TRUE&punctuate=false")
    assert options.start.interim and options.vad_events and options.punctuate


@pytest.mark.parametrize(
    ("query", "endpointing_ms", "silence_ms"),
    [
        ("", 100, 100),
        ("endpointing=true", 100, 100),
        ("endpointing=10", 100, 100),
        ("endpointing=0", 100, 100),
        ("endpointing=450", 450, 450),
        ("endpointing=9000", 9000, 5000),
        ("endpointing=false", None, 800),
        ("endpointing=3000&utterance_end_ms=1200", 3000, 1200),
        ("endpointing=500&utterance_end_ms=1200", 500, 500),
        ("endpointing=false&utterance_end_ms=1000", None, 800),
    ],
)
def test_pauses(query: str, endpointing_ms: int | None, silence_ms: int) -> None:
    """Segments end after the shorter of the pauses that the client waits for."""
    options = parse(f"{RAW}&interim_results=true&{query}")
    assert (options.endpointing_ms, options.start.settings.silence_ms) == (endpointing_ms, silence_ms)


@pytest.mark.parametrize(
    ("query", "hotwords"),
    [
        ("keyterm=Foresound&keyterm=New+York&keyterm=Foresound", ("Foresound", "New York")),
        ("keyterm=%5B%22one%22%2C%22two%20words%22%5D", ("one", "two words")),
        ("keyterm=%5Bnot+JSON", ("[not JSON",)),
        ("keywords=TCP:2&keywords=UDP&keywords=nope:-1.5&keywords=a:b", ("TCP", "UDP", "a:b")),
        ("keyterm=&keyterm=+", ()),
    ],
)
def test_keyterms(query: str, hotwords: tuple[str, ...]) -> None:
    """Keyterms as the SDKs send them, and keywords with their boosts."""
    assert parse(f"{RAW}&{query}").start.settings.hotwords == hotwords


@pytest.mark.parametrize(
    ("query", "language"),
    [("", None), ("language=en-US", "en"), ("language=multi", None), ("language=de", "de")],
)
def test_language(query: str, language: str | None) -> None:
    """The language of a tag; multi is to be detected."""
    assert parse(f"{RAW}&{query}", languages=("en", "de")).start.settings.language == language


def test_what_pipecat_and_livekit_always_send_is_ignored() -> None:
    """Parameters without a meaning here do not refuse a client."""
    parse(
        f"{RAW}&model=nova-3-general&channels=1&multichannel=false&profanity_filter=true&numerals=false"
        "&redact=pci&replace=a:b&search=x&tag=t&extra=k:v&version=latest&mip_opt_out=true&diarize=true"
        "&filler_words=false&no_delay=true&callback=http://example.com&never_heard_of=1"
    )


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("encoding=linear16", "encoding=linear16 needs a sample_rate"),
        ("encoding=mp3&sample_rate=16000", "encoding=mp3 is not valid; expected one of linear16"),
        ("encoding=linear16&encoding=mulaw&sample_rate=8000", "contradict each other"),
        (f"{RAW}&sample_rate=8000", "sample_rate=16000 and sample_rate=8000 contradict"),
        (
            "encoding=linear16&sample_rate=7999",
            "sample_rate=7999 is not valid; expected an integer from 8000",
        ),
        ("encoding=linear16&sample_rate=16e3", "sample_rate=16e3 is not valid"),
        ("encoding=linear16&sample_rate=-16000", "sample_rate=-16000 is not valid"),
        (f"{RAW}&channels=0", "channels=0 is not valid; expected an integer from 1 to 8"),
        (f"{RAW}&channels=2&multichannel=true", "multichannel=true is not supported"),
        ("multichannel=true", "multichannel=true is not supported"),
        (f"{RAW}&interim_results=maybe", "interim_results=maybe is not valid; expected true or false"),
        (f"{RAW}&interim_results=true&interim_results=false", "contradict each other"),
        (f"{RAW}&endpointing=soon", "endpointing=soon is not valid; expected milliseconds, or false"),
        (f"{RAW}&endpointing=-5", "endpointing=-5 is not valid"),
        (f"{RAW}&utterance_end_ms=1000", "utterance_end_ms=1000 needs interim_results=true"),
        (f"{RAW}&interim_results=true&utterance_end_ms=500", "utterance_end_ms=500 is not valid"),
        (f"{RAW}&language=xx", "language=xx is not valid; expected one of en, de, or multi"),
        (f"{RAW}&keyterm={'k' * 101}", "has 101 characters; expected at most 100"),
        (f"{RAW}&{'&'.join(f'keyterm=t{n}' for n in range(101))}", "101 keyterms are given; at most 100"),
    ],
)
def test_contradictions(query: str, said: str) -> None:
    """What cannot be is refused with what was given and what was expected."""
    with pytest.raises(BadRequest, match="(?s)") as caught:
        parse(query, languages=("en", "de"))
    assert said in str(caught.value)
    assert caught.value.code == "INVALID_QUERY_PARAMETER"


def test_a_long_value_is_cut_in_the_error() -> None:
    """An error does not repeat kilobytes."""
    with pytest.raises(BadRequest) as caught:
        parse(f"encoding={'x' * 5000}&sample_rate=8000")
    assert len(str(caught.value)) < 300
