"""What clients of vosk-server say in texts, and what they are replied."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from asr.events import Final
from service.protocol.plain import plain_text, plain_word

_RATES = (8000, 48_000)
_MAX_PHRASES, _MAX_PHRASE = 100, 100  # phrases, and characters of one
_UNKNOWN = "[unk]"  # in a phrase list it stands for all other words
_JSON: TypeAdapter[Any] = TypeAdapter(Any)


@dataclass(frozen=True)
class Config:
    """What a client has configured; the defaults are vosk-server's.

    Attributes:
        sample_rate: In Hz.
        words: Tell words with their times in results.
        max_alternatives: 0 is the plain form of results; else they hold a list, here of one alternative.
        phrases: To expect.
    """

    sample_rate: int = 8000
    words: bool = True
    max_alternatives: int = 0
    phrases: tuple[str, ...] = ()


class VoskError(Exception):
    """A configuration that cannot be; its text says what was given and what was expected."""


def parse_text(text: str, config: Config) -> Config | Literal["reset", "eof"] | VoskError | None:
    """Read a text frame.

    Args:
        text: As received.
        config: What is configured so far.

    Returns:
        The new configuration or why it cannot be, what to do, or None for anything else.
    """
    try:
        value = _JSON.validate_json(text)
    except ValidationError:
        value = None
    if not isinstance(value, dict):
        return VoskError(f"the configuration is no JSON object: {text[:40]}") if "config" in text else None
    if "config" in value:
        try:
            return _configure(config, value["config"])
        except VoskError as error:
            return error
    if value.get("eof"):
        return "eof"
    return "reset" if value.get("reset") else None


def partial_reply(text: str) -> str:
    """Tell what the running segment says so far.

    Args:
        text: As recognised.
    """
    return _dumps({"partial": plain_text(text)})


def result_reply(finals: Sequence[Final], config: Config) -> str:
    """Tell finished segments in one result.

    Args:
        finals: In order; none is a result without text.
        config: How to tell them.
    """
    heard = [word for final in finals for word in final.words]
    body: dict[str, Any] = {"text": " ".join(plain_text(final.text) for final in finals)}
    if config.words and heard:
        result = [
            {
                "conf": round(word.confidence, 4),
                "end": round(word.end_s, 3),
                "start": round(word.start_s, 3),
                "word": plain_word(word.text),
            }
            for word in heard
        ]
        body = {"result": result, **body}
    if not config.max_alternatives:
        return _dumps(body)
    # As vosk has it, nothing said is certain.
    confidence = sum(word.confidence for word in heard) / len(heard) if heard else 1.0
    return _dumps({"alternatives": [{"confidence": round(confidence, 4), **body}]})


def _configure(config: Config, values: object) -> Config:
    if not isinstance(values, dict):
        raise VoskError("config is no object")
    if "sample_rate" in values:
        config = replace(config, sample_rate=_rate(values["sample_rate"]))
    if "words" in values:
        config = replace(config, words=bool(values["words"]))
    if "max_alternatives" in values:
        number = _number("max_alternatives", values["max_alternatives"], "an integer of at least 0")
        config = replace(config, max_alternatives=max(0, int(number)))
    if "phrase_list" in values:
        config = replace(config, phrases=_phrases(values["phrase_list"]))
    return config


def _rate(value: object) -> int:
    expected = f"a number from {_RATES[0]} to {_RATES[1]}"
    rate = round(_number("sample_rate", value, expected))
    if not _RATES[0] <= rate <= _RATES[1]:
        raise VoskError(f"sample_rate is {rate}; expected {expected}")
    return rate


def _number(name: str, value: object, expected: str) -> float:
    # Clients write 16000, 16000.0 and "16000".
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise VoskError(f"{name} is {_dumps(value)[:40]}; expected {expected}")
    return number


def _phrases(values: object) -> tuple[str, ...]:
    """Phrases to expect: no more than a stream takes, as a grammar may list thousands of them."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise VoskError("phrase_list is no list of texts")
    phrases = (value.strip() for value in values if value.strip() != _UNKNOWN)
    kept = dict.fromkeys(phrase for phrase in phrases if 0 < len(phrase) <= _MAX_PHRASE)
    return tuple(kept)[:_MAX_PHRASES]


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
