"""The OpenAI Realtime protocol for transcription, ``/v1/realtime?intent=transcription``: GA and beta dialect.

Client events become commands of a session, its messages become server events; docs/compatibility.md lists
what is supported. No sockets and no model here.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from asr.events import Final, Partial, SpeechEnded, SpeechStarted
from service.config import Limits
from service.messages import (
    Audio,
    Close,
    Command,
    Done,
    Error,
    Flush,
    Frame,
    Note,
    Reply,
    Restart,
    Start,
)
from service.outbox import Outgoing
from service.protocol.dialect import BadRequest, Dialect, Opening, Patience
from service.protocol.openai_realtime_items import Conversation, Event
from service.protocol.openai_realtime_settings import (
    ProtocolError,
    Settings,
    invalid_type,
    invalid_value,
    missing,
)
from service.stream_settings import Flushed, Progress

MAX_APPEND_BYTES = 15 << 20  # of audio in one event, before base64
MAX_MESSAGE_BYTES = MAX_APPEND_BYTES // 3 * 4 + (1 << 20)
BETA_SUBPROTOCOL = "openai-beta.realtime-v1"
SUPPORTED_EVENTS = (
    "session.update",
    "transcription_session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
)
_PIECE_S = 1  # of a long append, that is fed at once
_CLOSE_CODES = {"too_many_errors": 1008, "model_error": 1011, "bad_audio": 1008}  # others: 1001, come back
_JSON: TypeAdapter[Any] = TypeAdapter(Any)  # bounded nesting, no lone surrogates


@dataclass(frozen=True)
class _Commit:
    """A note: the client has committed so many seconds."""

    seconds: float


@dataclass(frozen=True)
class _Turns:
    """A note: turns end after a silence, or, where that is None, with a commit."""

    silence_ms: int | None


_CLEAR = "clear"  # a note: the client has cleared what it has not committed


def open_dialect(opening: Opening) -> OpenAIRealtimeDialect:
    """Speak the protocol.

    Args:
        opening: Of the connection.

    Raises:
        BadRequest: The address asks for something else than transcription.
    """
    for intent in opening.query.get("intent", ()):
        if intent != "transcription":
            message = f"intent is '{intent}'; this server transcribes: use intent=transcription"
            raise BadRequest(message, code="invalid_intent")
    return OpenAIRealtimeDialect(opening)


class OpenAIRealtimeDialect(Dialect):
    """One connection."""

    def __init__(
        self,
        opening: Opening,
        *,
        token: Callable[[], str] = lambda: secrets.token_hex(12),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin after the handshake.

        Args:
            opening: Of the connection.
            token: Makes the unique part of names.
            clock: Seconds since 1970.
        """
        self._token = token
        self._settings = Settings.default(opening)
        self._expires_at = int(clock() + opening.limits.session_s)
        self._session_id = ""
        self._items = Conversation(lambda: f"item_{token()}")
        self._items.is_beta = opening.headers.get("openai-beta") == "realtime=v1" or (
            BETA_SUBPROTOCOL in opening.headers.get("sec-websocket-protocol", "")
        )
        self._running: Start | None = None  # as asked for; None before the first audio
        self._is_manual = self._settings.is_manual  # in the stream asked for
        self._rest = b""  # half a sample
        self._seconds = 0.0  # of audio since the last commit

    def patience(self, limits: Limits) -> Patience:
        """A client may be silent as long as a session lasts: the protocol knows no keepalive of its own.

        Args:
            limits: The server's.
        """
        return Patience(limits.session_s, limits.session_s)

    def opened(self, session_id: str) -> Sequence[Frame]:
        """Greet the client, which waits for it.

        Args:
            session_id: In the server's log.
        """
        self._session_id = f"sess_{session_id}"
        return self._frames([{"type": "session.created", "session": self._session()}])

    def receive(self, frame: Frame) -> Sequence[Command | Reply]:
        """Understand an event.

        Args:
            frame: JSON.
        """
        event: Mapping[str, Any] = {}
        try:
            event = _parsed(frame)
            match _kind(event):
                case "input_audio_buffer.append":
                    return self._append(event)
                case "input_audio_buffer.commit":
                    return self._commit()
                case "input_audio_buffer.clear":
                    return self._clear()
                case "session.update" | "transcription_session.update" as kind:
                    return self._update(event, kind)
                case other:
                    raise invalid_value(other, SUPPORTED_EVENTS, "type")
        except ProtocolError as error:
            event_id = event.get("event_id")
            cause = event_id if isinstance(event_id, str) else None
            body = _error(error.code, str(error), param=error.param, event_id=cause)
            return [Reply(self._frames([body]), error=error.code)]

    def send(self, outgoing: Outgoing) -> Sequence[Frame]:
        """Tell a message.

        Args:
            outgoing: Of the session.
        """
        return self._frames(self._events(outgoing))

    def close(self, close: Close) -> tuple[Sequence[Frame], int, str]:
        """Close so that the SDKs reconnect where that helps.

        Args:
            close: The session's wish.
        """
        return (), 1000 if close.reason == "stop" else _CLOSE_CODES.get(close.reason, 1001), close.reason

    # What the client does

    def _append(self, event: Mapping[str, Any]) -> list[Command | Reply]:
        audio = self._settings.audio
        data = self._rest + _audio(event)
        size = audio.bytes_per_frame or 1
        n_whole = len(data) // size * size
        data, self._rest = data[:n_whole], data[n_whole:]
        if not data:
            return []
        bytes_per_s = audio.sample_rate * size
        self._seconds += len(data) / bytes_per_s
        pieces = [Audio(data[at : at + bytes_per_s]) for at in range(0, len(data), bytes_per_s)]
        return [*([] if self._running else self._start()), *pieces]

    def _commit(self) -> list[Command | Reply]:
        if not self._seconds:
            message = "Error committing input audio buffer: the buffer is empty. Append audio first."
            raise ProtocolError("input_audio_buffer_commit_empty", message)
        seconds, self._seconds, self._rest = self._seconds, 0.0, b""
        return [Note(_Commit(seconds)), Flush()]

    def _clear(self) -> list[Command | Reply]:
        is_empty, self._seconds, self._rest = not self._seconds, 0.0, b""
        if is_empty:
            return [Reply(self._frames([{"type": "input_audio_buffer.cleared"}]))]
        return [Note(_CLEAR), Flush()]

    def _update(self, event: Mapping[str, Any], kind: str) -> list[Command | Reply]:
        if "session" not in event:
            raise missing("session")
        if not isinstance(event["session"], dict):
            raise invalid_type(event["session"], "an object", "session")
        before = self._settings
        self._settings = before.updated(event["session"])
        self._items.logprobs = self._settings.wants_logprobs
        if kind == "transcription_session.update":
            self._items.is_beta = True
        if self._settings.audio != before.audio:
            self._rest = b""
        reply = Reply(self._frames([{"type": f"{kind}d", "session": self._session()}]))
        return [*(self._start() if self._running else []), reply]

    def _start(self) -> list[Command | Reply]:
        """Make the recogniser work as the settings say; nothing where it does."""
        wanted, is_manual = self._settings.start, self._settings.is_manual
        if self._running == wanted and self._is_manual == is_manual:
            return []
        command = Restart(wanted) if self._running else wanted
        self._running, self._is_manual = wanted, is_manual
        return [command, Note(_Turns(None if is_manual else wanted.settings.silence_ms))]

    # What the session tells

    def _events(self, outgoing: Outgoing) -> list[Event]:
        match outgoing.message:
            case Note(_Turns(silence_ms)):
                return self._items.detect_turns(silence_ms=silence_ms)
            case Note(_Commit(seconds)):
                return self._items.commit(seconds)
            case Note():
                return self._items.clear()
            case Partial() as partial:
                return self._items.partial(partial)
            case Final() as final:
                return self._items.final(final)
            case SpeechStarted(time=at):
                return self._items.speech_started(at)
            case SpeechEnded(time=at):
                return self._items.speech_ended(at)
            case Progress(time=at):
                return self._items.heard(at)
            case Flushed():
                return self._items.flushed()
            case Done():
                return self._items.over()
            case Error() as error:
                return self._problem(error)
        return []

    def _problem(self, error: Error) -> list[Event]:
        match error.code:
            case "invalid_field":  # the recogniser has refused the settings; the next audio tries again
                self._running = None
                param = {"language": "session.audio.input.transcription.language"}.get(error.field or "")
                return [_error("invalid_value", error.message, param=param)]
            case "not_started":  # a consequence of the above, for audio or for a commit
                return self._items.fail("The session's settings were refused.")
            case "shutting_down":
                return []  # the close code says it
            case "model_error":
                body = _error("server_error", error.message, kind="server_error")
                return [*self._items.fail(error.message), body]
            case "session_limit" | "idle_timeout":
                return [_error("session_expired", "Your session hit the maximum duration.")]
        return [_error(error.code, error.message)]

    def _session(self) -> dict[str, Any]:
        body = self._settings.as_beta() if self._items.is_beta else self._settings.as_ga()
        own = {"id": self._session_id, "object": "realtime.transcription_session"}
        return own | body | {"expires_at": self._expires_at}

    def _frames(self, events: Sequence[Event]) -> tuple[Frame, ...]:
        return tuple(
            json.dumps(
                {"event_id": f"event_{self._token()}", **event}, ensure_ascii=False, separators=(",", ":")
            )
            for event in events
        )


