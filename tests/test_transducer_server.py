"""The server with a recogniser that has both decoders: each client chooses."""

from __future__ import annotations

import asyncio

import numpy as np

from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from service.batcher import Batcher
from service.config import ServerConfig
from service.server import Server
from service.stream_settings import StreamSettings
from tests.serving import Client, connected, finals, in_loop
from tests.test_batcher import heard, pcm
from tests.transducers import transducer_recognizer


async def _transcribe(server: Server, samples: np.ndarray, **start: object) -> Client:
    async with connected(server) as client:
        await client.start(**start)
        for block in np.array_split(samples, 20):
            await client.websocket.send(pcm(block))
        await client.send("stop")
        await client.rest()
        return client


def _alone(recognizer: Recognizer, samples: np.ndarray, **options: object) -> list[str]:
    stream = recognizer.stream(**options)  # type: ignore[arg-type]
    stream.feed(heard(samples))
    stream.finish()
    return [segment.text for segment in stream.transcript.segments]


def test_each_client_chooses_decoder_and_latency(jfk: np.ndarray) -> None:
    """In one batch, each gets what its choice gives alone; ready tells the choice."""
    samples = jfk[: 3 * SAMPLE_RATE]
    recognizer = transducer_recognizer()
    choices: list[dict[str, object]] = [
        {"decoder": "transducer", "latency": 240, "chunk_ms": 300},
        {"decoder": "transducer", "latency": "minimal"},
        {"decoder": "whisper"},
        {},
    ]
    expected: list[dict[str, object]] = [
        {"decoder": "transducer", "latency": 240.0, "chunk_ms": 300},
        {"decoder": "transducer", "latency": "minimal", "chunk_ms": 80},
        {"decoder": "whisper", "latency": None, "chunk_ms": 300},
        {"decoder": "transducer", "latency": "low", "chunk_ms": 300},
    ]
    alone = [_alone(recognizer, samples, **options) for options in expected]

    @in_loop
    async def serve() -> None:
        defaults = StreamSettings(decoder="transducer", latency="low")
        config = ServerConfig(port=0, defaults=defaults)
        async with Server(config) as server, Batcher(recognizer, n_slots=4) as batcher:
            server.open_for(batcher, model="tiny", languages=("en",))
            clients = await asyncio.gather(*(_transcribe(server, samples, **each) for each in choices))
        for client, options, texts in zip(clients, expected, alone, strict=True):
            assert client.received[0]["settings"].items() >= options.items()
            assert finals(client.received) == texts

    serve()


def test_a_server_without_a_head_refuses_the_transducer(tiny_recognizer: Recognizer) -> None:
    """The client learns which field is wrong, and may start again."""

    @in_loop
    async def serve() -> None:
        async with Server(ServerConfig(port=0)) as server, Batcher(tiny_recognizer, n_slots=1) as batcher:
            server.open_for(batcher, model="tiny", languages=("en",))
            async with connected(server) as client:
                await client.send("start", decoder="transducer")
                error = await client.until("error")
                assert error["field"] == "decoder" and "needs a head" in error["message"]
                await client.start()

    serve()
