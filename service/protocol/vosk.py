"""The protocol of vosk-server: a port of its own, lockstep.

Each message but a configuration gets exactly one reply, in order; clients wait for it before the next one.
A reply to audio tells what it says: it waits until as much of it is recognised as can be before more comes,
so a client that reads a file goes as fast as the recogniser and not faster.

Replies are written when a session's message is told, never when a frame is received: a Ping that goes with
each frame comes back as the Pong by which everything before it has been told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from asr.events import SAMPLE_RATE, Final, Partial
from service.config import Limits
from service.messages import Audio, Close, Command, Done, Error, Flush, Ping, Pong, Problem, Start, Stop
from service.outbox import Outgoing
from service.protocol.dialect import Dialect, Frame, Opening, Patience, Reply
from service.protocol.vosk_messages import Config, VoskError, parse_text, partial_reply, result_reply
from service.protocol.whole_frames import WholeFrames
from service.stream_settings import AudioFormat, Flushed, Progress

# How much the recogniser waits for, until it says so itself: a window's first chunk is twice the others.
_FIRST_CHUNKS, _FIRST_SLACK_S = 2, 0.5
_RESAMPLER_S = 0.2  # more than a resampler holds back
_BYTES_PER_SAMPLE = 2
_MAX_REASON = 120  # bytes of a close frame's reason
_CODES = {"stop": 1000, "shutting_down": 1001, "model_error": 1011}
_POLICY = 1008  # for every other end that the client could have avoided


_Kind = Literal["audio", "reset", "eof"]


@dataclass(frozen=True)
class _Question:
    """A message that has no reply yet; ``position`` is the audio before its end, in 16 kHz samples."""

    kind: _Kind
    position: int


class VoskDialect(Dialect):
    """The protocol of vosk-server on one connection."""

    is_resumable = False
    crash_code = 1011

    def __init__(self, opening: Opening) -> None:
        """Begin before the configuration.

        Args:
            opening: Of the connection.
        """
        self._settings = replace(opening.defaults, second_pass=False)
        self._config = Config()
        self._frames = WholeFrames(_BYTES_PER_SAMPLE)
        self._rate = 0  # of the stream; 0 before it has started
        self._is_refused = self._is_ending = False
        self._n_samples = 0  # received, in that rate
        self._heard = 0  # recognised, in 16 kHz samples
        self._questions: deque[_Question] = deque()
        self._finals: list[Final] = []  # that no reply has told
        self._partial = ""
        self._farewell = ""
        first_s = _FIRST_CHUNKS * self._settings.chunk_ms / 1000 + _FIRST_SLACK_S
        self._n_due = int(first_s * SAMPLE_RATE)  # samples that the recogniser waits for

    def patience(self, limits: Limits) -> Patience:
        """Wait for the first audio as long as for any other.

        Args:
            limits: The server's.
        """
        return Patience(limits.idle_s, limits.idle_s)

    def receive(self, frame: Frame) -> Sequence[Command | Reply]:
        """Understand a configuration, audio, reset or eof; anything else is asked for the partial text.

        Args:
            frame: As received.
        """
        if self._is_ending:
            return ()
        if self._is_refused:
            return self._give_up(self._farewell)
        if isinstance(frame, bytes):
            data = self._frames.add(frame)
            self._n_samples += len(data) // _BYTES_PER_SAMPLE
            return self._ask("audio", Audio(data))
        message = parse_text(frame, self._config)
        match message:
            case Config():
                self._config = message
                return ()
            case VoskError():
                return self._give_up(str(message))
            case "reset":
                return self._ask("reset", Flush())
            case "eof":
                self._is_ending = True
                return self._ask("eof", Stop())
            case _:
                return self._ask("audio")

    def send(self, outgoing: Outgoing) -> Sequence[Frame]:
        """Take a message, and reply to what it answers.

        Args:
            outgoing: As in :class:`~service.protocol.dialect.Dialect`.
        """
        match outgoing.message:
            case Partial() as partial:
                self._partial = partial.text
            case Final() as final:
                self._finals.append(final)
                self._partial = ""
            case Progress(time, n_due):
                self._heard, self._n_due = time, n_due
                if self._rate != SAMPLE_RATE:
                    self._n_due += int(_RESAMPLER_S * SAMPLE_RATE)
                return self._answer()
            case Pong():
                return self._answer()
            case Flushed():
                return self._answer("reset")
            case Done():
                return self._answer("eof")
            case Error() as error:
                # A refused stream recognises nothing, but its client waits for replies.
                self._farewell = self._farewell or error.message
                self._is_refused = not error.fatal
        return ()

    def close(self, close: Close) -> tuple[Sequence[Frame], int, str]:
        """Close; why, if it is no ordinary end, stands in the reason.

        Args:
            close: The session's wish.
        """
        reason = self._farewell.encode()[:_MAX_REASON].decode(errors="ignore")
        return (
            (),
            _CODES.get(close.reason, _POLICY),
            reason or ("" if close.reason == "stop" else close.reason),
        )

    def _ask(self, kind: _Kind, *commands: Command) -> Sequence[Command]:
        """Have the commands carried out and answered."""
        start = () if self._rate else (self._start(),)
        self._questions.append(_Question(kind, self._n_samples * SAMPLE_RATE // self._rate))
        return *start, *commands, Ping()

    def _start(self) -> Start:
        self._rate = self._config.sample_rate
        settings = replace(self._settings, hotwords=self._config.phrases)
        return Start(AudioFormat("pcm_s16le", self._rate), settings, progress=True)

    def _give_up(self, reason: str) -> Sequence[Command]:
        self._is_ending = True
        return (Problem("bad_config", reason, fatal=True),)

    def _answer(self, until: _Kind = "audio") -> Sequence[Frame]:
        """Answer what can be: audio that is recognised, and everything up to the next reset or to eof."""
        replies: list[Frame] = []
        kinds = [question.kind for question in self._questions]
        n_due = len(kinds) if until == "eof" else 1 + kinds.index("reset") if until == "reset" else 0
        while self._questions and (n_due > len(replies) or self._is_recognised(self._questions[0])):
            replies.append(self._reply(self._questions.popleft()))
        return replies

    def _is_recognised(self, question: _Question) -> bool:
        is_heard = question.position - self._heard < self._n_due
        return self._is_refused or (question.kind == "audio" and is_heard)

    def _reply(self, question: _Question) -> Frame:
        is_last = question.kind != "audio"
        told = [final for final in self._finals if is_last or final.time <= question.position]
        self._finals = self._finals[len(told) :]
        if told or is_last:
            return result_reply(told, self._config)
        # A client that does not wait for replies may ask about audio before a segment's end.
        return partial_reply(self._finals[0].text if self._finals else self._partial)


def open_dialect(opening: Opening) -> VoskDialect:
    """Speak vosk-server's protocol; nothing in its address can be wrong.

    Args:
        opening: Of the connection.
    """
    return VoskDialect(opening)
