"""One websocket: reads frames into a session, writes what the session tells, until either side goes away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import DATA_OPCODES, CloseCode
from websockets.frames import Frame as WebsocketFrame
from websockets.protocol import OPEN, Event

from asr.errors import OptionError
from service.auth import ANYBODY
from service.config import Limits
from service.live import BatcherLike, LiveSession
from service.messages import Close, Command, Reply
from service.metrics import Metrics
from service.outbox import Outgoing
from service.protocol.dialect import Dialect, Frame, Patience
from service.registry import Place, Registry
from service.session import Open, Reopen, Resume, Session, State

# Bytes on their way to a client that reads slowly, in the kernel and in the process. The kernel by itself
# takes megabytes: minutes of partials, all out of date before the client sees them; and minutes of an upload,
# behind which the client's pings would wait until it gives up.
_KERNEL_BUFFER = 64 << 10
WRITE_BUFFER = 16 << 10

MAX_FRAGMENTS = 1000  # of one message

_TAKEN_OVER = Close(4409, "resumed on a newer connection")
_LEFT = 1000  # the close code of a client that wants no more, even if it has not sent stop
_LOST = 1006  # the close code where the other side has sent none

_log = logging.getLogger(__name__)


class StreamSocket(ServerConnection):
    """A websocket connection that gives its place back when it ends, however far it got.

    Attributes:
        key: Whose it is.
        place: Reserved at the handshake; None once a session has it, or where none was needed.
        dialect: What the client speaks, by the path it asked for.
        subprotocols_wanted: Websocket subprotocols to take if the client offers one.
    """

    key: str = ANYBODY
    place: Place | None = None
    dialect: Dialect | None = None
    subprotocols_wanted: tuple[str, ...] = ()

    _n_fragments = 0  # of the message that is arriving

    def process_event(self, event: Event) -> None:
        """Bound a message's fragments: empty ones add nothing to its size, and old websockets count none.

        Args:
            event: The handshake's request or a frame.
        """
        if isinstance(event, WebsocketFrame) and event.opcode in DATA_OPCODES:
            self._n_fragments = 0 if event.fin else self._n_fragments + 1
            if self._n_fragments > MAX_FRAGMENTS:
                self.protocol.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
                return
        super().process_event(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        super().connection_lost(exc)
        self.give_place_back()

    def limit_messages(self, n_bytes: int) -> None:
        """Take messages up to another size than the server's.

        Args:
            n_bytes: Of one message.
        """
        protocol: Any = self.protocol
        # The name changed with version 16.
        name = "max_message_size" if hasattr(protocol, "max_message_size") else "max_size"
        setattr(protocol, name, n_bytes)

    def give_place_back(self) -> None:
        """Let somebody else have the place, if the connection still holds it."""
        if self.place:
            self.place.release()
            self.place = None


@dataclass(frozen=True)
class Hub:
    """What all connections of a server share."""

    batcher: BatcherLike
    model: str
    registry: Registry
    limits: Limits
    metrics: Metrics


class Connection:
    """One websocket and its session: at first one that waits for start, later perhaps a resumed one."""

    def __init__(self, websocket: StreamSocket, hub: Hub) -> None:
        """Begin after the handshake.

        Args:
            websocket: Open.
            hub: The server's.
        """
        assert websocket.dialect is not None
        self._websocket = websocket
        self._hub = hub
        self._dialect = websocket.dialect
        self._patience: Patience = self._dialect.patience(hub.limits)
        session = Session(
            id=secrets.token_hex(4),
            resume_token=secrets.token_urlsafe(32),
            model=hub.model,
            limits=hub.limits,
        )
        self._live = LiveSession(session, key=websocket.key, limits=hub.limits, metrics=hub.metrics)
        self._is_taken_over = False
        self._start_by = _loop().time() + self._patience.start_s
        self._is_reading = False
        self._heard_at = _loop().time()

    @property
    def is_waiting(self) -> bool:
        """Whether no session has started here yet."""
        return self._live.session.state is State.WAITING

    def shut_down(self) -> None:
        """End a connection that waits for its start."""
        self._live.expire("shutting_down", "the server is shutting down; connect again later")

    async def run(self) -> None:
        """Serve until the connection is closed."""
        _bound_kernel_buffer(self._websocket)
        if frames := self._dialect.opened(self._live.session.id):
            self._live.receive(Reply(tuple(frames)))
        reader, writer, keeper = (
            asyncio.create_task(self._guard(work())) for work in (self._read, self._write, self._keep_alive)
        )
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if self._websocket.state is OPEN:  # one of them crashed; if it was the reader, the writer says so
                await asyncio.wait({writer})
                await self._websocket.close(self._dialect.crash_code, "model_error")
        finally:
            for task in (reader, writer, keeper):
                task.cancel()
            await asyncio.gather(reader, writer, keeper, return_exceptions=True)
            self._part()

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except ConnectionClosed:
            pass
        except Exception:
            self._live.crash()

    def _part(self) -> None:
        """Leave the session to the client's next connection, unless there is nothing to come back for."""
        live = self._live
        if self._is_taken_over or not live.is_attached:
            return
        live.detach()
        session = live.session
        is_done = session.state is State.ENDED and session.outbox.is_delivered
        code = self._websocket.close_code
        if code == _LEFT or (is_done and code != _LOST) or not self._dialect.is_resumable:
            self._hub.registry.forget(live)
        else:
            self._hub.registry.keep(live)

    # Reading

    async def _read(self) -> None:
        await self._follow(self._dialect.start_commands())
        while True:
            await self._room()
            frame = await self._receive()
            await asyncio.sleep(0)  # a client may send thousands of small frames at once; others have a turn
            if not self._is_taken_over:
                await self._follow(self._dialect.receive(frame))

    async def _follow(self, commands: Sequence[Command | Reply]) -> None:
        for i, command in enumerate(commands):
            if i:
                await self._room()
            self._hub.metrics.count_received(command)
            match self._live.receive(command):
                case Open():
                    await self._open()
                case Reopen():
                    while self._live.session.state is State.RESTARTING:
                        await self._change()
                    if self.is_waiting:
                        await self._open()
                case Resume(token, last_seq):
                    self._resume(token, last_seq)

    async def _room(self) -> None:
        """Wait until more may be read."""
        while self._live.is_congested:
            await self._change()

    async def _receive(self) -> str | bytes:
        """Return the next frame. If it takes the client too long, its session begins to end meanwhile."""
        patience, timer = self._patience, None
        if self.is_waiting and self._live.place is None:
            message = f"no start message came within {patience.start_s:g} s"
            timer = _loop().call_at(self._start_by, self._time_out, message)
        elif self._live.session.state in (State.WAITING, State.STREAMING):
            message = f"no message came for {patience.idle_s:g} s; send ping while there is no audio"
            timer = _loop().call_later(patience.idle_s, self._time_out, message)
        self._is_reading = True
        try:
            return await self._websocket.recv()
        finally:
            if timer:
                timer.cancel()
            self._is_reading = False
            self._heard_at = _loop().time()

    def _time_out(self, message: str) -> None:
        if not self._is_taken_over:
            self._live.expire("idle_timeout", message)

    async def _open(self) -> None:
        if self._live.place:
            await self._live.open(self._hub.batcher, self._live.place)
            return
        place = self._websocket.place
        if place is None:
            message = "resume_token is missing; this connection was let in to resume a session"
            self._live.refuse(OptionError(message))
        elif await self._live.open(self._hub.batcher, place):
            self._websocket.place = None
            self._live.attach(self._give_up)
            self._hub.registry.add(self._live)

    def _resume(self, token: str, last_seq: int) -> None:
        live = self._hub.registry.find(token, key=self._websocket.key)
        if live is None:
            message = "no session has this token (any more); start without resume_token"
            self._live.fail("unknown_resume_token", message)
        elif problem := live.session.resume(last_seq=last_seq, now=_loop().time()):
            self._live.receive(problem)
        else:
            self._websocket.give_place_back()
            self._hub.registry.resumed(live)
            self._hub.metrics.resumes.inc()
            waiting, self._live = self._live, live
            live.attach(self._give_up)
            waiting.changed.set()  # the writer waits there

    def _give_up(self) -> None:
        """Leave the session to a newer connection."""
        self._is_taken_over = True
        self._live.changed.set()

    async def _change(self) -> None:
        """Wait until there may be something to send, or room to read on."""
        changed = self._live.changed
        changed.clear()
        await changed.wait()

    # Writing

    async def _write(self) -> None:
        while True:
            if self._is_taken_over:
                await self._websocket.close(_TAKEN_OVER.code, _TAKEN_OVER.reason)
                return
            outgoing = self._live.session.outbox.take()
            if outgoing is None:
                await self._change()
            elif isinstance(outgoing.message, Close):
                frames, code, reason = self._dialect.close(outgoing.message)
                await self._send(frames)
                await self._websocket.close(code, reason)
                return
            else:
                await self._tell(outgoing)

    async def _tell(self, outgoing: Outgoing) -> None:
        self._live.changed.set()  # there may be room to read on
        message = outgoing.message
        frames = message.frames if isinstance(message, Reply) else self._dialect.send(outgoing)
        if frames:
            self._hub.metrics.count_sent(message)
        await self._send(frames)

    async def _send(self, frames: Sequence[Frame]) -> None:
        # Where the client reads nothing for so long, the connection is as good as lost.
        timer = _loop().call_later(2 * self._hub.limits.ping_s, self._websocket.transport.abort)
        try:
            for frame in frames:
                await self._websocket.send(frame)
        finally:
            timer.cancel()

    # Keeping alive

    async def _keep_alive(self) -> None:
        """Cut the connection when its client neither sends nor answers; TCP may not notice for many minutes.

        The keepalive of websockets would also cut off a client that sends a file faster than it can be
        recognised: its pongs wait behind audio that is not read yet.
        """
        ping_s = self._hub.limits.ping_s
        while True:
            await asyncio.sleep(ping_s)
            asked_at = _loop().time()
            if not self._is_reading or asked_at - self._heard_at < ping_s:
                continue
            pong = asyncio.ensure_future(await self._websocket.ping())
            await asyncio.wait({pong}, timeout=ping_s)
            if not pong.done() and self._is_reading and self._heard_at < asked_at:
                self._websocket.transport.abort()
                return


def _bound_kernel_buffer(websocket: StreamSocket) -> None:
    with contextlib.suppress(OSError):  # a client that has gone already
        tcp = websocket.transport.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BUFFER)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BUFFER)


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
