"""OpenAI's REST interface where it cannot do what is asked: wrong requests, strangers, no room, failures."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.config import Limits, ServerConfig
from service.server import Server
from tests.fake_batcher import FakeBatcher
from tests.rest_client import PATH, client, http, httpx2, openai_error, sdk, text, transcribe, wav
from tests.serving import in_loop, metric, serving


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": "diarized_json"}, "response_format", "Supported values are: 'json'"),
        ({"stream": "true", "response_format": "srt"}, "stream", "leave one out"),
        ({"stream": "perhaps"}, "stream", "'true', 'false'"),
        ({"timestamp_granularities[]": "letter"}, "timestamp_granularities", "'word', 'segment'"),
        ({"language": "xx"}, "language", "language must be one of en"),
        ({"keywords[]": "a" * 101}, "keywords", "at most 100"),
    ],
)
def test_wrong_fields(fields: dict[str, str], param: str, message: str) -> None:
    """An error of OpenAI's form that names the field."""

    @in_loop
    async def run() -> None:
        async with serving(rest_port=0) as server, http(server) as client:
            response = await client.post(PATH, data=fields, files={"file": ("a.wav", wav(0.5))})
            error = response.json()["error"]
            assert (response.status_code, error["type"]) == (400, "invalid_request_error")
            assert error["param"] == param and message in error["message"]

    run()


@in_loop
async def test_requests_that_are_none() -> None:
    """No form, no file, another path, another method: JSON errors, never a page or a traceback."""
    async with serving(rest_port=0) as server, http(server) as client:
        for arguments in ({}, {"json": {"file": "x"}}, {"data": {"file": "x"}}, {"files": {"other": b"x"}}):
            response = await client.post(PATH, **arguments)  # type: ignore[arg-type]
            assert response.status_code == 400 and response.json()["error"]["param"] == "file"
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        assert (await client.post(PATH, content=b"--y", headers=headers)).status_code == 400
        response = await client.get(PATH)
        assert response.status_code == 405 and response.json()["error"]["type"] == "invalid_request_error"
        assert (await client.post("/chat/completions")).status_code == 404


@in_loop
async def test_recordings_that_are_too_long() -> None:
    """413, whether the length is announced or not."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        for _ in range(20):
            yield bytes(1 << 20)

    async with serving(rest_port=0, upload_bytes=1 << 20) as server, http(server) as client:
        response = await client.post(PATH, files={"file": ("a.wav", bytes(3 << 20))})
        assert (response.status_code, response.json()["error"]["param"]) == (413, "file")
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        response = await client.post(PATH, content=chunks(), headers=headers)
        assert response.status_code == 413


@in_loop
async def test_keys_and_origins(tmp_path: Path) -> None:
    """The same tokens and the same pages as for websockets."""
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    async with serving(rest_port=0, token_file=tokens, allow_origins=("https://friend.example",)) as server:
        async with sdk(server, key="wrong") as client:
            with pytest.raises(openai_error("AuthenticationError"), match="incorrect API key"):
                await client.models.list()
            with pytest.raises(openai_error("AuthenticationError")):
                await transcribe(client)
        async with sdk(server, key="secret") as client:
            assert (await transcribe(client)).text == text(2.5)
        async with http(server, Authorization="Bearer secret") as client:
            assert (
                await client.get("/models", headers={"Origin": "https://evil.example"})
            ).status_code == 403
            friendly = await client.get("/models", headers={"Origin": "https://friend.example"})
            assert friendly.headers["access-control-allow-origin"] == "https://friend.example"


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
@in_loop
async def test_tls(tmp_path: Path) -> None:
    """With the server's certificate, and on any of the machine's addresses."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} "
        f"-out {cert} -days 2 -subj /CN=localhost"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    async with serving(rest_port=0, tls_cert=cert, tls_key=key, host="", no_auth=True) as server:
        assert str(server.rest_url).startswith("https://localhost:")
        async with httpx2.AsyncClient(base_url=str(server.rest_url), verify=False) as client:
            assert (await client.get("/models")).json()["data"][0]["id"] == "fake"


