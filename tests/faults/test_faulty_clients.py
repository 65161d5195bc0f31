"""Clients that misbehave: a real server, real sockets, the fake model; a neighbour who must not notice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import threading
import time
from asyncio.subprocess import DEVNULL
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from websockets.exceptions import ConnectionClosed

from service import rest_server
from service import server as server_module
from service.config import Limits
from tests.fake_batcher import FakeBatcher, expected_texts
from tests.faults.neighbour import undisturbed
from tests.faults.raw import BINARY, CLOSE, CONTINUATION, HANDSHAKE, PING, TEXT, close_code, frame, raw
from tests.processes import ROOT, Address, process
from tests.serving import (
    BYTES_PER_S,
    connected,
    finals,
    get,
    in_loop,
    metric,
    serving,
    slow_reader,
    until_empty,
)

START = json.dumps({"type": "start"}).encode()
OVERLOAD_S = int(os.environ.get("FORESOUND_OVERLOAD_S", "120"))
N_CONNECTS = int(os.environ.get("FORESOUND_CONNECTS", "2000"))
PATHS = ("/v1/stream", "/v1/realtime", "/v1/listen")


async def until(server: Any, name: str, value: float) -> None:
    """Wait until a metric has a value; the test's own time limit ends a wait in vain."""
    while await metric(server, name) != value:
        await asyncio.sleep(0.01)


@in_loop
async def test_half_open_connection() -> None:
    """A client whose machine is gone answers nothing: its connection is cut, its place comes back."""
    batcher = FakeBatcher()
    limits = Limits(ping_s=0.1, resume_s=0.3)
    async with serving(batcher, limits=limits) as server, undisturbed(server), raw(server) as (_, writer):
        writer.write(frame(TEXT, START) + frame(BINARY, bytes(BYTES_PER_S)))
        await until(server, "sessions", 2)
        # Nothing more is read or written, as after a cable was pulled; not even a FIN arrives.
        await until(server, "connections", 1)
        await until(server, 'sessions_ended_total{cause="lost"}', 1)
        assert batcher.n_used == 1
        assert await metric(server, "crashes_total") == 0


@in_loop
async def test_client_killed_mid_word(tmp_path: Path) -> None:
    """``foresound stream`` is killed with -9 while it speaks: its session is kept a while, then given up."""
    wav = tmp_path / "clip.wav"
    soundfile.write(wav, np.zeros(60 * 16_000), 16_000)
    async with process("--resume-s", "0.5") as (_, url):
        address: Any = Address(url)
        async with undisturbed(address):
            command = [
                sys.executable,
                "-m",
                "clients.cli",
                "stream",
                "--real-time",
                "--server",
                url,
                str(wav),
            ]
            client = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=DEVNULL, stderr=DEVNULL)
            while (
                await metric(address, "audio_seconds_total") < 2.5
            ):  # the neighbour's two, and some of its own
                await asyncio.sleep(0.02)
            os.kill(client.pid, signal.SIGKILL)
            await client.wait()
            await until(address, "connections", 1)
            assert await metric(address, "sessions") == 2
            await until(address, 'sessions_ended_total{cause="lost"}', 1)
            assert await metric(address, "slots_used") == 1


@in_loop
async def test_stopped_reader() -> None:
    """A client that reads nothing is paused, then cut off; what it missed waits for it."""
    async with (
        serving(FakeBatcher(draft="d" * 5000), limits=Limits(ping_s=0.1)) as server,
        undisturbed(server),
    ):
        async with connected(server, **slow_reader(server)) as client:
            token = (await client.start())["resume_token"]
            with suppress(ConnectionClosed):
                for _ in range(2000):
                    await client.audio(0.25)
            await until(server, "connections", 1)
        async with connected(server, f"?resume_token={token}") as again:
            ready = await again.start(resume_token=token)
            await again.send("stop")
            assert finals(await again.rest()) == expected_texts(ready["samples"] / 16_000)


@in_loop
async def test_slow_reader() -> None:
    """A client that reads a message now and then gets every final; only drafts are left out."""
    async with (
        serving(FakeBatcher(draft="d" * 2000)) as server,
        undisturbed(server),
        connected(server, **slow_reader(server)) as client,
    ):
        await client.start()

        async def speak() -> None:
            for _ in range(200):
                await client.audio(0.25)
            await client.send("stop")

        speaking = asyncio.create_task(speak())
        with suppress(ConnectionClosed):
            while True:
                await client.recv()
                await asyncio.sleep(0.002)
        await speaking
        assert finals(client.received) == expected_texts(50)
        assert client.websocket.close_code == 1000