def _parsed(frame: Frame) -> dict[str, Any]:
    """The event of a frame."""
    try:
        event = _JSON.validate_json(frame)
    except ValidationError as error:
        message = f"The event is not valid JSON: {error.errors()[0]['msg']}."
        raise ProtocolError("invalid_json", message) from error
    if not isinstance(event, dict):
        raise ProtocolError("invalid_json", "The event is not a JSON object.")
    return event


def _kind(event: Mapping[str, Any]) -> str:
    """The event's type."""
    if "type" not in event:
        raise missing("type")
    if not isinstance(event["type"], str):
        raise invalid_type(event["type"], "a string", "type")
    return event["type"]


def _audio(event: Mapping[str, Any]) -> bytes:
    """The bytes of an append."""
    if "audio" not in event:
        raise missing("audio")
    text = event["audio"]
    if not isinstance(text, str):
        raise invalid_type(text, "a string", "audio")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        message = "Invalid 'audio'. Expected base64-encoded audio bytes but got an invalid value."
        raise ProtocolError("invalid_value", message, "audio") from error
    if len(data) > MAX_APPEND_BYTES:
        message = f"Invalid 'audio': too long. Expected at most 15 MiB of audio, but got {len(data)} bytes."
        raise ProtocolError("string_above_max_length", message, "audio")
    return data


def _error(
    code: str,
    message: str,
    *,
    param: str | None = None,
    event_id: str | None = None,
    kind: str = "invalid_request_error",
) -> Event:
    details = {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}
    return {"type": "error", "error": details}
