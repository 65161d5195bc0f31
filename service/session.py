"""A client's session, a pure state machine: commands and the batcher's outputs in, messages and actions out.

It knows no wire format, no socket and no clock. Messages go to its outbox, actions are the caller's to do::

            Start            opened             Stop, or a limit          Finished, Failed
    WAITING ────> Open ────> STREAMING ────> Finish, FINISHING ────> ENDED: the outbox holds the farewell
       │                       └── Restart ──> Reopen, RESTARTING ── Finished ──> WAITING for the next Open
       └──────> Resume ────> the session of that token goes on, this one is dropped
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import Enum

from asr.errors import AudioError, OptionError
from asr.events import Event, Final, Partial
from service.codes import FATAL_ERRORS
from service.config import Limits
from service.messages import (
    Ack,
    Audio,
    Close,
    Command,
    Done,
    Error,
    Flush,
    Note,
    Ping,
    Pong,
    Problem,
    Ready,
    Reply,
    Restart,
    Start,
    Stop,
)
from service.outbox import Outbox
from service.splice import Splice
from service.stream_settings import Failed, Finished, Flushed, OnChannel, Output, Progress
from service.unfinished import UnfinishedSegments

MAX_ERRORS = 50  # recoverable ones, on one connection
_ACK_S = 1.0
_DONE_REASONS = {
    "stop": "stop",
    "shutting_down": "drain",
    "idle_timeout": "idle",
    "session_limit": "session_limit",
}


class State(Enum):
    """Where a session stands."""

    WAITING = "waiting"
    STREAMING = "streaming"
    RESTARTING = "restarting"
    FINISHING = "finishing"
    ENDED = "ended"


@dataclass(frozen=True)
class Open:
    """Open a stream as the session's start asks, then call ``opened`` or ``refused``."""


@dataclass(frozen=True)
class Reopen:
    """Finish the stream; once the session is waiting again, open another one as for :class:`Open`."""


@dataclass(frozen=True)
class Resume:
    """Go on with the session of a token."""

    token: str
    last_seq: int


@dataclass(frozen=True)
class Feed:
    """Feed audio to the stream."""

    data: bytes


@dataclass(frozen=True)
class Finish:
    """Finish the stream."""


Action = Open | Reopen | Resume | Feed | Flush | Finish


@dataclass(frozen=True)
class _Ending:
    """Why a stream is being finished: "stop" or a fatal error's code, and the error to tell if it is one."""

    cause: str
    error: Error | None = None


