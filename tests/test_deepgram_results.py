"""Deepgram's results and pauses, as the stream's events cause them; the answers to Finalize."""

from __future__ import annotations

import json

import pytest

from asr.events import Final, Partial, SpeechEnded, SpeechStarted, Word
from service.protocol import deepgram_messages
from service.stream_settings import Flushed, Progress
from tests.deepgram_talk import (
    audio,
    connect,
    final,
    kinds,
    parsed,
    quiet,
    samples,
    transcript,
    words,
)


@pytest.fixture(autouse=True)
def _version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepgram_messages, "_version", lambda: "1.2.3")


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
