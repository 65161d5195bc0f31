"""The native protocol as a client speaks it: the ``start`` message out, typed messages in. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asr.events import SAMPLE_RATE, Event, Final, Partial, SpeechEnded, SpeechStarted, Word
from clients.errors import ServerError


@dataclass(frozen=True)
class Ready:
    """The server's answer to ``start``.

    Attributes:
        session: Names the stream in the server's log.
        resume_token: Opens the stream again after its connection was lost; a secret.
        resumed: This is the stream of an earlier connection.
        n_samples: Received so far, in the client's own rate.
        n_bytes: The same in the client's own encoding.
        model: The recogniser's name.
        settings: Every value of ``start`` as it is in effect.
        limits: message_bytes, queue_s, idle_s, session_s, resume_s.
    """

    session: str
    resume_token: str
    resumed: bool
    n_samples: int
    n_bytes: int
    model: str
    settings: Mapping[str, Any]
    limits: Mapping[str, Any]


@dataclass(frozen=True)
class Acknowledged:
    """What the server has received so far, in the client's own rate and encoding."""

    n_samples: int
    n_bytes: int


@dataclass(frozen=True)
class Flushed:
    """Everything sent before a flush is final; ``n_samples`` is the server's count."""

    n_samples: int


@dataclass(frozen=True)
class Done:
    """The stream is over.

    Attributes:
        audio_s: Seconds of audio heard.
        real_time_factor: The server's computing time for it, per second of audio.
        reason: ``stop`` where the client ended it.
    """

    audio_s: float
    real_time_factor: float
    reason: str


Message = Event | Ready | Acknowledged | Flushed | Done | ServerError


def start_message(
    *,
    sample_rate: int,
    encoding: str,
    channels: int,
    interim: bool,
    words: bool,
    second_pass: bool,
    hotwords: Sequence[str],
    silence_ms: int | None,
    max_segment_s: float | None,
    **optional: Any,
) -> dict[str, Any]:
    """Return ``start`` with what is not None, so that the server's defaults stand for the rest.

    Args:
        sample_rate: In Hz.
        encoding: Of the binary frames.
        channels: Interleaved.
        interim: Partials are wanted.
        words: Events carry words.
        second_pass: Finals are decoded once more.
        hotwords: Words to expect.
        silence_ms: Pause that ends a segment.
        max_segment_s: Longest segment.
        optional: decoder, language, chunk_ms, right_context_ms, latency, beam_size and prompt.
    """
    endpointing = {"silence_ms": silence_ms, "max_segment_s": max_segment_s}
    optional["endpointing"] = {k: v for k, v in endpointing.items() if v is not None} or None
    optional["hotwords"] = list(hotwords) or None
    return {
        "type": "start",
        "sample_rate": sample_rate,
        "encoding": encoding,
        "channels": channels,
        "interim": interim,
        "words": words,
        "second_pass": second_pass,
    } | {name: value for name, value in optional.items() if value is not None}


def moved(event: Event, samples: int, segments: int) -> Event:
    """Return an event of a stream that begins inside of another, as that one's.

    Args:
        event: Of the inner stream.
        samples: Before it in the outer one, at 16 kHz.
        segments: Before it in the outer one.
    """
    time = event.time + samples
    if isinstance(event, SpeechStarted | SpeechEnded):
        return replace(event, time=time)
    words = tuple(replace(word, start=word.start + samples, end=word.end + samples) for word in event.words)
    event = replace(event, segment=event.segment + segments, words=words, time=time)
    if isinstance(event, Final):
        return replace(event, start=event.start + samples, end=event.end + samples)
    return event


def parse(frame: str | bytes) -> tuple[int, Message | None]:
    """Read a frame from the server.

    Args:
        frame: As it was received.

    Returns:
        Its sequence number, 0 where it has none, and the message, None for types that are not known.

    Raises:
        ServerError: It is not what the protocol says.
    """
    try:
        fields = json.loads(frame)
        return int(fields.get("seq", 0)), _message(fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ServerError(
            f"the server does not speak foresound's protocol (it sent {frame[:80]!r}); check its address",
            code="bad_message",
        ) from error


def _message(fields: dict[str, Any]) -> Message | None:
    match fields["type"]:
        case "partial" | "final" | "speech_started" | "speech_ended":
            return _event(fields)
        case "ready":
            return Ready(
                session=str(fields["session"]),
                resume_token=str(fields["resume_token"]),
                resumed=bool(fields["resumed"]),
                n_samples=int(fields["samples"]),
                n_bytes=int(fields["bytes"]),
                model=str(fields["model"]),
                settings=fields["settings"],
                limits=fields["limits"],
            )
        case "ack":
            return Acknowledged(n_samples=int(fields["samples"]), n_bytes=int(fields["bytes"]))
        case "flushed":
            return Flushed(n_samples=int(fields["samples"]))
        case "done":
            return Done(float(fields["audio_s"]), float(fields["rtf"]), str(fields["reason"]))
        case "error":
            return ServerError(
                str(fields["message"]),
                code=str(fields["code"]),
                fatal=bool(fields["fatal"]),
                field=fields.get("field"),
            )
    return None


def _samples(time_s: float) -> int:
    return round(time_s * SAMPLE_RATE)


def _event(fields: dict[str, Any]) -> Event:
    """Undo :func:`asr.events.event_to_dict`."""
    time = _samples(fields["time"])
    if fields["type"] == "speech_started":
        return SpeechStarted(time)
    if fields["type"] == "speech_ended":
        return SpeechEnded(time)
    words = tuple(
        Word(
            text=str(word["text"]),
            start=_samples(word["start"]),
            end=_samples(word["end"]),
            confidence=float(word["confidence"]),
            stable=bool(word["stable"]),
        )
        for word in fields.get("words", ())
    )
    segment = int(fields["segment"])
    if fields["type"] == "partial":
        return Partial(segment, str(fields["committed"]), str(fields["draft"]), words, time)
    return Final(
        segment=segment,
        text=str(fields["text"]),
        words=words,
        start=_samples(fields["start"]),
        end=_samples(fields["end"]),
        second_pass=bool(fields["second_pass"]),
        time=time,
    )
