"""Clients of vosk-server against a real server: vosk's own, the sample client's way, and real speech."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from service.batcher import Batcher
from service.config import Limits, ServerConfig
from service.server import Server
from tests.fake_batcher import expected_texts
from tests.serving import BYTES_PER_S, in_loop, serving, until_empty

EOF = '{"eof" : 1}'


async def ask(websocket: ClientConnection, message: str | bytes) -> dict[str, Any]:
    await websocket.send(message)
    reply: dict[str, Any] = json.loads(await websocket.recv())
    return reply


async def transcribe(url: str, data: bytes, *, rate: int, block: int, **config: Any) -> list[dict[str, Any]]:
    """The way of vosk-server's sample clients: send, receive, send; at last eof."""
    async with connect(url) as websocket:
        await websocket.send(json.dumps({"config": {"sample_rate": rate, **config}}))
        replies = [await ask(websocket, data[start : start + block]) for start in range(0, len(data), block)]
        replies.append(await ask(websocket, EOF))
        with pytest.raises(ConnectionClosed) as caught:
            await websocket.recv()
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1000
        return replies


def texts(replies: list[dict[str, Any]]) -> list[str]:
    return [reply["text"] for reply in replies if reply.get("text")]


@in_loop
async def test_the_sample_client() -> None:
    """Lockstep as fast as it goes: one reply for each message, every word once."""
    async with serving(vosk_port=0) as server:
        assert server.vosk_url
        replies = await transcribe(server.vosk_url, bytes(4 * BYTES_PER_S), rate=SAMPLE_RATE, block=6400)
        assert len(replies) == 21
        assert texts(replies) == expected_texts(4)
        assert replies[-1] == {"text": ""}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_vosks_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client in the vosk package gets its results, and writes subtitles from them."""
    transcriber = pytest.importorskip("vosk.transcriber.transcriber", reason="needs vosk")
    monkeypatch.setattr(transcriber, "Model", lambda **_: None)  # it would load one, also to ask a server

    class Process:
        """Stands in for FFmpeg: 16 kHz samples on its standard output."""

        def __init__(self, data: bytes) -> None:
            self.stdout = asyncio.StreamReader()
            self.stdout.feed_data(data)
            self.stdout.feed_eof()

    @in_loop
    async def run() -> None:
        async with serving(vosk_port=0) as server:
            arguments = argparse.Namespace(
                model=None, model_name=None, lang=None, server=server.vosk_url, output_type="srt"
            )
            client = transcriber.Transcriber(arguments)
            result, n_bytes = await client.recognize_stream_server(Process(bytes(3 * BYTES_PER_S)))
        assert n_bytes == 3 * BYTES_PER_S
        assert texts(result) == expected_texts(3)
        assert "00:00:01,000 --> 00:00:02,000\nw4 w5 w6 w7" in client.format_result(result)

    run()


@in_loop
async def test_many_clients_and_a_reset() -> None:
    """Replies do not mix, and a reset closes a segment."""

    async def client(url: str, n: int) -> None:
        async with connect(f"{url}/any/path") as websocket:
            await websocket.send('{"config": {"sample_rate": 16000}}')
            said = 0
            for _ in range(n):
                await ask(websocket, bytes(BYTES_PER_S // 2))
                reply = await ask(websocket, '{"reset" : 1}')
                assert reply["text"] == f"w{said} w{said + 1}"
                said += 2
            assert await ask(websocket, EOF) == {"text": ""}

    async with serving(vosk_port=0) as server:
        assert server.vosk_url
        await asyncio.gather(*(client(server.vosk_url, n) for n in range(1, 7)))


@in_loop
async def test_bad_input() -> None:
    """A wrong configuration closes with its reason; whoever vanishes leaves nothing behind."""
    async with serving(vosk_port=0, limits=Limits(max_streams=1)) as server:
        assert server.vosk_url
        async with connect(server.vosk_url) as websocket:
            await websocket.send('{"config": {"sample_rate": 1}}')
            with pytest.raises(ConnectionClosed) as caught:
                await websocket.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1008 and "sample_rate is 1" in caught.value.rcvd.reason
        async with connect(server.vosk_url) as websocket:
            await ask(websocket, bytes(16_000))
            with pytest.raises(InvalidStatus) as full:
                async with connect(server.vosk_url):
                    pass
            assert full.value.response.status_code == 503
            websocket.transport.abort()
        await until_empty(server)
        replies = await transcribe(server.vosk_url, bytes(16_000), rate=8000, block=8000)
        assert texts(replies) == expected_texts(1)


@in_loop
async def test_tokens(tmp_path: Path) -> None:
    """vosk-server knows no keys; where the server has a token file they come in the address or a header."""
    (tmp_path / "tokens").write_text("right\n")
    async with serving(vosk_port=0, token_file=tmp_path / "tokens") as server:
        for query, headers in (("/?token=right", {}), ("", {"Authorization": "Bearer right"})):
            async with connect(f"{server.vosk_url}{query}", additional_headers=headers) as websocket:
                assert await ask(websocket, EOF) == {"text": ""}
        with pytest.raises(InvalidStatus) as caught:
            async with connect(f"{server.vosk_url}/?token=wrong"):
                pass
        assert caught.value.response.status_code == 401


@contextlib.asynccontextmanager
async def recognising(recognizer: Recognizer, n_slots: int) -> AsyncIterator[Server]:
    config = ServerConfig(port=0, vosk_port=0, limits=Limits(max_streams=n_slots))
    async with Server(config) as server, Batcher(recognizer, n_slots=n_slots) as batcher:
        server.open_for(batcher, model=recognizer.name)
        yield server
        await server.close()


@pytest.mark.slow
def test_speech_at_all_rates_and_block_sizes(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Every reply comes, whatever resampler and recogniser hold back; words, times, confidences are real."""
    ways = [(8000, 1600), (8000, 8000), (16_000, 4000), (16_000, 640), (44_100, 5000), (11_025, 333)]
    clip = jfk[: 5 * SAMPLE_RATE]

    async def run() -> list[list[dict[str, Any]]]:
        async with recognising(recognizer, len(ways)) as server:
            assert server.vosk_url
            return await asyncio.wait_for(
                asyncio.gather(
                    *(
                        transcribe(server.vosk_url, pcm(clip, rate), rate=rate, block=block)
                        for rate, block in ways
                    )
                ),
                120,
            )

    for replies, (rate, block) in zip(asyncio.run(run()), ways, strict=True):
        assert len(replies) == -(-len(pcm(clip, rate)) // block) + 1
        assert "fellow american" in " ".join(texts(replies))
        words = [word for reply in replies for word in reply.get("result", ())]
        assert all(0 < word["conf"] <= 1 and word["start"] < word["end"] <= 5 for word in words)
        partials = [reply["partial"] for reply in replies if "partial" in reply]
        assert any(partials)


def pcm(samples: np.ndarray, rate: int) -> bytes:
    """16 kHz samples as 16-bit PCM of another rate."""
    return (np.clip(soxr.resample(samples, SAMPLE_RATE, rate), -1, 1) * 32767).astype("<i2").tobytes()
