"""Deepgram's live messages: what clients send, one model each, and what they are sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any, Literal
from uuid import NAMESPACE_URL, uuid5

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from asr.events import SAMPLE_RATE, Word
from service.protocol.plain import plain_text, plain_word

CHANNEL_INDEX = (0, 1)  # the first channel, of one
_MAX_ECHO = 1000  # characters of a wrong message that are sent back


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class KeepAlive(_Message):
    """The client is there, although it sends no audio."""

    type: Literal["KeepAlive"]


class Finalize(_Message):
    """Make everything sent so far final; the stream stays open."""

    type: Literal["Finalize"]


class CloseStream(_Message):
    """No more audio."""

    type: Literal["CloseStream"]


class Configure(_Message):
    """Change the terms to expect; of features this server has none to switch."""

    type: Literal["Configure"]
    keyterms: list[str] | None = None
    features: dict[str, bool] | None = None


_FIELDS = {"keyterms": "list of texts", "features": "object of truth values"}
ClientMessage = KeepAlive | Finalize | CloseStream | Configure
_CLIENT_MESSAGE: TypeAdapter[ClientMessage] = TypeAdapter(
    Annotated[ClientMessage, Field(discriminator="type")]
)


def parse_message(text: str) -> ClientMessage | str:
    """Read a text frame.

    Args:
        text: As received.

    Returns:
        The message, or why it is none.
    """
    try:
        return _CLIENT_MESSAGE.validate_json(text)
    except ValidationError as error:
        details = error.errors()[0]
        if details["type"] == "json_invalid":
            reason = "the text is no JSON"
        elif field := "".join(str(part) for part in details["loc"][1:2]):
            reason = f"{field} is no {_FIELDS[field]}"
        else:
            reason = "this is no message of a known type"
        return f"{reason}; expected a JSON object whose type is KeepAlive, Finalize, CloseStream or Configure"


@dataclass(frozen=True)
class Speech:
    """Recognised words of a stretch of audio, in 16 kHz samples."""

    text: str
    words: Sequence[Word]
    start: int
    end: int


@dataclass(frozen=True)
class Scribe:
    """Writes a connection's messages.

    Attributes:
        request_id: The connection's.
        model: The recogniser's name.
        arch: The decoder's.
        language: As the client asked for it.
        punctuate: Transcripts have punctuation and capitals.
    """

    request_id: str
    model: str
    arch: str
    language: str | None
    punctuate: bool

    def results(
        self,
        speech: Speech,
        *,
        is_final: bool,
        speech_final: bool = False,
        from_finalize: bool = False,
    ) -> str:
        """Tell what was recognised.

        Args:
            speech: Of the stretch from the last final one on.
            is_final: It will not change any more.
            speech_final: The speaker has paused.
            from_finalize: It answers a Finalize.
        """
        words = [self._word(word) for word in speech.words]
        start_s, end_s = _seconds(speech.start), _seconds(speech.end)
        alternative: dict[str, Any] = {
            "transcript": speech.text.strip() if self.punctuate else plain_text(speech.text),
            "confidence": confidence(speech.words),
            "words": words,
        }
        if self.language:
            alternative["languages"] = [self.language]
        return _json(
            {
                "type": "Results",
                "channel_index": list(CHANNEL_INDEX),
                "duration": round(end_s - start_s, 3),
                "start": start_s,
                "is_final": is_final,
                "speech_final": speech_final,
                "channel": {"alternatives": [alternative]},
                "metadata": {
                    "request_id": self.request_id,
                    "model_info": self._model_info,
                    "model_uuid": self._model_uuid,
                },
                "from_finalize": from_finalize,
            }
        )

    def speech_started(self, time: int) -> str:
        """Tell that somebody speaks.

        Args:
            time: Since when.
        """
        return _json({"type": "SpeechStarted", "channel": [0], "timestamp": _seconds(time)})

    def utterance_end(self, last_word_end: int) -> str:
        """Tell that no word has followed for a while.

        Args:
            last_word_end: Where the last one ended.
        """
        return _json(
            {
                "type": "UtteranceEnd",
                "channel": list(CHANNEL_INDEX),
                "last_word_end": _seconds(last_word_end),
            }
        )

    def metadata(self, *, sha256: str, created: str, duration_s: float) -> str:
        """Tell about the whole stream.

        Args:
            sha256: Of the audio as it was received.
            created: When the connection was opened, in ISO 8601.
            duration_s: Length of the audio.
        """
        return _json(
            {
                "type": "Metadata",
                "transaction_key": "deprecated",
                "request_id": self.request_id,
                "sha256": sha256,
                "created": created,
                "duration": round(duration_s, 3),
                "channels": 1,
                "models": [self._model_uuid],
                "model_info": {self._model_uuid: self._model_info},
            }
        )

    def configured(self, keyterms: Sequence[str] | None) -> str:
        """Tell that a Configure has been carried out.

        Args:
            keyterms: Those in effect now; None if they stayed as they were.
        """
        body: dict[str, Any] = {"type": "ConfigureSuccess", "request_id": self.request_id}
        return _json(body if keyterms is None else body | {"keyterms": list(keyterms)})

    def not_configured(self, code: str, description: str) -> str:
        """Tell that a Configure has changed nothing.

        Args:
            code: Deepgram's.
            description: Why.
        """
        body = {"type": "ConfigureFailure", "request_id": self.request_id}
        return _json(body | {"code": code, "description": description})

    def error(self, variant: str, description: str, *, message: str | None = None) -> str:
        """Tell that something was wrong.

        Args:
            variant: The kind of error.
            description: What, and what was expected.
            message: The client's message, if that was wrong.
        """
        shown = description if message is None else message[:_MAX_ECHO]
        return _json({"type": "Error", "variant": variant, "description": description, "message": shown})

    @property
    def _model_uuid(self) -> str:
        return str(uuid5(NAMESPACE_URL, f"foresound:{self.model}"))

    @property
    def _model_info(self) -> dict[str, str]:
        return {"name": self.model, "version": _version(), "arch": self.arch}

    def _word(self, word: Word) -> dict[str, Any]:
        body = {
            "word": plain_word(word.text),
            "start": _seconds(word.start),
            "end": _seconds(word.end),
            "confidence": round(word.confidence, 4),
        }
        return body | ({"punctuated_word": word.text} if self.punctuate else {})


def confidence(words: Sequence[Word]) -> float:
    """Return the mean confidence of words, 0 if there are none.

    Args:
        words: Recognised ones.
    """
    return round(sum(word.confidence for word in words) / len(words), 4) if words else 0.0


def _seconds(samples: int) -> float:
    return round(samples / SAMPLE_RATE, 3)


def _version() -> str:
    try:
        return metadata.version("foresound")
    except metadata.PackageNotFoundError:
        return "unknown"  # run from a source tree


def _json(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
