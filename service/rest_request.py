"""A request for a transcription: the fields of OpenAI's form, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from service.protocol.dialect import Opening
from service.protocol.languages import known_codes
from service.stream_settings import StreamSettings

RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
STREAMED_FORMATS = ("json", "text")
GRANULARITIES = ("word", "segment")
_CHUNK_MS = 700  # nobody waits for the single word; with right context as much as an encoder step sees
_PROMPT_CHARS = 1000
_MAX_KEYWORDS, _MAX_KEYWORD = 100, 100
_TRUE, _FALSE = ("true", "1"), ("false", "0", "")


class RequestError(Exception):
    """A request that cannot be carried out, in OpenAI's terms."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Say what is wrong and where."""
        super().__init__(message)
        self.headers = dict(headers or {})
        self.status = status
        self.code = code
        self.param = param


@dataclass(frozen=True)
class TranscriptionRequest:
    """What a client asks for.

    Attributes:
        settings: How to recognise.
        response_format: One of ``RESPONSE_FORMATS``.
        granularities: What verbose_json times.
        is_streamed: Tell the text while it is recognised.
        wants_logprobs: Tell log probabilities.
        language: Of the recording, if it is known.
    """

    settings: StreamSettings
    response_format: str = "json"
    granularities: tuple[str, ...] = ("segment",)
    is_streamed: bool = False
    wants_logprobs: bool = False
    language: str = ""


def parse_fields(fields: Mapping[str, Sequence[str]], opening: Opening) -> TranscriptionRequest:
    """Read the form's fields; unknown ones are ignored.

    Args:
        fields: All values by name, without brackets.
        opening: What the server has.

    Raises:
        RequestError: A value is wrong.
    """
    response_format = _one(fields, "response_format") or "json"
    if response_format not in RESPONSE_FORMATS:
        raise _invalid("response_format", response_format, RESPONSE_FORMATS)
    is_streamed = _flag(fields, "stream")
    if is_streamed and response_format not in STREAMED_FORMATS:
        message = (
            f"stream is true and response_format is '{response_format}'; streams are json, leave one out"
        )
        raise RequestError(message, code="unsupported_value", param="stream")
    granularities = tuple(fields.get("timestamp_granularities", ())) or ("segment",)
    for value in granularities:
        if value not in GRANULARITIES:
            raise _invalid("timestamp_granularities", value, GRANULARITIES)
    language = _language(fields, opening)
    settings = replace(
        opening.defaults.with_chunk_ms(_CHUNK_MS),
        language=language,
        prompt=_one(fields, "prompt")[-_PROMPT_CHARS:] or None,
        hotwords=_keywords(fields),
        second_pass=not is_streamed,  # what has been told is never taken back
    )
    only = opening.languages[0] if len(opening.languages) == 1 else ""
    return TranscriptionRequest(
        settings=settings,
        response_format=response_format,
        granularities=granularities,
        is_streamed=is_streamed,
        wants_logprobs="logprobs" in fields.get("include", ()),
        language=language or only,
    )


def _language(fields: Mapping[str, Sequence[str]], opening: Opening) -> str | None:
    given = [value for name in ("language", "languages") for value in fields.get(name, ()) if value.strip()]
    codes = known_codes(given, opening.languages)
    if given and not codes:
        raise _invalid("language", given[0], opening.languages)
    return codes.pop() if len(codes) == 1 else None


def _keywords(fields: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    keywords = tuple(value.strip() for value in fields.get("keywords", ()) if value.strip())
    if len(keywords) > _MAX_KEYWORDS or any(len(value) > _MAX_KEYWORD for value in keywords):
        message = f"keywords: expected at most {_MAX_KEYWORDS} of at most {_MAX_KEYWORD} characters each"
        raise RequestError(message, code="invalid_value", param="keywords")
    return keywords


def _one(fields: Mapping[str, Sequence[str]], name: str) -> str:
    return next(iter(fields.get(name, ())), "")


def _flag(fields: Mapping[str, Sequence[str]], name: str) -> bool:
    value = _one(fields, name).strip().lower()
    if value not in (*_TRUE, *_FALSE):
        raise _invalid(name, value, ("true", "false"))
    return value in _TRUE


def _invalid(param: str, value: str, supported: Sequence[str]) -> RequestError:
    expected = ", ".join(f"'{each}'" for each in supported)
    message = f"Invalid value: '{value[:60]}'. Supported values are: {expected}."
    return RequestError(message, code="invalid_value", param=param)
