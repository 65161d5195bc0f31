"""A client of Deepgram's dialect without sockets, and speech to deliver to it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from asr.events import SAMPLE_RATE, Final, Word
from service.protocol.deepgram import DeepgramDialect
from service.protocol.deepgram_messages import Scribe
from service.protocol.deepgram_query import parse_query
from service.protocol.dialect import Opening
from tests.dialogue import Dialogue
from tests.fake_batcher import QUIET

RAW = {"encoding": ["linear16"], "sample_rate": ["16000"]}
INTERIM = {**RAW, "interim_results": ["true"]}


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