class Session:
    """A conversation with one client, over one connection after another.

    Attributes:
        id: Names the session in logs.
        resume_token: Lets its client come back.
        state: Where it stands.
        outcome: Why it ended: ``stop`` or a fatal error's code; empty before.
        outbox: What its client is to be told.
        start: What its client asked for.
        n_bytes: Audio received, in bytes.
        audio_s: Audio received, in seconds; of compressed audio known at the end only.
    """

    def __init__(self, *, id: str, resume_token: str, model: str, limits: Limits) -> None:
        """Wait for a start.

        Args:
            id: A short name for logs.
            resume_token: Not to be guessed.
            model: The model's name, for the client.
            limits: The server's, for the client.
        """
        self.id = id
        self.resume_token = resume_token
        self.state = State.WAITING
        self.outcome = ""
        self.outbox = Outbox()
        self.start = Start()
        self.n_bytes = 0
        self.audio_s = 0.0
        self._model = model
        self._limits = limits
        self._ending: _Ending | None = None
        self._unfinished: defaultdict[int, UnfinishedSegments] = defaultdict(UnfinishedSegments)  # by channel
        self._splice = Splice()
        self._next: Start | None = None  # of the stream that is to follow
        self._bytes_before = 0  # received for the streams before
        self._n_errors = 0
        self._n_flushes = 0  # not answered yet
        self._acked_bytes = 0
        self._acked_at = 0.0

    @property
    def n_samples(self) -> int:
        """Samples received of each channel, in the client's rate; 0 for compressed audio."""
        size = self.start.audio.bytes_per_frame
        return self.n_bytes // size if size else 0

    @property
    def n_waiting(self) -> int:
        """Messages that wait for the client to read, and flushes that wait for their answer."""
        return len(self.outbox) + self._n_flushes

    def receive(self, command: Command | Reply, *, now: float) -> Action | None:
        """Take what the client sent.

        Args:
            command: A command, what was wrong with a frame, or what its protocol answers.
            now: Seconds on any clock that only goes forward.

        Returns:
            What is to be done.
        """
        if self.state is State.ENDED:
            return None
        match command:
            case Problem(fatal=True):
                return self.expire(command.code, command.message)
            case Problem():
                return self._complain(command)
            case Note():
                self.outbox.put(command)
                return None
            case Reply():
                self.outbox.put(command)
                return self._count_error() if command.error else None
            case Ping():
                self.outbox.put(Pong(command.id))
                return None
            case Start():
                return self._begin(command)
            case Restart(start) if self.state is State.WAITING:
                return self._begin(start)
            case Audio(data=b""):
                return None
        if self.state is State.WAITING:
            return self._complain(Problem("not_started", "nothing is started; send a start message first"))
        if self._ending is not None:
            # A second stop comes from a client that has resumed; and nobody can know of a limit beforehand.
            if isinstance(command, Stop) or self._ending.cause != "stop":
                return None
            message = "the stream is stopped and takes no more; open a new connection"
            return self._complain(Problem("stopping", message))
        if isinstance(command, Stop):
            return self._finish(_Ending("stop"))
        if isinstance(command, Audio):
            return self._hear(command.data, now)
        if isinstance(command, Restart):
            self._next, self.state = command.start, State.RESTARTING
            return Reopen()
        self._n_flushes += 1
        return command

    def opened(self, *, now: float) -> None:
        """Go on after :class:`Open`: the stream is open.

        Args:
            now: As in :meth:`receive`.
        """
        assert self.state is State.WAITING
        self.state = State.STREAMING
        self._acked_at = now
        self.outbox.put(self._ready(resumed=False))

    def refused(self, error: OptionError) -> None:
        """Go on after :class:`Open`: a value does not suit the model, and the client may start again.

        Args:
            error: Its text begins with the option's name.
        """
        message = str(error)
        self._complain(Problem("invalid_field", message, field=message.split(maxsplit=1)[0]))

    def deliver(self, output: Output) -> None:
        """Take what the stream gave.

        Args:
            output: The next one, in order.
        """
        if self.state is State.ENDED:
            return
        if isinstance(output, Finished) and self._next and self._ending is None:
            self._splice.next_stream(output)
            self.start, self._next, self.state = self._next, None, State.WAITING
            self.audio_s, self._bytes_before = self._splice.audio_s, self.n_bytes
            return
        match output := self._splice.place(output):
            case Flushed():
                self._n_flushes -= 1
                self.outbox.put(output)
            case Finished():
                self._finished(output)
            case Failed(error=AudioError() as error):
                self.fail("bad_audio", str(error))
            case Failed():
                self.fail("model_error", "the recogniser failed; start again on a new connection")
            case message:
                self._tell(message)

    def expire(self, code: str, message: str) -> Action | None:
        """End in order because of a limit: what was said becomes final first.

        Args:
            code: ``idle_timeout``, ``session_limit``, ``too_many_errors`` or ``shutting_down``.
            message: For the client.

        Returns:
            What is to be done.
        """
        if self.state is State.ENDED:
            return None
        error = Error(code, message, fatal=True)
        if self.state is State.WAITING:
            self._end(code, error)
            return None
        # A drained stream is complete up to where it was cut, as its done message says: that is no error.
        return self._finish(_Ending(code, None if code == "shutting_down" else error))

    def fail(self, code: str, message: str) -> None:
        """End at once because the stream is gone: what was committed becomes final.

        Args:
            code: A fatal error's.
            message: For the client.
        """
        if self.state is State.ENDED:
            return
        for channel, unfinished in self._unfinished.items():
            for final in unfinished.committed():
                self.outbox.put(OnChannel(channel, final) if self.start.audio.is_split else final)
        self._end(code, Error(code, message, fatal=True))

    def abandon(self) -> None:
        """End at once and tell nobody: the client did not come back."""
        if self.state is not State.ENDED:
            self.state = State.ENDED
            self.outcome = "lost"

    def resume(self, *, last_seq: int, now: float) -> Problem | None:
        """Go on over a new connection.

        Args:
            last_seq: The newest numbered message that the client has.
            now: As in :meth:`receive`.

        Returns:
            What is wrong; nothing has changed then.
        """
        oldest, newest = self.outbox.oldest_seq - 1, self.outbox.last_seq
        if not oldest <= last_seq <= newest:
            message = f"last_seq is {last_seq}; this session goes on from {oldest} to {newest}"
            return Problem("invalid_field", message, field="last_seq")
        self._n_errors = 0
        self._acked_at, self._acked_bytes = now, self.n_bytes
        self.outbox.restart(self._ready(resumed=True), last_seq=last_seq)
        return None

    def _tell(self, message: Event | Progress | OnChannel) -> None:
        channel, event = (message.channel, message.event) if isinstance(message, OnChannel) else (0, message)
        if isinstance(event, Partial):
            self._unfinished[channel].show(event)
        elif isinstance(event, Final):
            self._unfinished[channel].close(event)
        wanted = {Partial: self.start.interim, Progress: self.start.progress}
        if wanted.get(type(event), True):
            self.outbox.put(message)

    def _begin(self, start: Start) -> Action | None:
        if self.state is not State.WAITING:
            message = "the stream is open already; open a new connection for another one"
            return self._complain(Problem("already_started", message))
        if start.resume_token is not None:
            return Resume(start.resume_token, start.last_seq)
        self.start = start
        return Open()

    def _hear(self, data: bytes, now: float) -> Action | None:
        audio = self.start.audio
        if audio.bytes_per_frame and len(data) % audio.bytes_per_frame:
            message = (
                f"the frame has {len(data)} bytes; expected a multiple of {audio.bytes_per_frame} "
                f"({audio.encoding}, channels {audio.channels}); the frame is dropped"
            )
            return self._complain(Problem("odd_length", message))
        self.n_bytes += len(data)
        n_new = self.n_bytes - self._acked_bytes
        is_second_heard = False
        if audio.bytes_per_frame:
            self.audio_s = self._splice.audio_s + (self.n_bytes - self._bytes_before) / audio.bytes_per_s
            is_second_heard = n_new >= audio.bytes_per_s * _ACK_S
        if is_second_heard or now - self._acked_at >= _ACK_S:
            self._acked_at, self._acked_bytes = now, self.n_bytes
            self.outbox.put(Ack(self.n_samples, self.n_bytes))
        return Feed(data)

    def _complain(self, problem: Problem) -> Action | None:
        self.outbox.put(Error(problem.code, problem.message, field=problem.field))
        return self._count_error()

    def _count_error(self) -> Action | None:
        self._n_errors += 1
        if self._n_errors <= MAX_ERRORS:
            return None
        return self.expire("too_many_errors", f"more than {MAX_ERRORS} errors; correct the client")

    def _finish(self, ending: _Ending) -> Action | None:
        before, self.state = self.state, State.FINISHING
        if before is not State.FINISHING or ending.cause == "too_many_errors":
            self._ending = ending
        return Finish() if before is State.STREAMING else None  # RESTARTING: it is finishing already

    def _finished(self, output: Finished) -> None:
        ending = self._ending
        assert ending is not None, "the stream has finished without being asked to"
        self.audio_s = output.audio_s
        rtf = output.busy_s / output.audio_s if output.audio_s else 0.0
        reason = _DONE_REASONS.get(ending.cause)
        done = Done(output.audio_s, rtf, reason) if reason else None
        self._end(ending.cause, ending.error, done)

    def _end(self, cause: str, *last: Error | Done | None) -> None:
        self.state = State.ENDED
        self.outcome = cause
        self.outbox.end(
            *(message for message in last if message), Close(FATAL_ERRORS.get(cause, 1000), cause)
        )

    def _ready(self, *, resumed: bool) -> Ready:
        return Ready(
            session=self.id,
            resume_token=self.resume_token,
            resumed=resumed,
            n_samples=self.n_samples,
            n_bytes=self.n_bytes,
            model=self._model,
            start=self.start,
            limits=self._limits,
        )
