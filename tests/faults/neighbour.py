"""A well-behaved client next to a fault: it must not notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.fake_batcher import expected_texts
from tests.serving import connected, finals

_SECONDS = 4


@asynccontextmanager
async def undisturbed(server: Any) -> AsyncIterator[None]:
    """A stream that runs all the while, and ends with every word and close code 1000."""
    async with connected(server) as client:
        await client.start()
        await client.audio(_SECONDS / 2)
        reading = asyncio.create_task(client.rest())
        yield
        await client.audio(_SECONDS / 2)
        await client.send("stop")
        assert finals(await reading) == expected_texts(_SECONDS)
        assert client.websocket.close_code == 1000
