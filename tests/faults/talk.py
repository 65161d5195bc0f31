"""Conversations for a network namespace: ``python -m tests.faults.talk lossy|gone``."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from asr.events import Final
from clients import StreamingClient
from service.config import Limits
from tests.fake_batcher import FakeBatcher, expected_texts
from tests.serving import RATE, connected, finals, metric, serving

_LIMIT_S = 50.0
_DROP = ["iptables", "{}", "INPUT", "-p", "tcp", "-j", "DROP"]


async def lossy() -> None:
    """Four streams at once over the network as it is."""
    async with serving(FakeBatcher(tick_s=0.001)) as server:

        async def stream(seconds: int) -> list[str]:
            async with StreamingClient(server.url) as client:
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
    async with serving(limits=limits) as server, connected(server, ping_interval=None) as client:
        token = (await client.start())["resume_token"]
        await client.audio(1)
        await client.until("final")
        iptables("-A")
        while server._connections:  # the server finds out by itself
            await asyncio.sleep(0.05)
        assert len(server._registry) == 1
        iptables("-D")
        async with connected(server, f"?resume_token={token}") as again:
            ready = await again.start(resume_token=token, last_seq=client.last_seq)
            assert ready["samples"] == RATE
            await again.audio(1)
            await again.send("stop")
            assert finals(client.received + await again.rest()) == expected_texts(2)
        assert await metric(server, "resumes_total") == 1
        client.cut()


def iptables(action: str) -> None:
    subprocess.run([part.format(action) for part in _DROP], check=True)


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for({"lossy": lossy, "gone": gone}[sys.argv[1]](), _LIMIT_S))
