"""Conversations for a network namespace: ``python -m tests.faults.talk netem|packets|gone``."""

from __future__ import annotations

import asyncio
import sys

from asr.events import Final
from clients import StreamingClient
from service.config import Limits
from tests.fake_batcher import FakeBatcher, expected_texts
from tests.faults.packets import THERE, Fate, Network
from tests.processes import Address
from tests.serving import RATE, connected, finals, metric, serving

_LIMIT_S = 50.0
_EVERYWHERE = {"host": "0.0.0.0", "no_auth": True}


async def netem() -> None:
    """Four streams at once over the loopback device, which somebody has made bad."""
    async with serving(FakeBatcher(tick_s=0.001)) as server:
        await four_streams(server.url)


async def packets() -> None:
    """The same over a network of ours: a twentieth is lost, the others are late and out of order."""
    fate = Fate(loss=0.05, delay_s=0.01, jitter_s=0.02, doubled=0.02)
    async with Network(fate) as network, serving(FakeBatcher(tick_s=0.001), **_EVERYWHERE) as server:
        await four_streams(f"http://{THERE}:{server.port}")
        assert network.n_lost > 10 and network.n_overtaken > 10


async def four_streams(url: str) -> None:
    """Every one gets its words."""

    async def stream(seconds: int) -> list[str]:
        async with StreamingClient(url) as client:
            for _ in range(10 * seconds):
                await client.send(bytes(2 * RATE // 10))
                await asyncio.sleep(0.01)
            await client.finish()
            return [event.text async for event in client if isinstance(event, Final)]

    lengths = (3, 4, 5, 6)
    found = await asyncio.gather(*(stream(seconds) for seconds in lengths))
    assert found == [expected_texts(seconds) for seconds in lengths], found


async def gone() -> None:
    """The network drops everything, as if a cable were pulled, and comes back."""
    limits = Limits(ping_s=0.3, resume_s=30)
    async with Network(Fate()) as network, serving(limits=limits, **_EVERYWHERE) as server:
        address = Address(f"http://{THERE}:{server.port}")
        async with connected(address, ping_interval=None) as client:
            token = (await client.start())["resume_token"]
            await client.audio(1)
            await client.until("final")
            network.fate.loss = 1.0
            while server._connections:  # the server finds out by itself
                await asyncio.sleep(0.05)
            assert len(server._registry) == 1
            network.fate.loss = 0.0
            async with connected(address, f"?resume_token={token}") as again:
                ready = await again.start(resume_token=token, last_seq=client.last_seq)
                assert ready["samples"] == RATE
                await again.audio(1)
                await again.send("stop")
                assert finals(client.received + await again.rest()) == expected_texts(2)
            assert await metric(server, "resumes_total") == 1
            client.cut()


TALKS = {"netem": netem, "packets": packets, "gone": gone}

if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(TALKS[sys.argv[1]](), _LIMIT_S))
