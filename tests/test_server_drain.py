"""Shutting down: running sessions finish, new ones are refused, and the process exits with 0."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from service import server as server_module
from service.config import Limits
from tests.fake_batcher import FakeBatcher, expected_texts
from tests.processes import Address, process
from tests.serving import connected, finals, get, in_loop, kinds, serving


@in_loop
async def test_running_sessions_go_on_until_they_end() -> None:
    """Not ready, handshakes get 503, connections without a session are closed, a lost one may resume."""
    async with serving() as server, connected(server) as client, connected(server) as waiting:
        token = (await client.start())["resume_token"]
        draining = asyncio.create_task(server.drain())
        (error,) = await waiting.rest()
        assert (error["code"], error["fatal"], waiting.websocket.close_code) == ("shutting_down", True, 1001)
        assert (await get(server, "/readyz"))[0] == 503
        assert (await get(server, "/healthz"))[0] == 200
        with pytest.raises(InvalidStatus) as refused:
            async with connected(server):
                pass
        response = refused.value.response
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        await client.audio(0.5)
        async with connected(server, f"?resume_token={token}") as again:
            ready = await again.start(resume_token=token)
            assert not draining.done()
            await again.websocket.send(bytes(32000 - ready["bytes"]))
            await again.send("stop")
            messages = await again.rest()
            assert (messages[-1]["reason"], again.websocket.close_code) == ("stop", 1000)
            assert finals(messages) == expected_texts(1)
        await draining


@in_loop
async def test_after_drain_s_sessions_are_finished() -> None:
    """Finals, done with the reason drain, close 1001; a session without a connection is given up."""
    batcher = FakeBatcher()
    async with serving(batcher, limits=Limits(drain_s=0.1)) as server, connected(server) as client:
        async with connected(server) as lost:
            await lost.start()
            lost.cut()
        await client.start()
        await client.audio(0.5)
        await asyncio.gather(server.drain(), client.rest())
        assert client.websocket.close_code == 1001
        assert finals(client.received) == expected_texts(0.5)
        assert kinds(client.received)[-1] == "done" and "error" not in kinds(client.received)
        assert client.received[-1]["reason"] == "drain"
        assert batcher.n_used == 0


@in_loop
async def test_a_model_that_does_not_finish_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed becomes final, with an error that says so."""
    monkeypatch.setattr(server_module, "_FINISH_S", 0.1)
    batcher = FakeBatcher()
    async with serving(batcher, limits=Limits(drain_s=0)) as server, connected(server) as client:
        await client.start()
        await client.audio(0.5)
        await client.until("partial")
        batcher.hold()
        await asyncio.gather(server.drain(), client.rest())
        assert client.websocket.close_code == 1001
        assert finals(client.received) == expected_texts(0.5)
        assert client.received[-1]["code"] == "shutting_down"
        assert batcher.n_used == 0


@in_loop
async def test_leaving_the_server_closes_everything_at_once() -> None:
    """Without a drain, connections are closed with 1001 and slots are freed."""
    batcher = FakeBatcher()
    async with serving(batcher) as server, connected(server) as client:
        await client.start()
        await server.close()
        assert await client.close_code() == 1001
    assert batcher.n_used == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@in_loop
async def test_a_signal_lets_running_sessions_finish(number: signal.Signals) -> None:
    """The session goes on, ends with its finals, and then the process exits with 0."""
    async with process() as (running, url):
        address: Any = Address(url)
        async with connected(address) as client:
            await client.start()
            await client.audio(1)
            os.kill(running.pid, number)
            while (await get(address, "/readyz"))[0] != 503:
                await asyncio.sleep(0.01)
            await client.audio(1)
            await client.send("stop")
            assert finals(await client.rest()) == expected_texts(2)
            assert client.websocket.close_code == 1000
        assert await running.wait() == 0


@in_loop
async def test_the_drain_s_end_and_a_second_signal() -> None:
    """--drain-s bounds how long sessions go on; a second signal does not wait at all."""
    async with process("--drain-s", "0.2") as (running, url):
        address: Any = Address(url)
        async with connected(address) as client:
            await client.start()
            await client.audio(0.5)
            running.terminate()
            assert (await client.rest())[-1]["reason"] == "drain"
        assert await running.wait() == 0
    async with process() as (running, url):
        address = Address(url)
        async with connected(address) as client:
            await client.start()
            running.terminate()
            while (await get(address, "/readyz"))[0] != 503:
                await asyncio.sleep(0.01)
            running.terminate()
            assert await running.wait() == -signal.SIGTERM
            await client.rest()


@in_loop
async def test_the_command_line_says_where_it_listens_and_rereads_tokens(tmp_path: Path) -> None:
    """Two lines on standard output when it is ready; SIGHUP reads the token file again."""
    file = tmp_path / "tokens"
    file.write_text("alpha\n")
    async with process("--token-file", str(file)) as (running, url):
        assert running.stdout and url.startswith("http://127.0.0.1:")
        address: Any = Address(url)
        assert (await running.stdout.readline()).decode() == f"streams at {address.stream_url}\n"
        async with connected(address, "?token=alpha"):
            pass
        file.write_text("beta\n")
        running.send_signal(signal.SIGHUP)
        status = 401
        while status == 401:
            await asyncio.sleep(0.01)
            headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
            status = (await get(address, "/v1/stream?token=beta", **headers))[0]
        running.terminate()
        assert await running.wait() == 0


@in_loop
async def test_a_stream_that_opens_during_the_drain_is_closed() -> None:
    """The connection was told already that the server shuts down."""
    batcher = FakeBatcher()
    async with serving(batcher) as server, connected(server) as client:
        batcher.may_open.clear()
        await client.send("start")
        await client.send("ping")
        await asyncio.sleep(0.02)
        draining = asyncio.create_task(server.drain())
        assert (await client.recv())["code"] == "shutting_down"
        batcher.may_open.set()
        assert await client.close_code() == 1001
        await draining
        assert batcher.n_used == 0
