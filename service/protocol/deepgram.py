"""Deepgram's live protocol, version 1: ``/v1/listen``.

Segments of the session are Deepgram's final results. An interim result holds everything since the last final
one, so that the finals' stretches of audio follow one another and those of interim results begin where a
final one will.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from uuid import uuid4

from asr.events import Final, Partial, SpeechEnded, SpeechStarted
from service.config import Limits
from service.messages import (
    Audio,
    Close,
    Command,
    Done,
    Error,
    Flush,
    Ready,
    Restart,
    Stop,
)
from service.outbox import Outgoing
from service.protocol.deepgram_messages import (
    CloseStream,
    Configure,
    Finalize,
    KeepAlive,
    Scribe,
    Speech,
    parse_message,
)
from service.protocol.deepgram_pauses import Pauses
from service.protocol.deepgram_query import ListenOptions, check_keyterms, parse_query
from service.protocol.dialect import BadRequest, Dialect, Frame, Opening, Patience, Reply
from service.protocol.whole_frames import WholeFrames
from service.stream_settings import Flushed, Progress

# By the session's reason: close code and reason. The texts with a number are Deepgram's.
_ENDINGS = {
    "stop": (1000, ""),
    "bad_audio": (1008, "DATA-0000 the audio cannot be decoded"),
    "model_error": (1011, "NET-0000 the server failed"),
    "idle_timeout": (1011, "NET-0001 no audio and no message came in time"),
    "session_limit": (1008, "the session has lasted too long"),
    "too_many_errors": (1008, "too many errors"),
    "shutting_down": (1001, "the server shuts down"),
}
_VARIANTS = {"bad_audio": "DATA-0000", "model_error": "NET-0000", "idle_timeout": "NET-0001"}
_IDLE_S = 10.0  # Deepgram's; its clients send KeepAlive every few seconds


class DeepgramDialect(Dialect):
    """Deepgram's protocol on one connection."""

    is_resumable = False
    crash_code = 1011

    def __init__(self, options: ListenOptions, scribe: Scribe, *, created: str) -> None:
        """Begin after the handshake.

        Args:
            options: What the address asks for.
            scribe: Writes messages.
            created: When the connection was opened, in ISO 8601.
        """
        self._options = options
        self._start = options.start
        self._scribe = scribe
        self._created = created
        self._frames = WholeFrames(options.start.audio.bytes_per_frame)
        self._sha256 = hashlib.sha256()
        self._is_closing = False
        self._pauses = Pauses(
            silence_ms=options.start.settings.silence_ms,
            endpointing_ms=options.endpointing_ms,
            utterance_end_ms=options.utterance_end_ms,
        )
        self._covered = 0  # samples up to which results are final
        self._n_finalizing = 0  # Finalize messages without an answer
        self._held: tuple[Speech, bool] | None = None  # a final result that may turn out to be an answer

    def patience(self, limits: Limits) -> Patience:
        """Wait as long as Deepgram does, but no longer than this server.

        Args:
            limits: The server's.
        """
        return Patience(limits.start_s, min(limits.idle_s, _IDLE_S))

    def opened(self, session_id: str) -> Sequence[Frame]:
        """Let the request's id begin with the session's, by which the server's log names it.

        Args:
            session_id: Eight hexadecimal digits.
        """
        rest = self._scribe.request_id[len(session_id) :]
        self._scribe = replace(self._scribe, request_id=session_id + rest)
        return ()

    def start_commands(self) -> Sequence[Command | Reply]:
        """Start as the address asks."""
        return (self._start,)

    def receive(self, frame: Frame) -> Sequence[Command | Reply]:
        """Understand audio or a control message.

        Args:
            frame: As received.
        """
        if self._is_closing:
            return ()
        if isinstance(frame, bytes):
            return self._hear(frame) if frame else self._close_stream()
        match parse_message(frame):
            case KeepAlive():
                return ()
            case Finalize():
                self._n_finalizing += 1
                return (Flush(),)
            case CloseStream():
                return self._close_stream()
            case Configure() as message:
                return self._configure(message)
            case str() as problem:
                return (Reply((self._scribe.error("SchemaError", problem, message=frame),), "schema"),)

    def send(self, outgoing: Outgoing) -> Sequence[Frame]:
        """Tell a message.

        Args:
            outgoing: As in :class:`~service.protocol.dialect.Dialect`.
        """
        match outgoing.message:
            case Partial() as partial:
                return [*self._release(), *self._interim(partial)]
            case Final() as final:
                return [*self._release(), *self._final(final)]
            case SpeechStarted(time):
                self._pauses.speech_started()
                told = [self._scribe.speech_started(time)] if self._options.vad_events else []
                return [*self._release(), *told]
            case SpeechEnded(time):
                self._pauses.speech_ended(time)
                return self._release()
            case Flushed():
                return self._finalized()
            case Progress(time):
                return [*self._release(), *self._pause(time)]
            case Error(code=code, message=text):
                return [*self._release(), self._scribe.error(_VARIANTS.get(code, code), text)]
            case Done() as done:
                return [*self._release(), self._metadata(done)]
            case Ready() as ready:
                self._scribe = replace(self._scribe, model=ready.model)
        return ()

    def close(self, close: Close) -> tuple[Sequence[Frame], int, str]:
        """Close with Deepgram's code.

        Args:
            close: The session's wish.
        """
        code, reason = _ENDINGS.get(close.reason, (1011, close.reason))
        return self._release(), code, reason

    # From the client

    def _hear(self, data: bytes) -> Sequence[Command]:
        self._sha256.update(data)
        return (Audio(self._frames.add(data)),)

    def _close_stream(self) -> Sequence[Command]:
        self._is_closing = True
        return (Stop(),)

    def _configure(self, message: Configure) -> Sequence[Command | Reply]:
        if message.keyterms is None:
            return (Reply((self._scribe.configured(None),)),)
        if self._start.audio.bytes_per_frame is None:
            return self._refuse(
                "CONFIGURE_KEYTERMS_NOT_SUPPORTED",
                "keyterms of compressed audio cannot be changed; give them in the address",
            )
        try:
            terms = check_keyterms(message.keyterms)
        except BadRequest as error:
            return self._refuse("CONFIGURE_KEYTERM_LIMIT_EXCEEDED", str(error))
        self._start = replace(self._start, settings=replace(self._start.settings, hotwords=terms))
        return Restart(self._start), Reply((self._scribe.configured(terms),))

    def _refuse(self, code: str, description: str) -> Sequence[Reply]:
        return (Reply((self._scribe.not_configured(code, description),), code),)

    # To the client

    def _interim(self, partial: Partial) -> Sequence[Frame]:
        self._pauses.words_shown(partial.words)
        speech = Speech(partial.text, partial.words, self._covered, max(partial.time, self._covered))
        return [self._scribe.results(speech, is_final=False)]

    def _final(self, final: Final) -> Sequence[Frame]:
        is_endpoint, ended_before = self._pauses.segment_closed(final)
        speech = Speech(final.text, final.words, self._covered, max(final.end, self._covered))
        self._covered = speech.end
        before = [] if ended_before is None else [self._scribe.utterance_end(ended_before)]
        if self._n_finalizing:
            # Whether Finalize made it final is known once the next message is: Flushed or anything else.
            self._held = speech, is_endpoint
            return before
        return [*before, self._scribe.results(speech, is_final=True, speech_final=is_endpoint)]

    def _finalized(self) -> Sequence[Frame]:
        self._n_finalizing -= 1
        return self._release(from_finalize=True) or [
            self._scribe.results(self._nothing, is_final=True, from_finalize=True)
        ]

    def _release(self, *, from_finalize: bool = False) -> Sequence[Frame]:
        if self._held is None:
            return []
        (speech, is_endpoint), self._held = self._held, None
        return [
            self._scribe.results(speech, is_final=True, speech_final=is_endpoint, from_finalize=from_finalize)
        ]

    def _pause(self, time: int) -> Sequence[Frame]:
        is_endpoint, last_word_end = self._pauses.heard(time)
        frames = []
        if is_endpoint:
            frames.append(self._scribe.results(self._nothing, is_final=True, speech_final=True))
        if last_word_end is not None:
            frames.append(self._scribe.utterance_end(last_word_end))
        return frames

    @property
    def _nothing(self) -> Speech:
        return Speech("", (), self._covered, self._covered)

    def _metadata(self, done: Done) -> Frame:
        return self._scribe.metadata(
            sha256=self._sha256.hexdigest(), created=self._created, duration_s=done.audio_s
        )


def open_dialect(opening: Opening) -> DeepgramDialect:
    """Speak Deepgram's protocol.

    Args:
        opening: Of the connection.

    Returns:
        The connection's dialect.

    Raises:
        BadRequest: The address contradicts itself.
    """
    options = parse_query(opening)
    settings = options.start.settings
    scribe = Scribe(
        request_id=str(uuid4()),
        model=opening.model,
        arch=settings.decoder,
        language=settings.language,
        punctuate=options.punctuate,
    )
    created = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return DeepgramDialect(options, scribe, created=created)
