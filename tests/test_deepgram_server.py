"""Deepgram's path of a real server: refusals, keys, limits, and real speech in containers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import soundfile
import soxr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from service.batcher import Batcher
from service.config import Limits, ServerConfig
from service.server import Server
from tests.serving import BYTES_PER_S, get, in_loop, serving, until_empty
from tests.test_compressed import contained_samples

RAW = "encoding=linear16&sample_rate=16000"


def listen(server: Server, query: str = RAW, **options: Any) -> Any:
    return connect(f"ws://127.0.0.1:{server.port}/v1/listen?{query}", compression=None, **options)


async def rest(websocket: ClientConnection) -> tuple[list[dict[str, Any]], int, str]:
    messages = []
    try:
        while True:
            messages.append(json.loads(await websocket.recv()))
    except ConnectionClosed as error:
        assert error.rcvd is not None
        return messages, error.rcvd.code, error.rcvd.reason


async def refusal(server: Server, query: str = RAW, **options: Any) -> tuple[int, dict[str, Any], Any]:
    with pytest.raises(InvalidStatus) as caught:
        async with listen(server, query, **options):
            pass
    response = caught.value.response
    return response.status_code, json.loads(response.body), response.headers


@in_loop
async def test_contradictions_are_refused_before_the_upgrade() -> None:
    """HTTP 400 with Deepgram's JSON, whose text stands in a header too, without odd characters."""
    async with serving() as server:
        status, body, headers = await refusal(server, "encoding=linear16")
        assert (status, body["err_code"]) == (400, "INVALID_QUERY_PARAMETER")
        assert "needs a sample_rate" in body["err_msg"]
        assert headers["dg-error"] == body["err_msg"]
        assert headers["dg-request-id"] == str(UUID(body["request_id"]))
        status, body, headers = await refusal(server, "encoding=%C3%B6%0D%0AX:%20y")
        assert "\r\nX: y" in body["err_msg"] and "encoding=???X: y" in headers["dg-error"]


@in_loop
async def test_a_plain_get_says_what_a_websocket_would() -> None:
    """Without an upgrade the answer is 426, or the refusal."""
    async with serving() as server:
        status, headers, body = await get(server, f"/v1/listen?{RAW}")
        assert (status, headers["upgrade"]) == (426, "websocket")
        status, _, body = await get(server, "/v1/listen?channels=2&multichannel=true")
        assert status == 400 and "multichannel=true is not supported" in json.loads(body)["err_msg"]


@pytest.mark.parametrize(
    "options",
    [
        {"additional_headers": {"Authorization": "Token right"}},
        {"additional_headers": {"Authorization": "token  right"}},
        {"additional_headers": {"Authorization": "Bearer right"}},
        {"subprotocols": ["token", "right"]},
        {"subprotocols": ["bearer", "right"]},
    ],
)
def test_keys(options: dict[str, Any], tmp_path: Path) -> None:
    """A key comes in a header or, from a browser, as the second of two subprotocols."""
    (tmp_path / "tokens").write_text("right\n")

    @in_loop
    async def run() -> None:
        async with serving(token_file=tmp_path / "tokens") as server, listen(server, **options) as websocket:
            assert websocket.subprotocol == (options.get("subprotocols") or [None])[0]
            await websocket.send('{"type":"CloseStream"}')
            assert (await rest(websocket))[1] == 1000

    run()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"additional_headers": {"Authorization": "Token wrong"}},
        {"additional_headers": {"Authorization": "Basic right"}},
        {"subprotocols": ["token", "wrong"]},
        {"subprotocols": ["right"]},
    ],
)
def test_wrong_keys(options: dict[str, Any], tmp_path: Path) -> None:
    """Without a right key there is no websocket, whatever else is wrong."""
    (tmp_path / "tokens").write_text("right\n")

    @in_loop
    async def run() -> None:
        async with serving(token_file=tmp_path / "tokens") as server:
            status, body, _ = await refusal(server, "encoding=nonsense", **options)
            assert (status, body["err_code"]) == (401, "INVALID_AUTH")

    run()


@in_loop
async def test_a_full_server() -> None:
    """Who comes too late is told when to try again; a place is free as soon as its client has gone."""
    async with serving(limits=Limits(max_streams=1)) as server:
        async with listen(server) as websocket:
            await websocket.send(bytes(BYTES_PER_S))
            await websocket.recv()
            status, body, headers = await refusal(server)
            assert (status, body["err_code"], headers["Retry-After"]) == (503, "TOO_MANY_REQUESTS", "5")
            websocket.transport.abort()
        await until_empty(server)
        async with listen(server) as websocket:
            await websocket.send('{"type":"CloseStream"}')
            assert (await rest(websocket))[1] == 1000


