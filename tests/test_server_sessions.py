"""Sessions over real websockets with a fake model: bad input, flow control, limits, crashes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from service import connection, live
from service.config import Limits
from service.protocol import native
from service.server import Server
from tests.fake_batcher import BAD_AUDIO, BROKEN_MODEL, FakeBatcher, expected_texts
from tests.serving import (
    BYTES_PER_S,
    Client,
    connected,
    finals,
    in_loop,
    kinds,
    metric,
    serving,
    slow_reader,
    until_empty,
)


async def transcribe(server: Server, seconds: float, *, block_s: float = 0.1) -> list[dict[str, Any]]:
    """Everything that a well-behaved client gets."""
    async with connected(server) as client:
        await client.start()
        for _ in range(round(seconds / block_s)):
            await client.audio(block_s)
        await client.send("stop")
        messages = await client.rest()
        assert client.websocket.close_code == 1000
        return messages


async def works(server: Server) -> bool:
    """Whether another client is served as if nothing had happened."""
    return finals(await transcribe(server, 2)) == expected_texts(2)


@in_loop
async def test_a_stream_from_start_to_done() -> None:
    """Partials while the audio comes, finals with contiguous numbers, done, close 1000."""
    batcher = FakeBatcher()
    async with serving(batcher) as server:
        async with connected(server) as client:
            ready = await client.start(
                sample_rate=8000, encoding="mulaw", channels=2, latency="low", language="en"
            )
            assert ready["settings"]["chunk_ms"] == 160 and not ready["resumed"]
            for _ in range(25):
                await client.websocket.send(bytes(1600))
            await client.send("ping", id=7)
            await client.send("flush")
            await client.until("flushed")
            await client.send("stop")
            await client.rest()
            assert client.websocket.close_code == 1000
        assert finals(client.received) == expected_texts(2.5)
        numbers = [message["seq"] for message in client.received if "seq" in message]
        assert numbers == list(range(1, len(numbers) + 1))
        assert {"partial", "ack", "pong", "speech_started", "speech_ended"} <= set(kinds(client.received))
        done = client.received[-1]
        assert (done["type"], done["audio_s"], done["reason"]) == ("done", 2.5, "stop")
        assert batcher.n_used == 0
        assert await metric(server, "audio_seconds_total") == 2.5
        assert await metric(server, 'sessions_ended_total{cause="stop"}') == 1
        assert await metric(server, 'messages_received_total{type="audio"}') == 25
        assert await metric(server, 'messages_sent_total{type="speech_started"}') == 1
        assert await metric(server, 'messages_sent_total{type="final"}') == len(finals(client.received))


@in_loop
async def test_streams_do_not_mix() -> None:
    """Eight at a time, each with another length and other blocks, all get exactly their own finals."""
    async with serving() as server:
        lengths = [n * 0.7 for n in range(1, 9)]
        found = await asyncio.gather(*(transcribe(server, s, block_s=s / 7) for s in lengths))
        assert [finals(messages) for messages in found] == [expected_texts(s) for s in lengths]


@pytest.mark.parametrize(
    ("frame", "code", "field"),
    [
        (b"\0\0", "not_started", None),
        ('{"type": "flush"}', "not_started", None),
        ('{"type": "start", "sample_rate": 4000}', "invalid_field", "sample_rate"),
        ('{"type": "start", "encoding": "mp3"}', "invalid_field", "encoding"),
        ('{"type": "start", "language": "xx"}', "invalid_field", "language"),
        ("{", "invalid_json", None),
        ("[1]", "not_an_object", None),
        ('{"type": "strat"}', "unknown_type", None),
    ],
)
@in_loop
async def test_a_bad_frame_before_start_is_answered_and_forgotten(frame: Any, code: str, field: Any) -> None:
    """The error says what was wrong; after it the connection works as if nothing had happened."""
    async with serving() as server, connected(server) as client:
        await client.websocket.send(frame)
        error = await client.until("error")
        assert (error["code"], error["fatal"], error.get("field")) == (code, False, field)
        await client.start()
        await client.audio(1)
        await client.send("stop")
        assert finals(await client.rest()) == expected_texts(1)


@in_loop
async def test_bad_frames_in_a_stream_change_nothing() -> None:
    """Odd byte counts, empty frames, a second start and nonsense between good audio; audio after stop."""
    async with serving() as server:
        async with connected(server) as client:
            await client.start()
            for bad in (b"123", b"", "{", '{"type": "start"}', '{"type": 1}', '{"type": "ping", "id": {}}'):
                await client.audio(0.25)
                await client.websocket.send(bad)
            await client.send("stop")
            await client.audio(1)
            messages = await client.rest()
        codes = [message["code"] for message in messages if message["type"] == "error"]
        assert codes == [
            "odd_length",
            "invalid_json",
            "already_started",
            "unknown_type",
            "invalid_field",
            "stopping",
        ]
        assert finals(messages) == expected_texts(1.5)
        assert messages[-1]["audio_s"] == 1.5
        assert await metric(server, 'errors_total{code="odd_length"}') == 1


@in_loop
async def test_more_than_fifty_errors_are_too_many() -> None:
    """Then what was said becomes final and the connection is closed with 4429."""
    async with serving() as server:
        async with connected(server) as client:
            await client.start()
            await client.audio(1)
            for _ in range(51):
                await client.websocket.send("{")
            messages = await client.rest()
            assert client.websocket.close_code == 4429
        assert finals(messages) == expected_texts(1)
        assert messages[-1]["code"] == "too_many_errors" and messages[-1]["fatal"]
        assert await works(server)


@in_loop
async def test_invalid_utf8_and_huge_frames_close_the_connection() -> None:
    """1007 and 1009 by the websocket protocol; nobody else notices, and the session can be resumed."""
    async with serving() as server:
        async with connected(server) as client:
            ready = await client.start()
            await client.audio(1)
            await client.until("ack")
            async with client.websocket.send_context():
                client.websocket.protocol.writes.append(
                    Frame(Opcode.TEXT, b'{"type": "\xff"}').serialize(mask=True)
                )
            assert await client.close_code() == 1007
        client = Client(await connect(server.stream_url))
        await client.start(resume_token=ready["resume_token"], last_seq=0)
        await client.websocket.send(bytes(100 << 20))
        assert await client.close_code() == 1009
        async with connected(server) as client:
            assert (await client.start(resume_token=ready["resume_token"]))["bytes"] == BYTES_PER_S
            await client.send("stop")
            assert finals(await client.rest()) == expected_texts(1)
        assert await works(server)


@in_loop
async def test_no_audio_at_all() -> None:
    """Stop right after start: done, with nothing in it."""
    async with serving() as server:
        assert await transcribe(server, 0) == [
            {"type": "done", "audio_s": 0.0, "rtf": 0.0, "reason": "stop", "seq": 1}
        ]


@in_loop
async def test_a_thousand_flushes() -> None:
    """Each is answered in order, also when they come faster than they are, and nobody else waits."""
    batcher = FakeBatcher()
    async with serving(batcher) as server:
        async with connected(server) as client:
            await client.start()
            batcher.hold()
            await client.audio(1)
            sending = asyncio.gather(*(client.send("flush") for _ in range(1000)))
            await asyncio.sleep(0.05)
            (slot,) = batcher.slots
            assert len(slot._work) <= live.MAX_WAITING + 2
            batcher.release()
            await sending
            for _ in range(1000):
                await client.until("flushed")
            await client.send("stop")
            await client.rest()
        assert finals(client.received) == expected_texts(1)
        assert await works(server)


@in_loop
async def test_bad_audio_closes_with_4400() -> None:
    """What was heard before is final; the error is fatal."""
    async with serving() as server:
        async with connected(server) as client:
            await client.start(encoding="flac")
            await client.audio(1)
            await client.websocket.send(BAD_AUDIO)
            messages = await client.rest()
            assert client.websocket.close_code == 4400
        assert finals(messages) == expected_texts(1)
        assert messages[-1]["code"] == "bad_audio"
        assert await works(server)


@in_loop
async def test_a_broken_model_closes_with_4500() -> None:
    """Committed text becomes final; other streams go on."""
    async with serving() as server, connected(server) as other, connected(server) as client:
        await other.start()
        await client.start()
        await client.audio(0.75)
        await client.websocket.send(BROKEN_MODEL)
        messages = await client.rest()
        assert client.websocket.close_code == 4500
        assert finals(messages) == expected_texts(0.75)
        assert messages[-1]["code"] == "model_error"
        await other.audio(1)
        await other.send("stop")
        assert finals(await other.rest()) == expected_texts(1)


@pytest.mark.parametrize("where", ["reader", "writer", "outputs"])
@in_loop
async def test_a_crash_closes_one_session_and_is_logged_once(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Close 4500, one traceback in the log, and everybody else goes on."""
    async with serving() as server, connected(server) as client, connected(server) as other:
        await client.start()
        await client.audio(0.5)
        await client.until("partial")
        await other.start()
        with monkeypatch.context() as patch:
            if where == "outputs":
                patch.setattr("service.session.Session.deliver", crash)
            else:
                patch.setattr(native, {"reader": "parse", "writer": "encode"}[where], crash)
            await client.audio(0.5)
            assert await client.close_code() == 4500
        assert [record.getMessage().split()[2] for record in caplog.records] == ["crashed"]
        assert await metric(server, "crashes_total") == 1
        await other.audio(1)
        await other.send("stop")
        assert finals(await other.rest()) == expected_texts(1)


