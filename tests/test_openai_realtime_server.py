"""OpenAI Realtime over real websockets: handshake, keys, limits, a session's way through the server."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from service.config import Limits
from service.server import Server
from tests.fake_batcher import BROKEN_MODEL, FakeBatcher
from tests.serving import get, in_loop, metric, serving, until_empty

PATH = "/v1/realtime?intent=transcription"
MANUAL = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}


class Client:
    """One websocket; events are dicts."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket

    async def send(self, kind: str, **fields: Any) -> None:
        await self.websocket.send(json.dumps({"type": kind, **fields}))

    async def speak(self, seconds: float, *, begin: bytes = b"") -> None:
        data = (begin + bytes(int(seconds * 48_000)))[: int(seconds * 48_000)]
        await self.send("input_audio_buffer.append", audio=base64.b64encode(data).decode())

    async def recv(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(await self.websocket.recv())
        return event

    async def until(self, kind: str) -> dict[str, Any]:
        while not (event := await self.recv())["type"].endswith(kind):
            assert event["type"] != "error", event
        return event

    async def rest(self) -> list[dict[str, Any]]:
        events = []
        try:
            while True:
                events.append(await self.recv())
        except ConnectionClosed:
            return events


@asynccontextmanager
async def connected(server: Server, path: str = PATH, **options: Any) -> AsyncIterator[Client]:
    url = server.stream_url.replace("/v1/stream", path)
    async with connect(url, compression=None, max_size=None, **options) as websocket:
        yield Client(websocket)


async def refusal(server: Server, path: str = PATH, **options: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(InvalidStatus) as caught:
        async with connected(server, path, **options):
            pass
    response = caught.value.response
    return response.status_code, json.loads(response.body)["error"]


@in_loop
async def test_the_server_speaks_first() -> None:
    """session.created comes before the client says anything: some clients wait for it."""
    async with serving() as server, connected(server) as client:
        created = await client.recv()
        assert created["type"] == "session.created"
        assert created["session"]["object"] == "realtime.transcription_session"


@in_loop
async def test_deltas_come_while_somebody_speaks() -> None:
    """Before any commit, and before the end of speech."""
    async with serving() as server, connected(server) as client:
        await client.send("session.update", session=MANUAL)
        await client.speak(0.25)
        assert (await client.until("delta"))["delta"] == "w0"
        await client.speak(0.25)
        assert (await client.until("delta"))["delta"] == " w1"
        await client.send("input_audio_buffer.commit")
        assert (await client.until("completed"))["transcript"] == "w0 w1"
        assert await metric(server, "slots_used") == 1
        assert await metric(server, "audio_seconds_total") == 0.5


@in_loop
async def test_keys_before_the_upgrade(tmp_path: Path) -> None:
    """A bearer token or, from a browser, a subprotocol; without one there is HTTP 401 with OpenAI's body."""
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    async with serving(token_file=tokens) as server:
        for options in (
            {},
            {"additional_headers": {"Authorization": "Bearer wrong"}},
            {"subprotocols": ["realtime", "openai-insecure-api-key.wrong"]},
        ):
            status, error = await refusal(server, **options)
            assert (status, error["code"], error["type"]) == (401, "invalid_api_key", "invalid_request_error")
        async with connected(server, additional_headers={"Authorization": "Bearer secret"}) as client:
            assert (await client.recv())["type"] == "session.created"
        offered = ["realtime", "openai-insecure-api-key.secret", "openai-beta.realtime-v1"]
        async with connected(server, subprotocols=offered) as client:
            assert client.websocket.subprotocol == "realtime"
            assert "input_audio_format" in (await client.recv())["session"]


@in_loop
async def test_refusals_have_openai_s_body() -> None:
    """A wrong intent, a full server, and a plain GET that asks why."""
    async with serving(limits=Limits(max_streams=1)) as server:
        status, error = await refusal(server, "/v1/realtime?intent=conversation")
        assert (status, error["code"]) == (400, "invalid_intent")
        async with connected(server):
            status, error = await refusal(server)
            assert (status, error["code"], error["type"]) == (503, "rate_limit_exceeded", "server_error")
            assert (await get(server, PATH))[0] == 503
        assert (await get(server, PATH))[0] == 426
        assert await metric(server, 'refused_total{reason="full"}') == 1


@in_loop
async def test_the_beta_dialect_by_its_header() -> None:
    """The header that beta clients send makes the session's form theirs."""
    async with serving() as server:
        headers = {"OpenAI-Beta": "realtime=v1"}
        async with connected(server, additional_headers=headers) as client:
            assert (await client.recv())["session"]["input_audio_format"] == "pcm16"
            await client.speak(0.25)
            await client.send("input_audio_buffer.commit")
            created = await client.until("conversation.item.created")
            assert created["item"]["role"] == "user"


@in_loop
async def test_large_appends() -> None:
    """A message may be larger here than on other paths; one beyond the protocol's limit closes with 1009."""
    async with serving(limits=Limits(max_streams=2)) as server:
        async with connected(server) as client:
            await client.send("session.update", session=MANUAL)
            await client.speak(60)
            await client.send("input_audio_buffer.commit")
            completed = await client.until("completed")
            assert len(completed["words"]) == 240 and completed["usage"]["seconds"] == 60
        # Not in a context: this library cannot close a connection again that broke in the middle of a frame.
        client = Client(await connect(server.stream_url.replace("/v1/stream", PATH), compression=None))
        await client.websocket.send("x" * (22 << 20))
        await client.rest()
        assert client.websocket.close_code == 1009


@in_loop
async def test_a_client_that_says_nothing_stays() -> None:
    """Neither the time to start nor the idle time of the native protocol hold here."""
    async with serving(limits=Limits(start_s=0.05, idle_s=0.05)) as server, connected(server) as client:
        await client.recv()
        await asyncio.sleep(0.2)
        await client.speak(0.25)
        assert (await client.until("delta"))["delta"] == "w0"
        await asyncio.sleep(0.2)
        await client.speak(0.25)
        assert (await client.until("delta"))["delta"] == " w1"


@in_loop
async def test_a_lost_connection_frees_its_place() -> None:
    """There is nothing to come back to, as the protocol knows no resuming."""
    async with serving(limits=Limits(max_streams=1)) as server:
        for _ in range(2):
            async with connected(server) as client:
                await client.speak(0.25)
                await client.until("delta")
                client.websocket.transport.abort()
            await until_empty(server)


@in_loop
async def test_settings_change_while_the_model_is_busy() -> None:
    """The new stream waits for the old one's words; both are told, and the slot is one."""
    batcher = FakeBatcher(n_slots=1, tick_s=0.01)
    async with serving(batcher, limits=Limits(max_streams=1)) as server, connected(server) as client:
        await client.send("session.update", session=MANUAL)
        for _ in range(4):
            await client.speak(0.25)
        keywords = {"transcription": {"keywords": ["Ann"]}}
        await client.send("session.update", session={"type": "transcription", "audio": {"input": keywords}})
        await client.speak(0.25)
        await client.send("input_audio_buffer.commit")
        assert (await client.until("completed"))["transcript"] == "w0 w1 w2 w3 w0"
        assert [settings.hotwords for _, settings in batcher.opened] == [(), ("Ann",)]
        assert await metric(server, "sessions_started_total") == 1


@in_loop
async def test_a_language_that_only_the_model_refuses() -> None:
    """An error that names the parameter; the same connection works with another language."""
    async with serving() as server, connected(server) as client:
        wrong = {"input": {"transcription": {"language": "xx"}}}
        await client.send("session.update", session={"type": "transcription", "audio": wrong})
        await client.speak(0.1)
        await client.until("session.updated")
        error = await client.recv()
        assert error["error"]["param"] == "session.audio.input.transcription.language"
        right = {"input": {"transcription": {"language": "en"}}}
        await client.send("session.update", session={"type": "transcription", "audio": right})
        await client.until("session.updated")
        await client.speak(0.25)
        assert (await client.until("delta"))["delta"] == "w0"


@in_loop
async def test_a_broken_model_closes_with_1011() -> None:
    """After an error of the server's kind; clients reconnect on this code."""
    async with serving() as server, connected(server) as client:
        await client.speak(0.25, begin=BROKEN_MODEL)
        events = await client.rest()
        assert events[-1]["error"]["type"] == "server_error"
        assert client.websocket.close_code == 1011


@in_loop
async def test_a_crash_closes_with_1011(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours in the protocol itself ends this connection and no other."""
    async with serving() as server, connected(server) as client, connected(server) as other:
        await client.recv()
        with monkeypatch.context() as patch:
            patch.setattr("service.protocol.openai_realtime._parsed", lambda _: 1 / 0)
            await client.speak(0.1)
            await client.rest()
            assert client.websocket.close_code == 1011
        await other.speak(0.25)
        assert (await other.until("delta"))["delta"] == "w0"


@in_loop
async def test_shutting_down() -> None:
    """What was said becomes an item, then close 1001; a client that only waits is closed at once."""
    limits = Limits(drain_s=0.1)
    async with serving(limits=limits) as server, connected(server) as client, connected(server) as waiting:
        await waiting.recv()
        await client.speak(0.5)
        await client.until("delta")
        draining = asyncio.create_task(server.drain())
        assert await waiting.rest() == []
        assert waiting.websocket.close_code == 1001
        events = await client.rest()
        assert [each["transcript"] for each in events if "transcript" in each] == ["w0 w1"]
        assert client.websocket.close_code == 1001
        await draining


@in_loop
async def test_an_old_session_is_closed() -> None:
    """With the error that OpenAI has for it."""
    async with serving(limits=Limits(session_s=0.2)) as server, connected(server) as client:
        await client.speak(0.25)
        events = await client.rest()
        codes = [each["error"]["code"] for each in events if each["type"] == "error"]
        assert codes == ["session_expired"] and client.websocket.close_code == 1001


@in_loop
async def test_errors_are_counted() -> None:
    """Replies of the protocol itself are in the metrics like any other error."""
    async with serving() as server, connected(server) as client:
        await client.send("nonsense")
        await client.recv()
        assert (await client.recv())["type"] == "error"
        assert await metric(server, 'errors_total{code="invalid_value"}') == 1
