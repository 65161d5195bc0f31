"""Many streams under churn, and one that is cut a hundred times: every final is its own stream's."""

from __future__ import annotations

import asyncio
import random

import numpy as np

from asr.recognizer import Recognizer
from benchmarks.crosstalk import churn
from benchmarks.soak_load import BYTES_PER_S, Speaker
from benchmarks.soak_speech import cut_clips
from service.batcher import Batcher
from service.config import Limits, ServerConfig
from service.server import Server
from tests.fake_batcher import FakeBatcher, expected_texts
from tests.serving import in_loop, metric, serving


def test_no_cross_talk_under_churn(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """With the real model, clients that come, break off, resume and vanish get the words of lone streams."""
    clips = cut_clips(recognizer, jfk[: 7 * 16_000])[::2]
    assert len({clip.texts for clip in clips}) > 3

    async def run() -> None:
        limits = Limits(max_streams=12, resume_s=5)
        config = ServerConfig(port=0, limits=limits)
        async with Server(config) as server, Batcher(recognizer, n_slots=12, n_lanes=2) as batcher:
            server.open_for(batcher, model=recognizer.name)
            tally = await churn(server.stream_url, clips, n_streams=5, n_visits=10, speed=20)
            await server.close()
        assert tally.wrong == []
        assert tally.n_visits["whole"] > 3 and tally.n_cuts

    asyncio.run(asyncio.wait_for(run(), 120))


@in_loop
async def test_a_hundred_cuts_change_nothing() -> None:
    """The connection breaks at a hundred random places of one recording: the same transcript."""
    seconds, chance = 60, random.Random(100)
    async with serving(FakeBatcher(tick_s=0.0005)) as server:
        data = bytes(seconds * BYTES_PER_S)
        speaker = Speaker(server.stream_url, data, speed=None)
        for position in sorted(chance.randrange(len(data)) & ~1 for _ in range(100)):
            await speaker.speak(until=position)
        await speaker.speak()
        assert list(speaker.texts) == expected_texts(seconds)
        assert speaker.end_s is not None
        assert await metric(server, "resumes_total") == 100
        assert await metric(server, "sessions_started_total") == 1