def crash(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("a fault of ours")


@in_loop
async def test_a_fast_upload_is_paced() -> None:
    """Audio that waits for the model stays near the limit however fast it is sent, and none is lost."""
    batcher = FakeBatcher(n_slots=1, tick_s=0.002)
    most = 0.0
    async with serving(batcher, limits=Limits(queue_s=5)) as server:
        async with connected(server) as client:
            await client.start()

            async def upload() -> None:
                for _ in range(120):
                    await client.audio(1)
                await client.send("stop")

            sending = asyncio.create_task(upload())
            while client.received[-1]["type"] != "done":
                await client.recv()
                most = max([most, *(slot.queued_s for slot in batcher.slots)])
            await sending
        assert finals(client.received) == expected_texts(120)
        assert 5 <= most <= 6


@in_loop
async def test_a_held_model_does_not_look_like_a_silent_client() -> None:
    """While the server does not read, the client is neither idle nor gone, however long it takes."""
    batcher = FakeBatcher()
    limits = Limits(queue_s=5, idle_s=0.3, ping_s=0.15)
    async with serving(batcher, limits=limits) as server, connected(server) as client:
        await client.start()
        batcher.hold()
        for _ in range(8):
            await client.audio(1)
        await asyncio.sleep(0.7)
        assert not client.websocket.close_code
        batcher.release()
        await client.send("stop")
        assert finals(await client.rest()) == expected_texts(8)


@in_loop
async def test_a_slow_reader_gets_every_final_and_few_partials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partials that could not be sent are replaced by newer ones; finals wait, and so does reading."""
    monkeypatch.setattr(live, "MAX_WAITING", 20)
    seconds = 200
    async with serving(FakeBatcher(draft="d" * 5000)) as server:
        async with connected(server, **slow_reader(server)) as client:
            await client.start(words=False)
            client.websocket.transport.pause_reading()

            async def upload() -> None:
                for _ in range(4 * seconds):
                    await client.audio(0.25)
                await client.send("stop")

            sending = asyncio.create_task(upload())
            await asyncio.sleep(0.3)
            (session,) = server._registry
            assert live.MAX_WAITING <= session.session.n_waiting <= 2 * live.MAX_WAITING + 10
            client.websocket.transport.resume_reading()
            messages = await client.rest()
            await sending
        assert finals(messages) == expected_texts(seconds)
        assert kinds(messages).count("partial") < 3 * seconds


@in_loop
async def test_a_reader_that_stops_is_cut_off_but_may_resume() -> None:
    """A connection that takes nothing for a while is as good as lost."""
    async with serving(FakeBatcher(draft="d" * 5000), limits=Limits(ping_s=0.05)) as server:
        async with connected(server, **slow_reader(server)) as client:
            ready = await client.start(words=False)
            client.websocket.transport.pause_reading()
            for _ in range(200):
                await client.audio(0.25)
            (session,) = server._registry
            while session.is_attached:
                await asyncio.sleep(0.01)
            client.websocket.transport.resume_reading()
            await client.rest()
        async with connected(server) as again:
            await again.start(resume_token=ready["resume_token"], last_seq=client.last_seq)
            await again.send("stop")
            await again.rest()
            texts = finals(client.received + again.received)
            assert texts == expected_texts(again.received[-1]["audio_s"])


@in_loop
async def test_a_flood_without_reading_answers_is_paused() -> None:
    """Pings that nobody collects the pongs of do not fill the server's memory."""
    async with serving() as server, connected(server, **slow_reader(server)) as client:
        await client.start()
        client.websocket.transport.pause_reading()
        sending = asyncio.create_task(flood(client))
        await asyncio.sleep(0.3)
        (session,) = server._registry
        assert session.session.n_waiting <= live.MAX_WAITING + 1 and not sending.done()
        sending.cancel()
        client.cut()


async def flood(client: Client) -> None:
    while True:
        await client.send("ping", id="x" * 100)


@in_loop
async def test_an_idle_session_ends_in_order() -> None:
    """Finals, the error, done with its reason, close 4408; a ping is a sign of life."""
    async with serving(limits=Limits(idle_s=0.3)) as server:
        async with connected(server) as client:
            await client.start()
            await client.audio(0.5)
            for _ in range(4):
                await asyncio.sleep(0.1)
                await client.send("ping")
            messages = await client.rest()
            assert client.websocket.close_code == 4408
        assert finals(messages) == expected_texts(0.5)
        assert kinds(messages)[-2:] == ["error", "done"]
        assert (messages[-2]["code"], messages[-1]["reason"]) == ("idle_timeout", "idle")
        await until_empty(server)


@in_loop
async def test_a_connection_must_start_in_time() -> None:
    """Pings do not put it off, and the place is free again."""
    async with serving(limits=Limits(start_s=0.4, max_streams=1)) as server:
        async with connected(server) as client:
            for _ in range(3):
                await asyncio.sleep(0.1)
                await client.send("ping")
            messages = await client.rest()
            assert (messages[-1]["code"], client.websocket.close_code) == ("idle_timeout", 4408)
        assert await works(server)


@in_loop
async def test_a_session_ends_at_its_limit() -> None:
    """However busy it is: finals, error, done, close 4410."""
    async with serving(limits=Limits(session_s=0.2)) as server, connected(server) as client:
        await client.start()
        await client.audio(0.5)
        messages = await client.rest()
        assert client.websocket.close_code == 4410
        assert finals(messages) == expected_texts(0.5)
        assert (messages[-2]["code"], messages[-1]["reason"]) == ("session_limit", "session_limit")


@in_loop
async def test_a_client_that_does_not_answer_is_cut_off() -> None:
    """A half-open connection is noticed by its missing pong; one that answers stays."""
    limits = Limits(ping_s=0.15)
    async with serving(limits=limits) as server, connected(server) as deaf, connected(server) as quiet:
        await deaf.start()
        await quiet.start()
        deaf.websocket.transport.pause_reading()
        while sum(session.is_attached for session in server._registry) == 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        await quiet.send("stop")
        assert await quiet.close_code() == 1000
        deaf.cut()


def test_messages_on_the_wire_are_compact_json() -> None:
    """No blanks, no escapes: what is said in any script takes its UTF-8 length."""
    assert connection.WRITE_BUFFER < 1 << 16
    text = native.encode(native.Outgoing(native.Pong("ж")), words=True)
    assert text == json.dumps({"type": "pong", "id": "ж"}, ensure_ascii=False, separators=(",", ":"))
