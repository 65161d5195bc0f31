"""A server with the real batcher, clients of it, and functions of the model that fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from service.batcher import Batcher
from service.config import Limits, ServerConfig
from service.server import Server
from tests.serving import Client, connected

LIMIT_S = 60.0
BLOCK = 2 * SAMPLE_RATE // 10


@contextlib.asynccontextmanager
async def serving(
    recognizer: Recognizer, *, n_slots: int = 3, drain_s: float = 30
) -> AsyncIterator[tuple[Server, Batcher]]:
    """A server with the real batcher."""
    config = ServerConfig(port=0, limits=Limits(max_streams=n_slots, drain_s=drain_s))
    batching = Batcher(recognizer, n_slots=n_slots)
    async with Server(config) as server, batching as batcher:
        server.open_for(batcher, model=recognizer.name)
        yield server, batcher
        await server.close()


def pcm(samples: np.ndarray) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def alone(recognizer: Recognizer, data: bytes) -> list[str]:
    stream = recognizer.stream()
    stream.feed(np.frombuffer(data, np.int16))
    stream.finish()
    return [segment.text for segment in stream.transcript.segments]


async def say(client: Client, data: bytes) -> None:
    for start in range(0, len(data), BLOCK):
        await client.websocket.send(data[start : start + BLOCK])
        await asyncio.sleep(0.002)


async def stream(server: Server, data: bytes) -> list[dict[str, Any]]:
    """All messages of a stream from start to close."""
    async with connected(server) as client:
        await client.start()
        reading = asyncio.create_task(client.rest())
        with contextlib.suppress(Exception):  # a stream that fails takes no more
            await say(client, data)
            await client.send("stop")
        return await reading


def run(work: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), LIMIT_S))


class Fault:
    """Makes a function fail for a while, and counts how often it did."""

    def __init__(self, function: Callable[..., Any], error: Exception, *, when: Callable[..., bool]) -> None:
        self._function, self._error, self._when = function, error, when
        self.n_failed = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._when(*args, **kwargs):
            self.n_failed += 1
            raise self._error
        return self._function(*args, **kwargs)
