"""The native protocol: JSON texts and binary audio from and to a session's messages and commands.

No sockets here: :func:`parse` and :func:`encode` are functions of what they are given, and
:class:`NativeDialect` calls them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from asr.chunking import MAX_CHUNK_MS
from asr.events import Final, Partial, SpeechEnded, SpeechStarted, event_to_dict
from service.messages import (
    Ack,
    Audio,
    Close,
    Command,
    Done,
    Error,
    Flush,
    Message,
    Ping,
    Pong,
    Problem,
    Ready,
    Start,
    Stop,
)
from service.outbox import Outgoing
from service.protocol.dialect import Dialect, Frame, Opening, Reply
from service.protocol.native_models import (
    LATENCY_MS,
    ClientMessage,
    EndpointingFields,
    FlushMessage,
    PingMessage,
    StartMessage,
    StopMessage,
)
from service.stream_settings import AudioFormat, Flushed, StreamSettings

_MODELS: dict[str, type[BaseModel]] = {
    "start": StartMessage,
    "flush": FlushMessage,
    "stop": StopMessage,
    "ping": PingMessage,
}
# Safer than the standard library's parser: bounded nesting, no lone surrogates, which could not be echoed.
_JSON: TypeAdapter[Any] = TypeAdapter(Any)
_CLIENT_MESSAGE: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)
_MAX_SHOWN = 60  # characters of a wrong value in an error


class NativeDialect(Dialect):
    """The native protocol on one connection."""

    is_resumable = True
    crash_code = 4500

    def __init__(self, defaults: StreamSettings) -> None:
        """Begin before start.

        Args:
            defaults: The server's settings for what a start message leaves out.
        """
        self._defaults = defaults
        self._words = True

    def receive(self, frame: Frame) -> Sequence[Command | Reply]:
        """See :func:`parse`.

        Args:
            frame: As received.
        """
        return (parse(frame, self._defaults),)

    def send(self, outgoing: Outgoing) -> Sequence[Frame]:
        """See :func:`encode`.

        Args:
            outgoing: As in :class:`~service.protocol.dialect.Dialect`.
        """
        if isinstance(outgoing.message, Ready):
            self._words = outgoing.message.start.words
        return (encode(outgoing, words=self._words),)

    def close(self, close: Close) -> tuple[Sequence[Frame], int, str]:
        """Close as the session says.

        Args:
            close: The session's wish.
        """
        return (), close.code, close.reason


def open_dialect(opening: Opening) -> NativeDialect:
    """Speak the native protocol; nothing in its address can be wrong.

    Args:
        opening: Of the connection.
    """
    return NativeDialect(opening.defaults)


def parse(frame: str | bytes, defaults: StreamSettings) -> Command:
    """Read a frame.

    Args:
        frame: Text or binary, as received.
        defaults: The server's settings for what a start message leaves out.

    Returns:
        A command, or what is wrong with the frame.
    """
    if isinstance(frame, bytes):
        return Audio(frame)
    try:
        value = _JSON.validate_json(frame)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        return Problem("invalid_json", f"{reason}; expected a JSON object, audio goes into binary frames")
    if not isinstance(value, dict):
        return Problem(
            "not_an_object", 'the text frame is no JSON object; expected one like {"type": "stop"}'
        )
    try:
        message = _CLIENT_MESSAGE.validate_python(value)
    except ValidationError as error:
        details = error.errors()[0]
        return _problem(details["type"], details["loc"], value)
    match message:
        case StartMessage():
            return _start(message, defaults)
        case FlushMessage():
            return Flush()
        case StopMessage():
            return Stop()
        case PingMessage():
            return Ping(message.id)


def encode(outgoing: Outgoing, *, words: bool) -> str:
    """Write a message as a text frame.

    Args:
        outgoing: Any message but Close.
        words: Tell words with their times.

    Returns:
        JSON.
    """
    body = _body(outgoing.message, words=words)
    if outgoing.seq:
        body["seq"] = outgoing.seq
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def _start(message: StartMessage, defaults: StreamSettings) -> Command:
    decoder, latency = message.decoder or defaults.decoder, message.latency
    looks_ahead = decoder == "transducer"
    if message.chunk_ms is not None and latency is not None and not looks_ahead:
        text = f"chunk_ms and latency are both given and mean the same for {decoder}; leave one out"
        return Problem("invalid_field", text, field="latency")
    if isinstance(latency, float) and not looks_ahead:
        names = ", ".join(LATENCY_MS)
        text = f"latency is {_shown(latency)}; expected one of {names}, a number is for the transducer"
        return Problem("invalid_field", text, field="latency")
    chunk_ms = message.chunk_ms or (LATENCY_MS[latency] if isinstance(latency, str) else defaults.chunk_ms)
    right_context_ms = message.right_context_ms
    if right_context_ms is not None and chunk_ms + right_context_ms > MAX_CHUNK_MS:
        longest = MAX_CHUNK_MS - chunk_ms
        text = f"right_context_ms is {right_context_ms}; with chunks of {chunk_ms} ms at most {longest}"
        return Problem("invalid_field", text, field="right_context_ms")
    if right_context_ms is None and decoder == defaults.decoder:
        right_context_ms = defaults.with_chunk_ms(chunk_ms).right_context_ms
    return Start(
        audio=AudioFormat(
            encoding=message.encoding.replace("-", "_"),
            sample_rate=message.sample_rate,
            channels=message.channels,
        ),
        settings=StreamSettings(
            decoder=decoder,
            latency=(defaults.latency if latency is None else latency) if looks_ahead else None,
            chunk_ms=chunk_ms,
            right_context_ms=right_context_ms,
            beam_size=message.beam_size,
            language=message.language,
            prompt=message.prompt,
            second_pass=message.second_pass,
            silence_ms=message.endpointing.silence_ms,
            max_segment_s=message.endpointing.max_segment_s,
            hotwords=tuple(message.hotwords),
        ),
        interim=message.interim,
        words=message.words,
        resume_token=message.resume_token,
        last_seq=message.last_seq,
    )


def _problem(kind: str, location: tuple[int | str, ...], value: dict[str, Any]) -> Problem:
    """Return what is wrong in terms of the client's message."""
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        shown = _shown(value["type"]) if "type" in value else "missing"
        return Problem("unknown_type", f"type is {shown}; expected one of {', '.join(_MODELS)}")
    # The location begins with the message's type and may end with the branches of a union.
    names: list[str] = []
    expected = ""
    model: type[BaseModel] | None = _MODELS[str(location[0])]
    given: Any = value
    for part in location[1:]:
        if model and part in model.model_fields:
            info = model.model_fields[str(part)]
            expected = info.description or ""
            model = EndpointingFields if info.annotation is EndpointingFields else None
        elif not isinstance(part, int):
            break
        names.append(str(part))
        given = given[part]
    field = ".".join(names)
    return Problem("invalid_field", f"{field} is {_shown(given)}; expected {expected}", field=field)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _body(message: Message, *, words: bool) -> dict[str, Any]:
    match message:
        case Partial() | Final():
            body = event_to_dict(message)
            if not words:
                del body["words"]
            return body
        case SpeechStarted() | SpeechEnded():
            return event_to_dict(message)
        case Ready():
            return _ready(message)
        case Flushed():
            return {"type": "flushed", "samples": message.samples}
        case Ack():
            return {"type": "ack", "samples": message.n_samples, "bytes": message.n_bytes}
        case Pong():
            return {"type": "pong", "id": message.id}
        case Error():
            body = {
                "type": "error",
                "code": message.code,
                "message": message.message,
                "fatal": message.fatal,
            }
            return body | ({"field": message.field} if message.field else {})
        case Done():
            return {
                "type": "done",
                "audio_s": round(message.audio_s, 3),
                "rtf": round(message.rtf, 3),
                "reason": message.reason,
            }
    raise AssertionError(f"{type(message).__name__} is no message of this protocol")


def _ready(ready: Ready) -> dict[str, Any]:
    start, limits = ready.start, ready.limits
    audio, settings = start.audio, start.settings
    return {
        "type": "ready",
        "session": ready.session,
        "resume_token": ready.resume_token,
        "resumed": ready.resumed,
        "samples": ready.n_samples,
        "bytes": ready.n_bytes,
        "model": ready.model,
        "settings": {
            "sample_rate": audio.sample_rate,
            "encoding": audio.encoding,
            "channels": audio.channels,
            "decoder": settings.decoder,
            "latency": settings.latency,
            "language": settings.language,
            "chunk_ms": settings.chunk_ms,
            "right_context_ms": settings.right_context_ms,
            "beam_size": settings.beam_size,
            "interim": start.interim,
            "words": start.words,
            "second_pass": settings.second_pass,
            "endpointing": {
                "silence_ms": settings.silence_ms,
                "max_segment_s": settings.max_segment_s,
            },
            "prompt": settings.prompt,
            "hotwords": list(settings.hotwords),
        },
        "limits": {
            "message_bytes": limits.message_bytes,
            "queue_s": limits.queue_s,
            "idle_s": limits.idle_s,
            "session_s": limits.session_s,
            "resume_s": limits.resume_s,
        },
    }
