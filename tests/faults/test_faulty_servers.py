"""Servers and networks that fail under clients: kill -9, restarts, packets lost, late or cut to pieces."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest

from asr.events import Event, Final, Partial
from clients import StreamingClient
from clients.errors import ConnectionLostError, ServerError
from tests.fake_batcher import FakeBatcher, expected_texts
from tests.processes import ROOT, Address, process
from tests.serving import RATE, connected, finals, get, in_loop, serving


async def speak(client: StreamingClient, *, seconds: float) -> None:
    for _ in range(int(10 * seconds)):
        await client.send(bytes(2 * RATE // 10))
        await asyncio.sleep(0)


async def rest(client: StreamingClient) -> tuple[list[Event], Exception | None]:
    """The events that are left, and how the iteration ends."""
    events: list[Event] = []
    try:
        async for event in client:
            events.append(event)
    except Exception as error:
        return events, error
    return events, None


def committed(events: list[Event]) -> str:
    """Of the last event, if that is a partial."""
    return events[-1].committed if events and isinstance(events[-1], Partial) else ""


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Final)]


@in_loop
async def test_server_killed_and_restarted() -> None:
    """The client begins another stream where the words for good end: not a word is lost, none comes twice."""
    async with process() as (first, url):
        address: Any = Address(url)
        async with StreamingClient(url, reconnect_s=15) as client:
            await speak(client, seconds=2.7)
            seen: list[Event] = []
            while committed(seen) != "w8 w9":
                seen.append(await anext(client))
            first.send_signal(signal.SIGKILL)
            assert await first.wait() == -signal.SIGKILL
            async with process(port=address.port):
                await speak(client, seconds=1)
                done = await client.finish()
                events, error = await rest(client)
                assert error is None and client.n_restarts == 1
                assert done.audio_s == pytest.approx(3.7)
        finals = [event for event in seen + events if isinstance(event, Final)]
        words = [word for final in finals for word in final.words]
        assert [word.start_s for word in words] == [n / 4 for n in range(14)]
        assert texts(seen + events) == [*expected_texts(2.5), *expected_texts(1)]
        assert [final.segment for final in finals] == [0, 1, 2, 3]


@in_loop
async def test_server_killed_and_restarted_without_a_new_stream() -> None:
    """A client that wants no other stream is told in words that its session is gone, and has all finals.

    What was committed but not final is in the newest partial; a new stream on the same server works at once.
    """
    async with process() as (first, url):
        address: Any = Address(url)
        async with StreamingClient(url, reconnect_s=15, restart=False) as client:
            await speak(client, seconds=2.5)
            seen: list[Event] = []
            while committed(seen) != "w8 w9":
                seen.append(await anext(client))
            assert client.acknowledged.n_samples > 0
            first.send_signal(signal.SIGKILL)
            assert await first.wait() == -signal.SIGKILL
            async with process(port=address.port):
                events, error = await rest(client)
                seen += events
                assert isinstance(error, ServerError) and error.code == "unknown_resume_token"
                assert "no session has this token" in str(error) and "start" in str(error)
                assert texts(seen) == expected_texts(2)
                assert [each.committed for each in seen if isinstance(each, Partial)][-1] == "w8 w9"
                with pytest.raises(ServerError):
                    await client.finish()
                async with StreamingClient(url) as again:
                    await speak(again, seconds=1)
                    await again.finish()
                    assert texts((await rest(again))[0]) == expected_texts(1)


@in_loop
async def test_server_killed_for_good() -> None:
    """Without a server the client gives up after its time and says so; what was final stays readable."""
    async with process() as (server, url), StreamingClient(url, reconnect_s=0.5) as client:
        await speak(client, seconds=1)
        seen: list[Event] = []
        while not texts(seen):
            seen.append(await anext(client))
        server.send_signal(signal.SIGKILL)
        await server.wait()
        events, error = await rest(client)
        assert isinstance(error, ConnectionLostError) and "did not come back within 0.5 s" in str(error)
        assert texts(seen + events) == expected_texts(1)


@in_loop
async def test_readiness_turns_off_before_anything_else() -> None:
    """At SIGTERM: not ready at once, alive, new sessions refused, the running one finished, exit code 0."""
    async with process("--drain-s", "10") as (server, url):
        address: Any = Address(url)
        async with connected(address) as client:
            await client.start()
            await client.audio(1)
            assert (await get(address, "/readyz"))[0] == 200
            server.send_signal(signal.SIGTERM)
            while (ready := await get(address, "/readyz"))[0] == 200:
                await asyncio.sleep(0)
            assert ready[0] == 503 and ready[2] == b"shutting down\n"
            assert not client.websocket.close_code and (await get(address, "/healthz"))[0] == 200
            await client.audio(1)
            await client.send("stop")
            assert finals(await client.rest()) == expected_texts(2)
        assert await server.wait() == 0


@in_loop
async def test_many_clients_outlive_a_drain() -> None:
    """A dozen streams in the middle of words when SIGTERM comes: each ends with its finals and ``drain``."""
    async with process("--max-streams", "12", "--drain-s", "0.3") as (server, url):
        clients: list[Any] = []

        async def stream(seconds: float) -> list[str]:
            async with connected(Address(url)) as client:  # type: ignore[arg-type]
                await client.start()
                await client.audio(seconds)
                clients.append(client)
                messages = await client.rest()
                assert (messages[-1]["type"], messages[-1]["reason"]) == ("done", "drain")
                assert client.websocket.close_code == 1001
                return finals(messages)

        lengths = [0.5 + 0.25 * n for n in range(12)]
        streams = [asyncio.create_task(stream(seconds)) for seconds in lengths]
        while len(clients) < 12:
            await asyncio.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        assert await asyncio.gather(*streams) == [expected_texts(seconds) for seconds in lengths]
        assert await server.wait() == 0


@pytest.mark.parametrize("log_format", ["text", "json"])
@in_loop
async def test_log_that_nobody_reads(log_format: str) -> None:
    """The pipe of the log is full: sessions go on, and the server still ends with 0."""
    fcntl = pytest.importorskip("fcntl")
    reading, writing = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        async with process("--log-format", log_format, stderr=writing) as (server, url):
            for _ in range(60):  # about 200 bytes each
                async with connected(Address(url)) as client:  # type: ignore[arg-type]
                    await client.start()
                    await client.send("stop")
                    await client.rest()
            server.terminate()
            assert await server.wait() == 0
    finally:
        os.close(writing)
        os.close(reading)


class RoughRelay:
    """Passes bytes on late, in pieces of any size, and cuts connections: a bad network on any machine."""

    def __init__(self, port: int, chance: random.Random, *, cut_every: int) -> None:
        self._target, self._chance, self._cut_every = port, chance, cut_every
        self.n_connections = 0

    async def __aenter__(self) -> RoughRelay:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        ways = [self._copy(reader, there_writer), self._copy(there_reader, writer)]
        await asyncio.gather(*ways, return_exceptions=True)
        for each in (writer, there_writer):
            each.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._chance.randint(1, 2 * self._cut_every)
        while left > 0 and (data := await reader.read(self._chance.randint(1, 4000))):
            await asyncio.sleep(self._chance.random() * 0.004)
            writer.write(data[:left])
            left -= len(data)
            await writer.drain()
        writer.transport.abort()


@pytest.mark.parametrize("seed", range(3))
@in_loop
async def test_rough_network(seed: int) -> None:
    """Late, in pieces and cut again and again, inside of frames and of handshakes: the same transcript."""
    async with serving(FakeBatcher(tick_s=0.001)) as server:
        chance = random.Random(seed)
        async with RoughRelay(server.port, chance, cut_every=60_000) as relay:
            client = StreamingClient(relay.url, first_delay_s=0.005)
            while True:
                try:
                    await client.__aenter__()
                    break
                except Exception:  # the first connection may be cut as well, and is not repeated by itself
                    client = StreamingClient(relay.url, first_delay_s=0.005)
            reading = asyncio.create_task(rest(client))
            await speak(client, seconds=10)
            await client.finish()
            events, error = await reading
            await client.__aexit__(None, None, None)
        assert error is None and texts(events) == expected_texts(10)
        assert relay.n_connections > 2


IN_NAMESPACE = ["unshare", "--map-root-user", "--net", "sh", "-c"]
NETEM = "tc qdisc add dev lo root netem delay 15ms 5ms loss 3% reorder 25% duplicate 1%"
TUN = "ip tuntap add dev probe mode tun && ip link delete probe"


def in_network(setup: str, talk: str) -> None:
    """Run a conversation in a network of its own, or skip where the machine does not let us make one."""
    if sys.platform != "linux" or not shutil.which("unshare"):
        pytest.skip("needs Linux with unshare")
    probe = subprocess.run(
        [*IN_NAMESPACE, f"ip link set lo up && {setup}"], capture_output=True, text=True, timeout=30
    )
    if probe.returncode:
        pytest.skip(f"this machine cannot make such a network: {probe.stderr.strip()[:200]}")
    command = f'ip link set lo up && {setup} && exec "$0" "$@"'
    result = subprocess.run(
        [*IN_NAMESPACE, command, sys.executable, "-m", "tests.faults.talk", talk],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize(("talk", "setup"), [("netem", NETEM), ("packets", TUN)], ids=["netem", "packets"])
def test_lossy_network(talk: str, setup: str) -> None:
    """Packets lost, delayed, doubled and out of order, by the kernel or by us: late, and every word there."""
    in_network(setup, talk)


def test_network_that_goes_away() -> None:
    """No packet passes for a while, not even the end of the connection: cut on both sides, then resumed."""
    in_network(TUN, "gone")
