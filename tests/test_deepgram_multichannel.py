"""Deepgram's multichannel=true: a stream for each channel, and results that say which they are of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from service.batcher import Batcher
from service.channels import open_stream
from service.config import Limits, ServerConfig
from service.server import Server
from service.stream_settings import (
    AudioFormat,
    Failed,
    Finished,
    Flushed,
    OnChannel,
    Output,
    Progress,
    StreamSettings,
)
from tests.fake_batcher import BROKEN_MODEL, FakeBatcher, expected_texts
from tests.serving import in_loop, serving, until_empty
from tests.test_deepgram_server import listen, rest

STEREO = "encoding=linear16&sample_rate=16000&channels=2&multichannel=true"
FORMAT = AudioFormat("pcm_s16le", SAMPLE_RATE, 2, is_split=True)


def stereo(seconds: float) -> bytes:
    return bytes(int(seconds * SAMPLE_RATE) * 4)


def said(messages: Sequence[dict[str, Any]], channel: int) -> list[str]:
    """The final transcripts of a channel."""
    return [
        text
        for each in messages
        if each["type"] == "Results" and each["is_final"] and each["channel_index"][0] == channel
        if (text := each["channel"]["alternatives"][0]["transcript"])
    ]


@in_loop
async def test_every_channel_has_its_results() -> None:
    """Each with its index, and one Metadata for all."""
    async with serving() as server, listen(server, f"{STEREO}&vad_events=true&interim_results=true") as live:
        await live.send(stereo(1.6)[:-3])  # cut anywhere
        await live.send(stereo(1.6)[-3:])
        await live.send('{"type":"CloseStream"}')
        messages, code, _ = await rest(live)
    assert code == 1000
    assert said(messages, 0) == said(messages, 1) == expected_texts(1.6)
    *others, metadata = messages
    assert (metadata["type"], metadata["channels"], metadata["duration"]) == ("Metadata", 2, 1.6)
    assert {tuple(each.get("channel_index") or each["channel"]) for each in others} == {(0, 2), (1, 2)}


@in_loop
async def test_finalize_is_answered_once_on_each_channel() -> None:
    """And the stream goes on, also with other keyterms."""
    async with serving() as server, listen(server, STEREO) as live:
        await live.send(stereo(0.5))
        await live.send('{"type":"Finalize"}')
        await live.send('{"type":"Configure","keyterms":["Ann"]}')
        await live.send(stereo(0.5))
        await live.send('{"type":"CloseStream"}')
        messages, _, _ = await rest(live)
    answers = [each["channel_index"] for each in messages if each.get("from_finalize")]
    assert sorted(answers) == [[0, 2], [1, 2]]
    for channel in (0, 1):
        starts = [
            each["start"]
            for each in messages
            if each["type"] == "Results" and each["channel_index"][0] == channel
        ]
        assert starts == sorted(starts)
        assert said(messages, channel) == ["w0 w1", "w0 w1"]
    assert messages[-1]["duration"] == 1


@in_loop
async def test_a_channel_takes_a_place() -> None:
    """Where two are not free a client is told to come again; afterwards both are."""
    async with serving(FakeBatcher(n_slots=3), limits=Limits(max_streams=3)) as server:
        async with listen(server, STEREO):
            with pytest.raises(InvalidStatus, match="503"):
                async with listen(server, STEREO):
                    pass
            async with listen(server):
                pass
        await until_empty(server)
        while not server._registry.has_room(n_streams=3):
            await asyncio.sleep(0.01)


@in_loop
async def test_what_concerns_all_channels_is_delivered_once() -> None:
    """Flushed and Finished when every channel has got there, and nothing after an error."""
    batcher, outputs = FakeBatcher(), list[Output]()
    slot = await open_stream(batcher, FORMAT, StreamSettings(), outputs.extend)
    slot.feed(stereo(0.5))
    slot.flush()
    slot.finish()
    while not any(isinstance(each, Finished) for each in outputs):
        await asyncio.sleep(0.01)
    whole = [each for each in outputs if not isinstance(each, OnChannel)]
    assert whole == [Flushed(8000), Finished(0.5, 0.2)]
    last = {each.channel: each.event for each in outputs if isinstance(each, OnChannel)}
    assert last == {0: Progress(8000, 1), 1: Progress(8000, 1)} and not batcher.slots

    outputs.clear()
    slot = await open_stream(batcher, FORMAT, StreamSettings(), outputs.extend)
    broken = np.frombuffer(BROKEN_MODEL, np.uint8).reshape(-1, 2)
    slot.feed(np.stack([np.zeros_like(broken), broken], axis=1).tobytes())
    slot.feed(stereo(0.5))
    while not any(isinstance(each, Failed) for each in outputs):
        await asyncio.sleep(0.01)
    assert not batcher.slots and isinstance(outputs[-1], Failed)


@in_loop
async def test_a_broken_channel_ends_the_stream() -> None:
    """What was committed on the other becomes final."""
    async with serving() as server, listen(server, f"{STEREO}&interim_results=true") as live:
        await live.send(stereo(0.5))
        while json.loads(await live.recv())["channel_index"] != [1, 2]:
            pass
        broken = np.frombuffer(BROKEN_MODEL, np.uint8).reshape(-1, 2)
        await live.send(np.stack([np.zeros_like(broken), broken], axis=1).tobytes())
        messages, code, reason = await rest(live)
    assert (code, reason[:8]) == (1011, "NET-0000")
    assert said(messages, 0) == said(messages, 1) == ["w0 w1"]


@pytest.mark.slow
def test_two_speakers(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Speech on one channel is not heard on the other."""

    async def run() -> list[dict[str, Any]]:
        config = ServerConfig(port=0, limits=Limits(max_streams=2))
        async with Server(config) as server, Batcher(recognizer, n_slots=2) as batcher:
            server.open_for(batcher, model=recognizer.name)
            async with listen(server, f"{STEREO}&endpointing=1000") as live:
                both = np.stack([np.zeros_like(jfk), jfk], axis=1)
                pcm = (both * 32767).astype("<i2").tobytes()
                for start in range(0, len(pcm), 1 << 16):
                    await live.send(pcm[start : start + (1 << 16)])
                await live.send('{"type":"CloseStream"}')
                messages, code, _ = await rest(live)
                assert code == 1000
            await server.close()
        return messages

    messages = asyncio.run(asyncio.wait_for(run(), 120))
    assert said(messages, 0) == []
    assert "what you can do for your country" in " ".join(said(messages, 1))
