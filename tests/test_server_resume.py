"""Lost connections: resuming, taking over, and what happens to sessions that nobody comes back to."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from service.config import Limits
from service.server import Server
from tests.fake_batcher import FakeBatcher, expected_texts
from tests.serving import (
    BYTES_PER_S,
    connected,
    finals,
    in_loop,
    kinds,
    metric,
    serving,
    until_empty,
)

SECONDS = 6
AUDIO = bytes(SECONDS * BYTES_PER_S)


async def stream_with_cuts(server: Server, *, seed: int, n_cuts: int) -> list[dict[str, Any]]:
    """Stream AUDIO, lose the connection at random points, resume; return all that was received."""
    chance = random.Random(seed)
    received: list[dict[str, Any]] = []
    token, last_seq, position = None, 0, 0
    for attempt in range(n_cuts + 1):
        query = f"?resume_token={token}" if token else ""
        async with connected(server, query) as client:
            ready = await client.start(**({"resume_token": token, "last_seq": last_seq} if token else {}))
            token, position = ready["resume_token"], ready["bytes"]
            reading = asyncio.create_task(client.rest())
            while position < len(AUDIO):
                if attempt < n_cuts and chance.random() < 0.1:
                    break
                block = AUDIO[position : position + 2 * chance.randint(1, 8000)]
                await client.websocket.send(block)
                position += len(block)
                await asyncio.sleep(0 if chance.random() < 0.5 else 0.002)
            else:
                with contextlib.suppress(ConnectionClosed):  # an earlier stop has arrived and all is done
                    await client.send("stop")
            if attempt < n_cuts:
                await asyncio.sleep(chance.random() * 0.01)
                client.cut()
            await reading
            received += client.received
            last_seq = max(last_seq, client.last_seq)
            if received[-1]["type"] == "done":
                break
    return received


@pytest.mark.parametrize("seed", range(12))
@in_loop
async def test_cuts_anywhere_change_no_final(seed: int) -> None:
    """However often and wherever the connection breaks: the same finals, every number once, one done."""
    async with serving(FakeBatcher(tick_s=0.001)) as server:
        received = await stream_with_cuts(server, seed=seed, n_cuts=seed % 6)
        assert finals(received) == expected_texts(SECONDS)
        numbers = [message["seq"] for message in received if "seq" in message]
        assert numbers == list(range(1, len(numbers) + 1))
        assert received[-1]["type"] == "done" and received[-1]["audio_s"] == SECONDS
        await until_empty(server)
        assert await metric(server, "sessions_started_total") == 1


@in_loop
async def test_resuming_sends_what_was_missed_and_the_newest_partial() -> None:
    """Ready says where to go on; a full server lets the client in."""
    async with serving(limits=Limits(max_streams=1)) as server:
        async with connected(server) as client:
            ready = await client.start(language="en", words=False)
            await client.audio(1.6)
            await client.until("final")
            partial = await client.until("partial")
            client.cut()
        token = ready["resume_token"]
        async with connected(server, f"?resume_token={token}") as client:
            again = await client.start(resume_token=token, last_seq=1, sample_rate=48000, language="xx")
            assert again == ready | {"resumed": True, "samples": 25600, "bytes": 51200}
            assert [(await client.recv())["type"] for _ in range(3)] == ["speech_ended", "final", "partial"]
            assert client.received[-1] == partial and "words" not in partial
            assert await metric(server, "resumes_total") == 1
            await client.audio(0.4)
            await client.send("stop")
            await client.rest()
            assert finals(client.received) == expected_texts(2)


@in_loop
async def test_a_session_goes_on_while_nobody_listens() -> None:
    """What was received is recognised, the end included; the client gets it when it comes back."""
    async with serving(FakeBatcher(tick_s=0.01)) as server:
        async with connected(server) as client:
            token = (await client.start())["resume_token"]
            for _ in range(8):
                await client.audio(0.25)
            await client.send("stop")
            (session,) = server._registry
            while session.session.state.value != "finishing":
                await asyncio.sleep(0.001)
            client.cut()
        while session.session.state.value != "ended":
            await asyncio.sleep(0.001)
        assert await metric(server, "slots_used") == 0
        async with connected(server) as client:
            await client.start(resume_token=token)
            await client.rest()
            assert finals(client.received) == expected_texts(2)
            assert (client.received[-1]["type"], client.websocket.close_code) == ("done", 1000)


@in_loop
async def test_a_newer_connection_takes_over() -> None:
    """The old one is closed with 4409, its later audio does not count, and nothing is lost."""
    async with serving() as server, connected(server) as old:
        token = (await old.start())["resume_token"]
        await old.audio(1)
        await old.until("final")
        async with connected(server) as new:
            ready = await new.start(resume_token=token, last_seq=old.last_seq)
            assert ready["bytes"] == BYTES_PER_S
            with contextlib.suppress(ConnectionClosed):
                await old.audio(1)
            assert await old.close_code() == 4409
            await new.audio(1)
            await new.send("stop")
            await new.rest()
            assert finals(old.received + new.received) == expected_texts(2)
            assert new.received[-1]["audio_s"] == 2


@in_loop
async def test_a_taken_over_connection_times_nobody_out() -> None:
    """The old connection's silence is not the session's."""
    async with serving(limits=Limits(idle_s=0.3)) as server, connected(server) as old:
        token = (await old.start())["resume_token"]
        async with connected(server) as new:
            await new.start(resume_token=token)
            old.websocket.transport.pause_reading()  # its closing handshake takes long
            for _ in range(4):
                await asyncio.sleep(0.1)
                await new.audio(0.25)
            await new.send("stop")
            assert (await new.rest())[-1]["reason"] == "stop"
            old.cut()


@pytest.mark.parametrize("query", ["", "?resume_token=nonsense"])
@in_loop
async def test_an_unknown_token_is_fatal(query: str) -> None:
    """4404, and the client may connect anew."""
    async with serving() as server, connected(server, query) as client:
        await client.send("start", resume_token="nonsense")
        (error,) = await client.rest()
        assert (error["code"], error["fatal"]) == ("unknown_resume_token", True)
        assert client.websocket.close_code == 4404


@in_loop
async def test_a_wrong_number_can_be_corrected() -> None:
    """The error names last_seq and its range, and the connection waits for a better start."""
    async with serving() as server:
        async with connected(server) as client:
            token = (await client.start())["resume_token"]
            client.cut()
        async with connected(server) as client:
            await client.send("start", resume_token=token, last_seq=5)
            error = await client.until("error")
            assert (error["code"], error["field"], error["fatal"]) == ("invalid_field", "last_seq", False)
            assert (await client.start(resume_token=token))["resumed"]


@in_loop
async def test_a_resume_s_way_in_is_for_resuming_only() -> None:
    """A connection that needed no place cannot open another stream with it."""
    async with serving(limits=Limits(max_streams=1)) as server, connected(server) as client:
        token = (await client.start())["resume_token"]
        async with connected(server, f"?resume_token={token}") as other:
            await other.send("start")
            error = await other.until("error")
            assert (error["code"], error["field"]) == ("invalid_field", "resume_token")
            assert (await other.start(resume_token=token))["resumed"]
        assert await client.close_code() == 4409


@in_loop
async def test_a_session_that_nobody_resumes_is_given_up() -> None:
    """After resume_s its slot and its place are free, and its token is unknown."""
    batcher = FakeBatcher()
    async with serving(batcher, limits=Limits(max_streams=1, resume_s=0.1)) as server:
        async with connected(server) as client:
            token = (await client.start())["resume_token"]
            await client.audio(1)
            client.cut()
        assert batcher.n_used == 1
        await until_empty(server)
        assert batcher.n_used == 0
        assert await metric(server, 'sessions_ended_total{cause="lost"}') == 1
        async with connected(server) as client:
            await client.send("start", resume_token=token)
            assert await client.close_code() == 4404
        async with connected(server) as client:
            await client.start()


@in_loop
async def test_done_that_did_not_arrive_can_be_fetched() -> None:
    """Only a client that has answered the close has everything for sure."""
    async with serving() as server:
        async with connected(server) as client:
            token = (await client.start())["resume_token"]
            await client.audio(1)
            client.websocket.transport.pause_reading()
            await client.send("stop")
            (session,) = server._registry
            while session.session.state.value != "ended":
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            client.cut()
        async with connected(server) as client:
            await client.start(resume_token=token, last_seq=1)
            await client.rest()
            assert kinds(client.received) == ["ready", "speech_ended", "final", "done"]
        await until_empty(server)


@in_loop
async def test_a_client_that_says_goodbye_is_not_waited_for() -> None:
    """Close code 1000 without stop frees the place at once; any other close is that of a lost connection."""
    async with serving(limits=Limits(max_streams=1)) as server:
        async with connected(server) as client:
            token = (await client.start())["resume_token"]
            await client.websocket.close(1001)
        async with connected(server, f"?resume_token={token}") as client:
            assert (await client.start(resume_token=token))["resumed"]
            await client.websocket.close(1000)
        await until_empty(server)
        async with connected(server) as client:
            assert not (await client.start())["resumed"]


@in_loop
async def test_vanishing_clients_leave_nothing_behind() -> None:
    """Twenty that vanish in the middle, with two places: all slots and places come back."""
    batcher = FakeBatcher(n_slots=2)
    async with serving(batcher, limits=Limits(max_streams=2, resume_s=0)) as server:
        for _ in range(20):
            async with connected(server) as client:
                await client.start()
                client.cut()
        await until_empty(server)
        assert batcher.n_used == 0 and not server._registry._timers and not server._registry._places


@in_loop
async def test_a_client_that_leaves_while_its_stream_opens() -> None:
    """Its place and its slot are free for the next one."""
    batcher = FakeBatcher(n_slots=1)
    async with serving(batcher, limits=Limits(max_streams=1)) as server:
        batcher.may_open.clear()
        async with connected(server) as client:
            await client.send("start")
            await client.send("ping")
            client.cut()
        while server._registry._places:
            await asyncio.sleep(0.001)
        batcher.may_open.set()
        async with connected(server) as client:
            await client.start()
            assert batcher.n_used == 1