@in_loop
async def test_silence_on_the_line_is_net_0001() -> None:
    """Without audio and messages the server gives up; KeepAlive prevents it, also before any audio."""
    async with serving(limits=Limits(idle_s=0.4)) as server, listen(server) as websocket:
        for _ in range(4):
            await asyncio.sleep(0.2)
            await websocket.send('{"type":"KeepAlive"}')
        await websocket.send(bytes(BYTES_PER_S // 2))
        messages, code, reason = await rest(websocket)
        assert (code, reason[:8]) == (1011, "NET-0001")
        results = [message for message in messages if message["type"] == "Results"]
        assert results[-1]["channel"]["alternatives"][0]["transcript"] == "w0 w1"


@in_loop
async def test_an_oversize_message_closes() -> None:
    """A message above the server's limit is 1009, and the place is free at once."""
    async with serving(limits=Limits(max_streams=1, message_bytes=10_000)) as server:
        async with listen(server) as websocket:
            await websocket.send(bytes(10_001))
            assert (await rest(websocket))[1] == 1009
        await until_empty(server)
        async with listen(server) as websocket:
            await websocket.send('{"type":"CloseStream"}')
            assert (await rest(websocket))[1] == 1000


@contextlib.asynccontextmanager
async def recognising(recognizer: Recognizer) -> AsyncIterator[Server]:
    config = ServerConfig(port=0, limits=Limits(max_streams=2))
    async with Server(config) as server, Batcher(recognizer, n_slots=2) as batcher:
        server.open_for(batcher, model=recognizer.name, languages=tuple(recognizer.languages))
        yield server
        await server.close()


def telephone(samples: np.ndarray) -> bytes:
    """16 kHz samples as mu-law at 8 kHz."""
    import io

    file = io.BytesIO()
    low = soxr.resample(samples, SAMPLE_RATE, 8000)
    soundfile.write(file, low, 8000, format="RAW", subtype="ULAW")
    return file.getvalue()


@pytest.mark.slow
def test_speech(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Real speech in WebM and as telephone audio: real words, times, confidences and pauses."""
    clip = np.concatenate([jfk[: 4 * SAMPLE_RATE], np.zeros(4 * SAMPLE_RATE, np.float32)])
    sent = {
        "": contained_samples(soxr.resample(clip, SAMPLE_RATE, 48_000), "webm", "libopus"),
        "encoding=mulaw&sample_rate=8000": telephone(clip),
    }

    async def speak(server: Server, query: str, data: bytes) -> list[dict[str, Any]]:
        options = "punctuate=true&interim_results=true&vad_events=true&utterance_end_ms=1500&endpointing=300"
        async with listen(server, f"{query}&{options}&language=en-GB") as websocket:
            for start in range(0, len(data), 1111):
                await websocket.send(data[start : start + 1111])
            await websocket.send('{"type":"CloseStream"}')
            messages, code, _ = await rest(websocket)
            assert code == 1000
            return messages

    async def run() -> list[list[dict[str, Any]]]:
        async with recognising(recognizer) as server:
            status, body, _ = await refusal(server, f"{RAW}&language=de")
            assert status == 400 and "language=de is not valid; expected one of en" in body["err_msg"]
            return await asyncio.gather(*(speak(server, query, data) for query, data in sent.items()))

    for messages in asyncio.run(run()):
        kinds = [message["type"] for message in messages]
        assert kinds[0] == "SpeechStarted" and kinds[-1] == "Metadata" and "UtteranceEnd" in kinds
        finals = [message for message in messages if message["type"] == "Results" and message["is_final"]]
        assert any(result["speech_final"] for result in finals)
        assert kinds.index("UtteranceEnd") > messages.index(finals[0])
        alternatives = [result["channel"]["alternatives"][0] for result in finals]
        assert "fellow American" in " ".join(each["transcript"] for each in alternatives)
        words = [word for each in alternatives for word in each["words"]]
        assert all(0 < word["confidence"] <= 1 and word["end"] > word["start"] for word in words)
        assert len({word["confidence"] for word in words}) > len(words) // 2
        (ended,) = [message for message in messages if message["type"] == "UtteranceEnd"]
        assert ended["last_word_end"] == words[-1]["end"] < 4.3
        assert messages[-1]["duration"] == pytest.approx(8, abs=0.05)


@pytest.mark.slow
def test_nonsense_is_data_0000(tiny_recognizer: Recognizer) -> None:
    """Raw samples without an encoding are no container."""

    async def run() -> tuple[list[dict[str, Any]], int, str]:
        async with recognising(tiny_recognizer) as server, listen(server, "model=nova-3") as websocket:
            await websocket.send(np.random.default_rng(0).bytes(20_000))
            return await rest(websocket)

    messages, code, reason = asyncio.run(run())
    assert (code, reason[:9]) == (1008, "DATA-0000")
    assert "no WAV, Ogg, WebM" in messages[-1]["description"]
