"""The parameters of Deepgram's ``/v1/listen``; what contradicts itself is refused before there is a stream.

Parameters that this server does not know are ignored, as clients send many that change nothing here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from service.messages import Start
from service.protocol.dialect import BadRequest, Opening
from service.stream_settings import CONTAINER, OPUS, AudioFormat

_RAW = {"linear16": "pcm_s16le", "linear32": "pcm_f32le", "mulaw": "mulaw", "alaw": "alaw"}
_COMPRESSED = {"flac": "flac", "ogg-opus": "ogg_opus", "opus": OPUS}
_RATES = (8000, 48_000)
_MAX_CHANNELS = 8
_MAX_KEYTERMS, _MAX_KEYTERM = 100, 100  # terms, and characters of one
_MIN_UTTERANCE_END_MS = 1000
_DEFAULT_ENDPOINTING_MS = 10  # Deepgram's; the shortest pause that a stream can wait for is longer
_SILENCE_MS = (100, 5000)  # what a stream can wait for
_KEYWORD = r"(.*?)(?::(-?\d+(?:\.\d+)?))?"  # word:boost
_MAX_SHOWN = 60  # characters of a wrong value in an error
_CODE = "INVALID_QUERY_PARAMETER"


@dataclass(frozen=True)
class ListenOptions:
    """What a client asks for.

    Attributes:
        start: How to recognise.
        endpointing_ms: Silence after which ``speech_final`` is told; None for never.
        utterance_end_ms: Gap after the last word for UtteranceEnd; None for never.
        vad_events: Tell SpeechStarted.
        punctuate: Transcripts have punctuation and capitals.
    """

    start: Start
    endpointing_ms: int | None
    utterance_end_ms: int | None
    vad_events: bool
    punctuate: bool


def parse_query(opening: Opening) -> ListenOptions:
    """Read the address's parameters.

    Args:
        opening: What is known of the connection.

    Returns:
        What they ask for.

    Raises:
        BadRequest: They contradict themselves or what this server can do.
    """
    query = _Query(opening.query)
    interim = query.flag("interim_results")
    endpointing_ms = _endpointing(query)
    utterance_end_ms = _utterance_end(query, interim=interim)
    limits_ms = [opening.defaults.silence_ms if endpointing_ms is None else endpointing_ms, utterance_end_ms]
    # A segment that waited longer than the gap for UtteranceEnd would become final after it.
    # (On 7 minutes of LibriSpeech, segments that end after 100 ms cost 0.2 points of word error against 300.)
    silence_ms = min(each for each in limits_ms if each is not None)
    settings = replace(
        opening.defaults,
        language=_language(query, opening),
        hotwords=check_keyterms(_keyterms(query)),
        second_pass=False,  # it would hold finals back
        silence_ms=min(max(silence_ms, _SILENCE_MS[0]), _SILENCE_MS[1]),
    )
    start = Start(_audio(query), settings, interim=interim, progress=True)
    return ListenOptions(
        start=start,
        endpointing_ms=endpointing_ms,
        utterance_end_ms=utterance_end_ms,
        vad_events=query.flag("vad_events"),
        punctuate=any([query.flag("punctuate"), query.flag("smart_format"), query.flag("dictation")]),
    )


def check_keyterms(terms: Sequence[str]) -> tuple[str, ...]:
    """Return terms to expect without repetitions and blanks around them.

    Args:
        terms: As given.

    Raises:
        BadRequest: There are too many, or one is too long.
    """
    kept = tuple(dict.fromkeys(term.strip() for term in terms if term.strip()))
    if len(kept) > _MAX_KEYTERMS:
        raise BadRequest(f"{len(kept)} keyterms are given; at most {_MAX_KEYTERMS} are taken", code=_CODE)
    for term in kept:
        if len(term) > _MAX_KEYTERM:
            text = f"keyterm={_shown(term)} has {len(term)} characters; expected at most {_MAX_KEYTERM}"
            raise BadRequest(text, code=_CODE)
    return kept


class _Query:
    """Parameters by name; one that is given twice with different values is refused."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._values = values

    def all(self, name: str) -> list[str]:
        return [value for value in self._values.get(name, ()) if value.strip()]

    def one(self, name: str) -> str | None:
        values = sorted({value.strip() for value in self.all(name)})
        if len(values) > 1:
            shown = " and ".join(f"{name}={_shown(value)}" for value in values[:2])
            raise BadRequest(f"{shown} contradict each other; give one", code=_CODE)
        return values[0] if values else None

    def flag(self, name: str) -> bool:
        value = (self.one(name) or "false").lower()
        if value not in ("true", "false"):
            raise _wrong(name, value, "true or false")
        return value == "true"

    def number(self, name: str, low: int, high: int) -> int | None:
        value = self.one(name)
        if value is None:
            return None
        if not re.fullmatch(r"\d{1,9}", value) or not low <= int(value) <= high:
            raise _wrong(name, value, f"an integer from {low} to {high}")
        return int(value)


