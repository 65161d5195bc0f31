"""A server of the native protocol without a model: it hears words on a schedule, and its network can be bad.

The words are those of :class:`fake_recognizer.FakeStream`, fed in the blocks that ``transcribe`` feeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from fake_recognizer import WORD, FakeStream
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from asr.events import SAMPLE_RATE, Event, Word, event_to_dict

BLOCK = SAMPLE_RATE // 10
DTYPES = {"pcm_s16le": "<i2", "pcm_f32le": "<f4"}


class FlushableStream(FakeStream):
    """A segment may also end before its fourth word."""

    def _open_words(self) -> tuple[Word, ...]:
        n_final = sum(len(final.words) for final in self.finals)
        return tuple(Word(f"w{n}", n * WORD, (n + 1) * WORD, 0.9, True) for n in range(n_final, self.n_words))


class CutError(Exception):
    """The connection has been cut on purpose."""


@dataclass
class Session:
    """What outlives a connection."""

    start: dict[str, Any]
    token: str
    stream: FakeStream
    log: list[dict[str, Any]] = field(default_factory=list)  # numbered messages
    newest_partial: dict[str, Any] | None = None
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    n_bytes: int = 0
    n_acknowledged: int = 0
    is_stopped: bool = False

    @property
    def n_samples(self) -> int:
        return self.n_bytes // self.frame_bytes

    @property
    def counts(self) -> dict[str, int]:
        return {"samples": self.n_samples, "bytes": self.n_bytes}

    @property
    def frame_bytes(self) -> int:
        return np.dtype(DTYPES.get(self.start["encoding"], "u1")).itemsize

    def hear(self, data: bytes) -> Iterator[Event]:
        assert len(data) % self.frame_bytes == 0
        self.n_bytes += len(data)
        samples = np.frombuffer(data, DTYPES.get(self.start["encoding"], "u1"))
        scale = 32768 if self.start["encoding"] == "pcm_s16le" else 1
        self.samples = np.concatenate([self.samples, (samples / scale).astype(np.float32)])
        while len(self.samples) >= BLOCK:
            yield from self.stream.feed(self.samples[:BLOCK])
            self.samples = self.samples[BLOCK:]

    def flush(self) -> Iterator[Event]:
        yield from self.stream.feed(self.samples)
        self.samples = self.samples[:0]
        yield from self.stream.finish()


class FakeServer:
    """Behaviour by attributes, all of which a test may change while the server runs.

    Attributes:
        cuts: After how many frames in and out each connection breaks; none of them once it is empty.
        token: The access token that is wanted.
        refuse: HTTP status for every connection.
        acknowledge_bytes: Audio between two acknowledgements; None for none.
        end_after_s: Heard so much, the stream ends with ``end_with``, an error code or a reason of done.
        vanish_after_s: Heard so much, the server is gone.
        letter: What words are made of.
    """

    def __init__(self, *, cuts: Iterable[int] = (), **behaviour: Any) -> None:
        self.cuts = list(cuts)
        self.token: str | None = None
        self.refuse: int | None = None
        self.acknowledge_bytes: int | None = 16_000
        self.end_after_s: float | None = None
        self.end_with = "idle_timeout"
        self.vanish_after_s: float | None = None
        self.letter = "w"
        self.sessions: dict[str, Session] = {}
        self.requests: list[Request] = []
        self.starts: list[dict[str, Any]] = []
        self.n_frames = 0
        self.port = 0
        for name, value in behaviour.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.connections: set[ServerConnection] = set()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[FakeServer]:
        async with serve(
            self._handle,
            "127.0.0.1",
            self.port,
            process_request=self._admit,
            ping_interval=None,
            close_timeout=0.1,
            **options,
        ) as server:
            self._server = server
            self.port = next(iter(server.sockets)).getsockname()[1]
            try:
                yield self
            finally:
                self.cut()

    def cut(self) -> None:
        """Break every connection, without a closing handshake."""
        for connection in self.connections:
            connection.transport.abort()

    def vanish(self) -> None:
        """Break every connection and listen no more."""
        self._server.close(close_connections=False)
        self.cut()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        if self.refuse is not None:
            response = connection.respond(http.HTTPStatus(self.refuse), "no\n")
            response.headers["Retry-After"] = "5"
            return response
        if urlsplit(request.path).path != "/v1/stream":
            return connection.respond(http.HTTPStatus.NOT_FOUND, "no\n")
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "no\n")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        self.connections.add(connection)
        left = self.cuts.pop(0) if self.cuts else None

        def count() -> None:
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    connection.transport.abort()
                    raise CutError

        with contextlib.suppress(CutError, ConnectionClosed):
            await Talk(self, connection, count).run()
        self.connections.discard(connection)


class Talk:
    """One connection."""

    def __init__(self, server: FakeServer, connection: ServerConnection, count: Any) -> None:
        self.server, self.connection, self.count = server, connection, count

    async def run(self) -> None:
        session = await self.begin()
        if session is None:
            return
        async for frame in self.connection:
            self.count()
            self.server.n_frames += 1
            if isinstance(frame, bytes):
                await self.tell(session, session.hear(frame))
                step = self.server.acknowledge_bytes
                if step is not None and session.n_bytes - session.n_acknowledged >= step:
                    session.n_acknowledged = session.n_bytes
                    await self.send({"type": "ack", **session.counts})
            else:
                await self.control(session, json.loads(frame))
            if self.has_heard(session, self.server.end_after_s):
                await self.end(session)
            if self.has_heard(session, self.server.vanish_after_s):
                self.server.vanish()

    @staticmethod
    def has_heard(session: Session, seconds: float | None) -> bool:
        return seconds is not None and session.stream.heard >= seconds * SAMPLE_RATE

    async def send(self, message: dict[str, Any]) -> None:
        self.count()
        await self.connection.send(json.dumps(message, ensure_ascii=False))

    async def begin(self) -> Session | None:
        start = json.loads(await self.connection.recv())
        self.count()
        assert start["type"] == "start"
        self.server.starts.append(start)
        if start.get("language") not in (None, "en"):
            error = {"code": "invalid_field", "field": "language", "fatal": False}
            await self.send({"type": "error", "message": "language is unknown; expected en", **error})
            return None
        token = start.get("resume_token")
        if token is not None and token not in self.server.sessions:
            error = {"code": "unknown_resume_token", "fatal": True}
            await self.send({"type": "error", "message": "no such stream; start again", **error})
            await self.connection.close(4404, "unknown_resume_token")
            return None
        if token is None:
            stream = FlushableStream(second_pass=start["second_pass"], crash_at=None)
            token = f"token-{len(self.server.sessions)}"
            self.server.sessions[token] = Session(start, token, stream)
        else:
            path = self.connection.request.path if self.connection.request else ""
            assert parse_qs(urlsplit(path).query)["resume_token"] == [token]
        session = self.server.sessions[token]
        resumed = "resume_token" in start
        settings: dict[str, Any] = {"chunk_ms": 300}
        limits = {"message_bytes": 1 << 20, "queue_s": 0, "idle_s": 60, "session_s": 3600, "resume_s": 30}
        ready = {"session": "s", "resume_token": token, "resumed": resumed, "model": "fake"}
        session.n_acknowledged = session.n_bytes
        await self.send({"type": "ready", "settings": settings, "limits": limits, **ready, **session.counts})
        for message in session.log[start.get("last_seq", 0) :]:
            await self.send(message)
        if session.newest_partial is not None:
            await self.send(session.newest_partial)
        await self.close_if_done(session)
        return session

    async def control(self, session: Session, message: dict[str, Any]) -> None:
        if session.is_stopped:
            error = {"type": "error", "code": "stopping", "message": "stopped", "fatal": False}
            await self.send(error)
        elif message["type"] == "flush":
            await self.tell(session, session.flush(), {"type": "flushed", "samples": session.stream.heard})
        elif message["type"] == "stop":
            session.is_stopped = True
            await self.tell(session, session.flush(), self.done(session, "stop"))
            await self.close_if_done(session)

    async def tell(self, session: Session, events: Iterable[Event], *more: dict[str, Any]) -> None:
        """Send events and numbered messages; they are on record first, so a cut does not lose them."""
        messages = [self.spell(event_to_dict(event)) for event in events] + list(more)
        for message in messages:
            if message["type"] == "partial":
                session.newest_partial = message
            else:
                session.log.append(message)
                message["seq"] = len(session.log)
        for message in messages:
            await self.send(message)

    def spell(self, message: dict[str, Any]) -> dict[str, Any]:
        for part in [message, *message.get("words", ())]:
            for key in {"text", "committed", "draft"} & part.keys():
                part[key] = part[key].replace("w", self.server.letter)
        return message

    def done(self, session: Session, reason: str) -> dict[str, Any]:
        return {"type": "done", "audio_s": session.n_samples / SAMPLE_RATE, "rtf": 0.25, "reason": reason}

    async def close_if_done(self, session: Session) -> None:
        if session.log and session.log[-1]["type"] == "done":
            await self.connection.close(1001 if session.log[-1]["reason"] == "drain" else 1000)

    async def end(self, session: Session) -> None:
        """End a stream before the client does; the last final comes after the error, as it may."""
        reason = self.server.end_with
        if reason == "drain":
            await self.tell(session, session.flush(), self.done(session, reason))
            await self.close_if_done(session)
            return
        await self.send(
            {"type": "error", "code": reason, "message": "it is over; start again", "fatal": True}
        )
        await self.tell(session, session.flush())
        await self.connection.close(4408, reason)


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Run a server in a thread of its own, for clients that have their own event loop."""
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def run() -> None:
        async with server.running():
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