@in_loop
async def test_places_are_shared_with_the_websockets() -> None:
    """A full server says when to come back, and a place is free again after each request."""
    batcher = FakeBatcher(n_slots=1)
    async with serving(batcher, rest_port=0, limits=Limits(max_streams=1)) as server:
        async with sdk(server) as client, http(server) as plain:
            for is_streamed in (False, True, False):
                result = await transcribe(client, stream=is_streamed)
                if is_streamed:
                    async for _ in result:
                        pass
            batcher.hold()
            waiting = asyncio.create_task(transcribe(client))
            while not batcher.n_used:
                await asyncio.sleep(0.01)
            response = await plain.post(PATH, files={"file": ("a.wav", wav(1))})
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")
            assert response.json()["error"]["code"] == "rate_limit_exceeded"
            batcher.release()
            assert (await waiting).text == text(2.5)
        assert await metric(server, 'sessions_ended_total{outcome="stop"}') == 0
        assert await metric(server, 'sessions_ended_total{cause="stop"}') == 4


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_frees_its_place(is_streamed: bool) -> None:
    """Its recording is not recognised to the end."""

    @in_loop
    async def run() -> None:
        batcher = FakeBatcher(n_slots=1, tick_s=0.02)
        limits = Limits(max_streams=1)
        async with serving(batcher, rest_port=0, limits=limits) as server, http(server) as client:
            fields = {"stream": "true"} if is_streamed else {}
            asking = asyncio.create_task(client.post(PATH, data=fields, files={"file": ("a.wav", wav(60))}))
            while not batcher.n_used:
                await asyncio.sleep(0.01)
            asking.cancel()
            while batcher.n_used or not server._registry.has_room():
                await asyncio.sleep(0.01)

    run()


@in_loop
async def test_a_server_without_its_model() -> None:
    """503 until it is loaded."""
    async with Server(ServerConfig(port=0, rest_port=0)) as server, http(server) as client:
        response = await client.get("/models")
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        server.open_for(FakeBatcher(), model="fake")
        assert (await client.get("/models")).status_code == 200


@in_loop
async def test_running_requests_end_when_the_server_shuts_down() -> None:
    """What has begun is answered, what comes then is not taken."""
    batcher = FakeBatcher(tick_s=0.02)
    async with serving(batcher, rest_port=0, limits=Limits(drain_s=5)) as server, sdk(server) as client:
        asking = asyncio.create_task(transcribe(client, 10))
        while not batcher.n_used:
            await asyncio.sleep(0.01)
        await server.drain()
        assert (await asking).text == text(10)
        with pytest.raises(openai_error("APIConnectionError")):
            await transcribe(client)


@in_loop
async def test_a_failing_model_is_a_server_error() -> None:
    """500 in OpenAI's form before the first event, an event with the error after it."""

    class Broken(FakeBatcher):
        async def open(self, *arguments: Any) -> Any:
            slot = await super().open(*arguments)
            slot.tick = lambda: [slot.close(), *slot._fail(b"\xbe" * 4)][1:]  # type: ignore[method-assign]
            return slot

    async with serving(Broken(), rest_port=0) as server, sdk(server) as client:
        with pytest.raises(openai_error("InternalServerError"), match="recogniser failed"):
            await transcribe(client)


@in_loop
async def test_a_damaged_recording_is_a_bad_request() -> None:
    """Whether it is found out at once or in the middle, before or after the first words."""
    for data in (b"nothing", wav(1)[:40]):
        for is_streamed in (False, True):
            async with client() as sdk:
                with pytest.raises(openai_error("BadRequestError"), match="the file") as caught:
                    await sdk.audio.transcriptions.create(
                        file=("a.wav", data), model="whisper-1", stream=is_streamed
                    )
                assert caught.value.body["param"] == "file"
