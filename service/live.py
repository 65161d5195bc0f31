"""A session at work: carries out what its state machine asks on a slot, and wakes its connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from asr.errors import AudioError, OptionError
from service.channels import open_stream
from service.config import Limits
from service.messages import Command, Flush, Reply
from service.metrics import Metrics
from service.registry import Place
from service.session import Action, Feed, Finish, Open, Reopen, Resume, Session, State
from service.stream_settings import AudioFormat, Failed, Output, StreamSettings
from service.word_latency import WordLatency

# Messages and flushes that may wait before the server stops reading from the client that causes them.
MAX_WAITING = 200
_FINISH_S = 60.0  # to recognise what is queued once a session has lasted too long
_LOW = 0.5  # reading goes on below this part of a mark

_log = logging.getLogger(__name__)


class SlotLike(Protocol):
    """One stream of the batcher."""

    @property
    def queued_s(self) -> float:
        """Audio fed and not yet recognised, in seconds."""

    def feed(self, data: bytes) -> None:
        """Take audio, without blocking."""

    def flush(self) -> None:
        """Make everything final, then deliver ``Flushed``."""

    def finish(self) -> None:
        """Make everything final, then deliver ``Finished``."""

    def close(self) -> None:
        """Give the stream up."""


class BatcherLike(Protocol):
    """What the service needs of a batcher."""

    @property
    def n_slots(self) -> int:
        """Streams at a time."""

    @property
    def n_lanes(self) -> int:
        """Ticks that may run at a time."""

    @property
    def n_used(self) -> int:
        """Streams now."""

    @property
    def tick_age_s(self) -> float:
        """Seconds since the running tick began; 0 while none runs."""

    @property
    def cpu_s(self) -> float:
        """Processor time of the model so far."""

    @property
    def memory_bytes(self) -> int:
        """Memory that it holds."""

    async def open(
        self, audio: AudioFormat, settings: StreamSettings, deliver: Callable[[Sequence[Output]], None]
    ) -> SlotLike:
        """Open a stream; OptionError for what the model refuses."""


class LiveSession:
    """A session with its slot and its place on the server.

    Attributes:
        session: The state machine.
        key: Whose it is; nobody else can resume it.
        changed: Set whenever there may be something to send, or room to read on.
        place: On the server; None before the first stream is open.
    """

    def __init__(self, session: Session, *, key: str, limits: Limits, metrics: Metrics) -> None:
        """Begin with a session that waits for its start.

        Args:
            session: The state machine.
            key: Whose it is.
            limits: The server's.
            metrics: The server's.
        """
        self.session = session
        self.key = key
        self.changed = asyncio.Event()
        self._limits = limits
        self._metrics = metrics
        self.place: Place | None = None
        self._slot: SlotLike | None = None
        self._cleanup = contextlib.ExitStack()
        self._give_up: Callable[[], None] | None = None
        self._is_congested = False
        self._counted_s = 0.0  # audio that the metrics know of
        self._begun_at = 0.0
        self._latency = WordLatency(metrics.word_latency_s.observe)

    @property
    def queued_s(self) -> float:
        """Audio received and not yet recognised, in seconds."""
        return self._slot.queued_s if self._slot else 0.0

    @property
    def is_congested(self) -> bool:
        """Whether to stop reading from the client: above a high mark it is, until below the low one."""
        part = _LOW if self._is_congested else 1.0
        self._is_congested = (
            self.queued_s > part * self._limits.queue_s or self.session.n_waiting > part * MAX_WAITING
        )
        return self._is_congested

    def describe(self) -> dict[str, Any]:
        """What an operator may know: nothing that was said, nothing that lets anybody in."""
        session, now = self.session, _loop().time()
        return {
            "session": session.id,
            "key": self.key,
            "state": session.state.value,
            "connected": self.is_attached,
            "age_s": round(now - self._begun_at, 1),
            "audio_s": round(session.audio_s, 1),
            "queued_s": round(self.queued_s, 2),
            "unread_messages": session.n_waiting,
            "encoding": session.start.audio.encoding,
            "sample_rate": session.start.audio.sample_rate,
            "streams": self.place.n_streams if self.place else 0,
            "decoder": session.start.settings.decoder,
            "chunk_ms": session.start.settings.chunk_ms,
        }

    @property
    def is_attached(self) -> bool:
        """Whether a connection has the session."""
        return self._give_up is not None

    def attach(self, give_up: Callable[[], None]) -> None:
        """Hand the session to a connection; the one that has it now gives it up.

        Args:
            give_up: Called when yet another connection takes the session.
        """
        previous, self._give_up = self._give_up, give_up
        if previous:
            previous()

    def detach(self) -> None:
        """Go on without a connection."""
        self._give_up = None

    async def open(self, batcher: BatcherLike, place: Place) -> bool:
        """Open the stream that the session's start asks for.

        Args:
            batcher: Where.
            place: The session's from now on, if that works.

        Returns:
            Whether it is open.
        """
        start = self.session.start
        try:
            slot = await open_stream(batcher, start.audio, start.settings, self._deliver)
        except OptionError as error:
            self.refuse(error)
            return False
        # Meanwhile the server may have begun to shut down, or the client may have left, its place with it.
        if self.session.state is State.ENDED or not place.is_held:
            slot.close()
            return False
        self._slot = slot
        self.session.opened(now=_loop().time())
        if self.place is None:
            self._begin(place)
        self.changed.set()
        return True

    def _begin(self, place: Place) -> None:
        """Keep the place, and watch how long the session lasts."""
        self.place, start = place, self.session.start
        self._begun_at = _loop().time()
        self._cleanup.callback(place.release)
        self._cleanup.callback(_loop().call_later(self._limits.session_s, self._expire_session).cancel)
        self._metrics.sessions_started.inc()
        _log.info(
            "session %s started: %s, %d Hz, %d ms chunks",
            self.session.id,
            start.audio.encoding,
            start.audio.sample_rate,
            start.settings.chunk_ms,
            extra={"session": self.session.id, "key": self.key},
        )

    def refuse(self, error: OptionError) -> None:
        """Tell the client why its start is refused; it may start again.

        Args:
            error: Its text begins with the option's name.
        """
        self.session.refused(error)
        self.changed.set()

    def receive(self, command: Command | Reply) -> Open | Reopen | Resume | None:
        """Take what the client sent.

        Args:
            command: As its frame was understood, or what its protocol answers.

        Returns:
            What only the connection can do.
        """
        action = self.session.receive(command, now=_loop().time())
        if isinstance(action, Open | Resume):
            return action
        self._act(action)
        return action if isinstance(action, Reopen) else None

    def expire(self, code: str, message: str) -> None:
        """End in order because of a limit; see :meth:`service.session.Session.expire`.

        Args:
            code: A fatal error's.
            message: For the client.
        """
        self._act(self.session.expire(code, message))

    def fail(self, code: str, message: str) -> None:
        """End at once; see :meth:`service.session.Session.fail`.

        Args:
            code: A fatal error's.
            message: For the client.
        """
        self._close_slot()
        self.session.fail(code, message)
        self._settle()

    def crash(self) -> None:
        """End at once because of the exception being handled, which is logged."""
        _log.exception("session %s crashed", self.session.id, extra={"session": self.session.id})
        self._metrics.crashes.inc()
        self.fail("model_error", "the server failed; start again on a new connection")

    def abandon(self) -> None:
        """End at once without telling anybody."""
        self._close_slot()
        self.session.abandon()
        self._settle()

    def _deliver(self, outputs: Sequence[Output]) -> None:
        try:
            for output in outputs:
                self._log_fault(output)
                self.session.deliver(output)
                self._latency.told(output, now=_loop().time())
        except Exception:  # a fault of ours must not reach the batcher, which serves others
            self.crash()
        self._settle()

    def _log_fault(self, output: Output) -> None:
        if isinstance(output, Failed) and not isinstance(output.error, AudioError):
            session = self.session
            told = {"session": session.id, "key": self.key}
            _log.error("session %s: its stream failed", session.id, exc_info=output.error, extra=told)

    def _act(self, action: Action | None) -> None:
        slot = self._slot
        match action:
            case Feed(data) if slot:
                slot.feed(data)
                self._latency.heard(self.session.audio_s, now=_loop().time())
            case Flush() if slot:
                slot.flush()
            case Finish() | Reopen() if slot:
                slot.finish()
        self._settle()

    def _close_slot(self) -> None:
        if self._slot and self.session.state is not State.ENDED:
            self._slot.close()

    def _expire_session(self) -> None:
        limit = self._limits.session_s
        message = f"a session lasts {limit:g} s at most; start a new one"
        self.expire("session_limit", message)
        if self.session.state is not State.ENDED:
            # Compressed audio may hold days of silence, which would still have to be recognised.
            timer = _loop().call_later(_FINISH_S, self.fail, "session_limit", message)
            self._cleanup.callback(timer.cancel)

    def _settle(self) -> None:
        """Note what has changed; once the session has ended, give back what it holds."""
        session = self.session
        self._metrics.audio_s.inc(max(0.0, session.audio_s - self._counted_s))
        self._counted_s = max(session.audio_s, self._counted_s)
        if session.state is State.WAITING:
            self._slot = None  # the one before has finished
        if session.state is State.ENDED and self.place:
            self._slot = self.place = None
            self._cleanup.close()
            self._metrics.sessions_ended.labels(session.outcome).inc()
            _log.info(
                "session %s ended: %s, %.1f s of audio",
                session.id,
                session.outcome,
                session.audio_s,
                extra={"session": session.id, "cause": session.outcome, "audio_s": round(session.audio_s, 3)},
            )
        self.changed.set()


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
