"""What a client asks of a session and what a session tells its client, in no wire format.

A protocol adapter turns received frames into commands and messages into frames. Of the messages, recognition
events, ``Flushed`` and, where the start asks for it, ``Progress`` come from the batcher as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from asr.events import Event
from service.config import Limits
from service.stream_settings import AudioFormat, Flushed, Progress, StreamSettings

# Commands


@dataclass(frozen=True)
class Start:
    """Open a stream, or go on with an earlier session.

    Attributes:
        audio: What the client is going to send.
        settings: How it is to be recognised.
        interim: Tell partials.
        words: Tell words with their times.
        progress: Tell how far the audio has been recognised.
        resume_token: Of the session to go on with; all of the above is ignored then.
        last_seq: The newest message the client has of that session.
    """

    audio: AudioFormat = field(default_factory=AudioFormat)
    settings: StreamSettings = field(default_factory=StreamSettings)
    interim: bool = True
    words: bool = True
    progress: bool = False
    resume_token: str | None = None
    last_seq: int = 0


@dataclass(frozen=True)
class Audio:
    """Some more audio; compressed audio may be cut anywhere."""

    data: bytes


@dataclass(frozen=True)
class Flush:
    """Make everything sent so far final; the stream stays open."""


@dataclass(frozen=True)
class Stop:
    """No more audio; recognise the rest and end."""


@dataclass(frozen=True)
class Ping:
    """Answer with the same id."""

    id: str | int | None = None


@dataclass(frozen=True)
class Problem:
    """A frame that is no command; ``field`` is the wrong one if there is one. Fatal: the session ends."""

    code: str
    message: str
    field: str | None = None
    fatal: bool = False


@dataclass(frozen=True)
class Restart:
    """Recognise what came so far as it was asked for, then go on with other settings; at first like Start."""

    start: Start


@dataclass(frozen=True)
class Note:
    """What a protocol leaves for itself: it comes back as a message, in its place among the others."""

    content: object


Command = Start | Restart | Audio | Flush | Stop | Ping | Problem | Note
Frame = str | bytes


@dataclass(frozen=True)
class Reply:
    """What a protocol answers by itself; sent in its place among the session's messages.

    Attributes:
        frames: As they are to be sent.
        error: The code of the error that they tell, which counts as one; empty if they tell none.
    """

    frames: tuple[Frame, ...]
    error: str = ""


# Messages


@dataclass(frozen=True)
class Ready:
    """The stream is open, or open again; the client goes on with its audio after ``n_bytes``."""

    session: str
    resume_token: str
    resumed: bool
    n_samples: int
    n_bytes: int
    model: str
    start: Start
    limits: Limits


@dataclass(frozen=True)
class Ack:
    """Received so far, in the client's rate and encoding; samples of compressed audio count as 0."""

    n_samples: int
    n_bytes: int


@dataclass(frozen=True)
class Pong:
    """The answer to a ping."""

    id: str | int | None


@dataclass(frozen=True)
class Error:
    """What was wrong, what was expected and what to do; after a fatal error the connection is closed."""

    code: str
    message: str
    fatal: bool = False
    field: str | None = None


@dataclass(frozen=True)
class Done:
    """Everything is recognised; ``reason`` is stop, drain, idle or session_limit."""

    audio_s: float
    rtf: float
    reason: str


@dataclass(frozen=True)
class Close:
    """The last thing on a connection: close it."""

    code: int
    reason: str = ""


Message = Event | Ready | Ack | Progress | Pong | Error | Flushed | Done | Reply | Note | Close