@in_loop
async def test_burst_at_twenty_times_real_time() -> None:
    """The server reads no more than it may queue, loses nothing, and is ready all the while."""
    batcher, seconds = FakeBatcher(tick_s=0.002), 40
    limits = Limits(queue_s=5)
    async with serving(batcher, limits=limits) as server, undisturbed(server), connected(server) as client:
        await client.start()
        reading = asyncio.create_task(client.rest())
        for _ in range(10 * seconds):
            await client.audio(0.1)
            await asyncio.sleep(0.1 / 20)
        await client.send("stop")
        assert finals(await reading) == expected_texts(seconds)


@pytest.mark.slow
def test_overload_of_two_for_minutes() -> None:
    """Streams bring twice what the model recognises: they are held back evenly, queues stay bounded.

    Two minutes of speech in each stream, at twenty times its pace; FORESOUND_OVERLOAD_S makes it longer.
    """
    asyncio.run(asyncio.wait_for(overload(seconds=OVERLOAD_S), 60 + OVERLOAD_S))


async def overload(*, seconds: int, n_streams: int = 4) -> None:
    batcher = FakeBatcher(tick_s=0.01)  # a piece of 0.1 s of each stream in a tick: ten times speech
    limits = Limits(queue_s=5, max_streams=n_streams)
    most_queued_s, sent_s = 0.0, [0.0] * n_streams
    async with serving(batcher, limits=limits) as server:

        async def stream(number: int) -> list[str]:
            async with connected(server) as client:
                await client.start()
                reading = asyncio.create_task(client.rest())
                for _ in range(10 * seconds):
                    await client.audio(0.1)
                    sent_s[number] += 0.1
                    await asyncio.sleep(0.005)  # twenty times speech
                await client.send("stop")
                return finals(await reading)

        async def watch() -> None:
            nonlocal most_queued_s
            while True:
                most_queued_s = max(most_queued_s, await metric(server, "queued_audio_seconds"))
                assert (await get(server, "/healthz"))[0] == (await get(server, "/readyz"))[0] == 200
                # In step, but for what a stream may have on its way.
                assert max(sent_s) - min(sent_s) < 2 * limits.queue_s
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(watch())
        streams = await asyncio.gather(*(stream(number) for number in range(n_streams)))
        assert not watching.done(), watching.exception()
        watching.cancel()
        assert streams == [expected_texts(seconds)] * n_streams
        assert 2 < most_queued_s <= n_streams * (limits.queue_s + 0.1)


GARBAGE = {
    "reserved bits": b"\xf1\x80\x00\x00\x00\x00",
    "unknown opcode": frame(5, b"?"),
    "no mask": frame(TEXT, START, mask=False),
    "continuation of nothing": frame(CONTINUATION, b"?"),
    "long ping": frame(PING, bytes(126)),
    "torn ping": frame(PING, b"", fin=False),
    "close code 0": frame(CLOSE, b"\0\0"),
    "close of one byte": frame(CLOSE, b"\0"),
    "no frame at all": b"GET / HTTP/1.1\r\n\r\n" * 10,
    "random": random.Random(1).randbytes(1000),
}


