"""Audio that is far larger than its bytes: decoded no further than it is recognised, and ended in time."""

from __future__ import annotations

import asyncio
import time
import tracemalloc

import av
import numpy as np
import pytest

from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from service import live as live_module
from service.batcher import Batcher
from service.compressed import CompressedIntake
from service.config import Limits, ServerConfig
from service.server import Server
from tests.serving import connected

HOUR_S = 3600
_BLOCK = 65_535  # the most samples of a FLAC frame


def flac_silence(seconds: int) -> bytes:
    """A FLAC stream of digital silence, a few bytes for each four seconds."""
    encoder = av.CodecContext.create("flac", "w")
    encoder.sample_rate, encoder.layout, encoder.format = SAMPLE_RATE, "mono", "s16"
    encoder.options = {"frame_size": str(_BLOCK)}
    frames = []
    block = np.zeros((1, _BLOCK), np.int16)
    for start in range(0, seconds * SAMPLE_RATE, _BLOCK):
        frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, start
        frames += [bytes(packet) for packet in encoder.encode(frame)]
    frames += [bytes(packet) for packet in encoder.encode(None)]
    info = bytes(encoder.extradata)
    return b"fLaC\x80" + len(info).to_bytes(3, "big") + info + b"".join(frames)


def test_a_decoder_waits_for_its_reader() -> None:
    """An hour of silence in a few kilobytes: no more than half a minute of them is in memory at a time."""
    data = flac_silence(HOUR_S)
    assert len(data) < 40_000
    intake = CompressedIntake("flac", on_samples=lambda: None)
    tracemalloc.start()
    intake.push(data)
    intake.end()
    n_samples, give_up_at = 0, time.monotonic() + 60
    while not intake.is_drained() and time.monotonic() < give_up_at:
        n_samples += len(intake.pull())
        time.sleep(0.0005)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_samples == pytest.approx(HOUR_S * SAMPLE_RATE, abs=_BLOCK)
    assert most < 20e6


def test_a_closed_decoder_waits_for_nobody() -> None:
    """A stream that is given up leaves no thread behind that waits to be read."""
    intake = CompressedIntake("flac", on_samples=lambda: None)
    intake.push(flac_silence(HOUR_S))
    time.sleep(0.2)
    assert intake._thread.is_alive() and intake._n_decoded < 60 * SAMPLE_RATE
    intake.close()
    intake._thread.join(20)
    assert not intake._thread.is_alive()


def test_a_session_of_endless_silence_ends(
    tiny_recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the session's limit and a grace time it is over, whatever is still to be recognised."""
    monkeypatch.setattr(live_module, "_FINISH_S", 0.3)
    data = flac_silence(2 * HOUR_S)

    async def run() -> None:
        config = ServerConfig(port=0, limits=Limits(max_streams=1, session_s=0.5))
        async with Server(config) as server, Batcher(tiny_recognizer, n_slots=1) as batcher:
            server.open_for(batcher, model="tiny")
            async with connected(server) as client:
                await client.start(encoding="flac")
                await client.websocket.send(data)
                messages = await client.rest()
                assert messages[-1]["code"] == "session_limit"
                assert client.websocket.close_code == 4410
            while batcher.n_used:
                await asyncio.sleep(0.01)
            await server.close()

    asyncio.run(asyncio.wait_for(run(), 60))