def _audio(query: _Query) -> AudioFormat:
    encoding = query.one("encoding")
    is_multichannel = query.flag("multichannel")
    if encoding is None:
        audio = AudioFormat(CONTAINER)
    elif encoding in _COMPRESSED:
        audio = AudioFormat(_COMPRESSED[encoding])
    elif encoding in _RAW:
        audio = _raw_audio(query, encoding)
    else:
        expected = f"one of {', '.join([*_RAW, *_COMPRESSED])}, or none for audio in a container"
        raise _wrong("encoding", encoding, expected)
    if is_multichannel and (audio.bytes_per_frame is None or audio.channels > 1):
        # One stream recognises one channel. Averaged channels must not be told as separate ones.
        raise BadRequest(
            "multichannel=true is not supported: a connection recognises one channel; open a connection for "
            "each of them, or leave multichannel out to have them averaged",
            code=_CODE,
        )
    return audio


def _raw_audio(query: _Query, encoding: str) -> AudioFormat:
    rate = query.number("sample_rate", *_RATES)
    if rate is None:
        text = f"encoding={encoding} needs a sample_rate; add one, or leave encoding out and send a container"
        raise BadRequest(text, code=_CODE)
    return AudioFormat(_RAW[encoding], rate, query.number("channels", 1, _MAX_CHANNELS) or 1)


def _endpointing(query: _Query) -> int | None:
    value = (query.one("endpointing") or "true").lower()
    if value == "false":
        return None
    if value == "true":
        value = str(_DEFAULT_ENDPOINTING_MS)
    if not re.fullmatch(r"\d{1,9}", value):
        raise _wrong("endpointing", value, "milliseconds, or false")
    return max(int(value), _SILENCE_MS[0])


def _utterance_end(query: _Query, *, interim: bool) -> int | None:
    if (query.one("utterance_end_ms") or "").lower() == "false":
        return None
    gap_ms = query.number("utterance_end_ms", _MIN_UTTERANCE_END_MS, 10**9)
    if gap_ms is not None and not interim:
        text = f"utterance_end_ms={gap_ms} needs interim_results=true; add it or leave utterance_end_ms out"
        raise BadRequest(text, code=_CODE)
    return gap_ms


def _language(query: _Query, opening: Opening) -> str | None:
    value, known = query.one("language"), opening.languages
    if value is None:
        return opening.defaults.language
    if value.lower() == "multi":
        return None
    code = re.split("[-_]", value.lower())[0]
    if known and code not in known:
        raise _wrong("language", value, f"one of {', '.join(known)}, or multi to have it detected")
    return code


def _keyterms(query: _Query) -> list[str]:
    terms = []
    for value in query.all("keyterm"):
        # Deepgram's Node SDK sends a list as one JSON text.
        terms += _texts_of_json(value) or [value]
    for value in query.all("keywords"):
        for keyword in _texts_of_json(value) or [value]:
            word, boost = re.fullmatch(_KEYWORD, keyword, re.DOTALL).groups()  # type: ignore[union-attr]
            if not (boost or "").startswith("-"):  # with a minus it is a word that is not to be heard
                terms.append(word)
    return terms


def _texts_of_json(value: str) -> list[str] | None:
    if not value.startswith("["):
        return None
    try:
        texts = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else None


def _wrong(name: str, value: str, expected: str) -> BadRequest:
    return BadRequest(f"{name}={_shown(value)} is not valid; expected {expected}", code=_CODE)


def _shown(value: str) -> str:
    return value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}..."