@pytest.mark.parametrize("path", PATHS)
@in_loop
async def test_garbage_frames(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is no websocket frame ends its own connection with 1002, without a traceback."""
    async with serving(limits=Limits(max_streams=20)) as server, undisturbed(server):
        for name, data in GARBAGE.items():
            async with raw(server, path) as (reader, writer):
                writer.write(data)
                writer.write_eof()
                assert await close_code(reader) in (1002, 1007, 1009, None), name
        assert await metric(server, "crashes_total") == 0
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


@pytest.mark.parametrize("path", PATHS)
@in_loop
async def test_garbage_messages(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Frames that are no message of the protocol are answered or close the connection; nothing crashes."""
    chance = random.Random(2)
    texts = [
        "",
        "{",
        "[]",
        "null",
        "0",
        '"start"',
        '{"type": []}',
        "{}" * 99,
        "\0",
        "[" * 5000,
        '{"a":' * 5000,
    ]
    async with serving(limits=Limits(max_streams=4)) as server, undisturbed(server):
        for start in (None, json.dumps({"type": "start"})):
            async with raw(server, path) as (reader, writer):
                frames = [frame(TEXT, start.encode())] if start else []
                frames += [frame(TEXT, text.encode()) for text in texts]
                frames += [frame(BINARY, chance.randbytes(chance.randint(0, 99))) for _ in range(60)]
                writer.write(b"".join(frames) + frame(CLOSE, b""))
                await close_code(reader)
        assert await metric(server, "crashes_total") == 0
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


@in_loop
async def test_fragmented_frames() -> None:
    """A message in fragments of a byte, with pings between them, is the same message."""
    async with serving() as server, undisturbed(server), raw(server) as (reader, writer):
        for i, byte in enumerate(START):
            writer.write(frame(CONTINUATION if i else TEXT, bytes([byte]), fin=i == len(START) - 1))
            writer.write(frame(PING, b""))
        audio = bytes(BYTES_PER_S)
        for i in range(0, len(audio), 500):
            is_last = i + 500 >= len(audio)
            writer.write(frame(CONTINUATION if i else BINARY, audio[i : i + 500], fin=is_last))
        writer.write(frame(TEXT, b'{"type": "stop"}'))
        data = await reader.readuntil(b'"done"')
        assert b'"text":"w0 w1 w2 w3"' in data


@in_loop
async def test_endless_fragments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty fragments make no message longer and still are not kept without end: 1009."""
    monkeypatch.setattr(server_module, "_CLOSE_S", 0.2)
    async with serving() as server, undisturbed(server), raw(server) as (reader, writer):
        writer.write(frame(TEXT, b"", fin=False))
        with suppress(ConnectionError):
            for _ in range(20_000):
                writer.write(frame(CONTINUATION, b"", fin=False))
                await writer.drain()
        assert await close_code(reader) == 1009


@in_loop
async def test_oversized_frames() -> None:
    """Whole, in fragments, or only claimed by its head: 1009 before it is in memory; sessions may resume."""
    limits = Limits(message_bytes=100_000)
    claims = frame(BINARY, b"", size=1 << 62)
    async with serving(limits=limits) as server, undisturbed(server):
        fragments = frame(BINARY, bytes(60_000), fin=False) + frame(CONTINUATION, bytes(60_000))
        for data in (
            frame(BINARY, bytes(100_002)),
            fragments,
            claims,
            frame(BINARY, b"", size=(1 << 63) + 1),
        ):
            async with raw(server) as (reader, writer):
                writer.write(frame(TEXT, START) + data)
                assert await close_code(reader) in (1009, 1002)
        await until(server, "sessions", 5)
        assert await metric(server, "crashes_total") == 0


@in_loop
async def test_slowloris_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes that come a byte at a time are cut off in the end, and keep nobody out meanwhile."""
    monkeypatch.setattr(server_module, "_OPEN_S", 0.4)
    monkeypatch.setattr(rest_server, "REQUEST_S", 0.4)
    async with serving(limits=Limits(max_streams=2), vosk_port=0, rest_port=0) as server:
        assert server.vosk_url and server.rest_url
        ports = [server.port, int(server.vosk_url.rsplit(":", 1)[1]), int(server.rest_url.split(":")[2][:-3])]
        head = HANDSHAKE.format(path="/v1/stream", key="x" * 24).encode()

        async def drip(port: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionError):
                for byte in head[:-4]:  # it never comes to an end
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.02)
                    if reader.at_eof():
                        break
                await reader.read()  # returns when the server has closed
            writer.close()

        dripping = [asyncio.create_task(drip(port)) for port in ports for _ in range(40)]
        async with undisturbed(server):
            await asyncio.gather(*dripping)
        assert await metric(server, "crashes_total") == 0


