"""Many streams under churn, and one that is cut a hundred times: every final is its own stream's."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from benchmarks.crosstalk import churn
from benchmarks.soak_load import BYTES_PER_S, Clip, Speaker
from benchmarks.soak_speech import lone_clip, to_pcm
from service.batcher import Batcher
from service.config import Limits, ServerConfig
from service.server import Server
from tests.fake_batcher import FakeBatcher, expected_texts
from tests.serving import in_loop, metric, serving

N_STREAMS = 32
STEP = SAMPLE_RATE // 5


def distinct_clips(recognizer: Recognizer, samples: np.ndarray, *, n_clips: int) -> list[Clip]:
    """Pieces of a recording, a second or so each, that a lone stream hears differently."""
    clips: dict[tuple[str, ...], Clip] = {}
    for number in range(len(samples) // STEP):
        piece = samples[number * STEP :][: (11 + number % 4) * SAMPLE_RATE // 10]
        clip = lone_clip(recognizer, to_pcm(piece))
        if clip.texts:
            clips.setdefault(clip.texts, clip)
        if len(clips) == n_clips:
            break
    return list(clips.values())


@pytest.mark.slow
def test_no_cross_talk_under_churn(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """With the real model, 32 clients that come, break off, resume and vanish get a lone stream's words."""
    clips = distinct_clips(recognizer, jfk, n_clips=N_STREAMS)
    assert len(clips) == N_STREAMS
    n_slots = 2 * N_STREAMS  # those that vanish keep theirs for a while

    async def run() -> None:
        config = ServerConfig(port=0, limits=Limits(max_streams=n_slots, resume_s=30))
        async with Server(config) as server, Batcher(recognizer, n_slots=n_slots) as batcher:
            server.open_for(batcher, model=recognizer.name)
            tally = await churn(server.stream_url, clips, n_streams=N_STREAMS, n_visits=40, speed=20)
            await server.close()
        assert tally.wrong == tally.failed == []
        assert tally.n_visits["whole"] > 12 and tally.n_visits["vanish"] and tally.n_cuts > 5

    asyncio.run(asyncio.wait_for(run(), 300))


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


def test_a_hundred_cuts_of_speech(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """The same with the real model: the transcript of a recording that was never interrupted."""
    clip, chance = lone_clip(recognizer, to_pcm(jfk)), random.Random(101)

    async def run() -> None:
        config = ServerConfig(port=0, limits=Limits(resume_s=30))
        async with Server(config) as server, Batcher(recognizer, n_slots=1) as batcher:
            server.open_for(batcher, model=recognizer.name)
            speaker = Speaker(server.stream_url, clip.data, speed=None)
            for position in sorted(chance.randrange(len(clip.data)) & ~1 for _ in range(100)):
                await speaker.speak(until=position)
            await speaker.speak()
            assert speaker.texts == clip.texts and len(" ".join(clip.texts).split()) > 15
            assert await metric(server, "resumes_total") == 100
            await server.close()

    asyncio.run(asyncio.wait_for(run(), 120))
