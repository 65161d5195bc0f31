"""A real server with the fake batcher on a free port, and a client that speaks the native protocol to it."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from service.config import Limits, ServerConfig
from service.server import Server
from tests.fake_batcher import FakeBatcher

PATIENCE_S = 20.0
RATE = 16_000
BYTES_PER_S = 2 * RATE


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test, which fails if it hangs."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), PATIENCE_S))

    return run


@asynccontextmanager
async def serving(
    batcher: FakeBatcher | None = None, *, limits: Limits | None = None, **config: Any
) -> AsyncIterator[Server]:
    """A server that is ready."""
    async with Server(ServerConfig(port=0, limits=limits or Limits(), **config)) as server:
        server.open_for(batcher or FakeBatcher(), model="fake")
        yield server


async def get(
    server: Server, path: str, *, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A plain HTTP request: status, headers with lower-case names, body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{server.port}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    pairs = (field.split(": ", 1) for field in fields)
    return int(status.split()[1]), {name.lower(): value for name, value in pairs}, body


async def metric(server: Server, name: str) -> float:
    """The value of a metric, given its name with labels as Prometheus writes it; 0 if it is not there."""
    _, _, page = await get(server, "/metrics")
    lines = (line.rsplit(" ", 1) for line in page.decode().splitlines())
    return next((float(value) for key, value in lines if key == f"foresound_{name}"), 0.0)


class Client:
    """One websocket; messages are dicts."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.received: list[dict[str, Any]] = []

    async def send(self, kind: str, **fields: Any) -> None:
        await self.websocket.send(json.dumps({"type": kind, **fields}))

    async def audio(self, seconds: float) -> None:
        await self.websocket.send(bytes(int(seconds * RATE) * 2))

    async def start(self, **fields: Any) -> dict[str, Any]:
        await self.send("start", **fields)
        return await self.until("ready")

    async def recv(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self.websocket.recv())
        self.received.append(message)
        return message

    async def until(self, kind: str) -> dict[str, Any]:
        """The next message of a type."""
        while (message := await self.recv())["type"] != kind:
            pass
        return message

    async def rest(self) -> list[dict[str, Any]]:
        """What comes until the connection is closed."""
        first = len(self.received)
        try:
            while True:
                await self.recv()
        except ConnectionClosed:
            return self.received[first:]

    async def close_code(self) -> int | None:
        await self.rest()
        return self.websocket.close_code

    def cut(self) -> None:
        """Break the connection without a word."""
        self.websocket.transport.abort()

    @property
    def last_seq(self) -> int:
        return max((message.get("seq", 0) for message in self.received), default=0)


@asynccontextmanager
async def connected(server: Server, query: str = "", **options: Any) -> AsyncIterator[Client]:
    """A client, and at the end its connection closed."""
    async with connect(server.stream_url + query, compression=None, **options) as websocket:
        yield Client(websocket)


def slow_reader(server: Server) -> dict[str, Any]:
    """Options for a client whose system takes little for it: what it does not read stays at the server."""
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
    narrow.connect(("127.0.0.1", server.port))
    narrow.setblocking(False)
    return {"sock": narrow, "max_queue": 1}


async def until_empty(server: Server) -> None:
    """Wait until the server holds no session: a client sees its connection close a moment earlier."""
    await server._registry.wait_empty()


def finals(messages: list[dict[str, Any]]) -> list[str]:
    """The texts of finals, each number once."""
    by_seq = {message["seq"]: message["text"] for message in messages if message["type"] == "final"}
    return [by_seq[seq] for seq in sorted(by_seq)]


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages]