@in_loop
async def test_a_request_whose_body_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that stops half-way is answered with 408, and holds no place."""
    async with serving(limits=Limits(idle_s=0.2), rest_port=0) as server:
        assert server.rest_url
        port = int(server.rest_url.split(":")[2][:-3])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        answer = await reader.readuntil(b"}}")
        assert b" 408 " in answer.splitlines()[0] and b"did not go on for 0.2 s" in answer
        writer.close()
        async with undisturbed(server):
            pass


@pytest.mark.slow
def test_thousands_of_connects_and_disconnects() -> None:
    """At every stage of a conversation, cut or closed: no task, file, thread, place or session stays."""

    async def come_and_go(server: Any, chance: random.Random) -> None:
        stage = chance.randrange(5)
        if stage == 0:  # before the handshake
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(HANDSHAKE.encode()[: chance.randint(0, 60)])
            writer.transport.abort()
            return
        async with raw(server, chance.choice(PATHS)) as (_, writer):
            if stage > 1:
                writer.write(frame(TEXT, START))
            if stage > 2:
                writer.write(frame(BINARY, bytes(3200)))
            if stage > 3:
                writer.write(frame(CLOSE, b"\x03\xe8"))
            if chance.random() < 0.5:
                await writer.drain()

    async def run() -> None:
        chance = random.Random(3)
        limits = Limits(max_streams=64, resume_s=0.05)
        async with serving(FakeBatcher(n_slots=64), limits=limits) as server:

            def held() -> tuple[int, int, int]:
                n_files = len(os.listdir("/proc/self/fd")) if Path("/proc").exists() else 0
                return n_files, len(asyncio.all_tasks()), threading.active_count()

            async def many(n: int) -> None:
                for _ in range(n // 20):
                    await asyncio.gather(*(come_and_go(server, chance) for _ in range(20)))
                    await until_empty(server)
                while len(server._connections) or not server._registry.has_room(n_streams=64):
                    await asyncio.sleep(0.01)

            await many(100)
            before = held()
            await many(N_CONNECTS)
            while any(now > then for now, then in zip(held(), before, strict=True)):
                await asyncio.sleep(0.05)
            async with undisturbed(server):
                pass
            assert await metric(server, "crashes_total") == 0

    asyncio.run(asyncio.wait_for(run(), 60 + N_CONNECTS / 10))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that bounds file descriptors")
def test_no_file_descriptors_left() -> None:
    """More connections than the process may have: streams go on, and when some leave others get in."""
    within = ["sh", "-c", 'ulimit -n 48 && exec "$0" "$@"']

    async def run() -> None:
        async with process("--max-streams", "4", within=within) as (running, url):
            address: Any = Address(url)
            async with undisturbed(address):
                crowd = [await asyncio.open_connection("127.0.0.1", address.port) for _ in range(100)]
                await asyncio.sleep(0.2)
                for _, writer in crowd:
                    writer.transport.abort()
            async with undisturbed(address):
                assert await metric(address, "crashes_total") == 0
            running.terminate()
            _, log = await running.communicate()  # it is long, and unread it would keep the pipe open
            assert running.returncode == 0 and b"Too many open files" in log

    asyncio.run(asyncio.wait_for(run(), 60))


@in_loop
async def test_clocks_that_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock leaps by days, forth and back: no session ends, expires or loses a word for it."""
    real, jumps = time.time, random.Random(4)
    monkeypatch.setattr(time, "time", lambda: real() + jumps.uniform(-1e6, 1e6))
    limits = Limits(idle_s=5, session_s=60, resume_s=5, key_starts=100)
    async with serving(limits=limits) as server:
        async with connected(server) as client:
            token = (await client.start())["resume_token"]
            for _ in range(20):
                await client.audio(0.1)
                await asyncio.sleep(0.005)
            await client.until("final")
            client.cut()
        await asyncio.sleep(0.05)
        async with connected(server, f"?resume_token={token}") as client:
            ready = await client.start(resume_token=token)
            assert ready["resumed"]
            await client.websocket.send(bytes(4 * BYTES_PER_S - ready["bytes"]))
            await client.send("stop")
            assert finals(await client.rest()) == expected_texts(4)


def test_no_decision_depends_on_the_wall_clock() -> None:
    """Only what is told to people: creation times in Deepgram's metadata and of OpenAI's models."""
    uses = []
    for folder in ("asr", "service", "clients"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text()
            if any(name in text for name in ("time.time(", "datetime.now(", "utcnow(")):
                uses.append(f"{folder}/{file.relative_to(ROOT / folder)}")
    assert sorted(uses) == ["service/protocol/deepgram.py", "service/rest.py"]
