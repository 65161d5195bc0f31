"""Two lanes, as on a machine of two cores: what happens in one is not the other's, at the end neither."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest

from asr.batch import Step
from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from service import batcher as batcher_module
from service import server as server_module
from service.batcher import Batcher
from service.stream_settings import AudioFormat, StreamSettings
from tests.faults.recognising import LIMIT_S, Fault, alone, pcm, run, say, serving, stream
from tests.serving import connected, finals, get, metric

PCM = AudioFormat("pcm_s16le", SAMPLE_RATE, 1)


def test_a_lane_that_fails(
    tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of one lane fails: its streams end with model_error, the other's with all their words."""
    expected = [alone(tiny_recognizer, clip) for clip in clips]
    broken: list[threading.Thread] = []
    advance = tiny_recognizer.advance
    fault = Fault(advance, MemoryError(), when=lambda steps: threading.current_thread() in broken)
    monkeypatch.setattr(tiny_recognizer, "advance", fault)

    async def work() -> tuple[list[Any], float, int]:
        async with serving(tiny_recognizer, n_slots=4, n_lanes=2) as (server, batcher):
            assert await metric(server, "lanes") == 2
            broken.append(batcher._lanes[0].thread)
            # Lanes take turns: the first and the third stream are the broken one's.
            results = await asyncio.gather(*(stream(server, clip) for clip in (*clips, clips[0])))
            broken.clear()
            again = await asyncio.gather(*(stream(server, clip) for clip in clips[:2]))
            ended = await metric(server, 'sessions_ended_total{cause="model_error"}')
            assert [finals(each) for each in again] == expected[:2]
            return results, ended, batcher.n_used

    results, ended, n_used = run(work)
    codes = [messages[-1].get("code", "") for messages in results]
    assert sorted(codes) == ["", "", "model_error", "model_error"] and (ended, n_used) == (2, 0)
    good = [finals(messages) for messages in results if messages[-1]["type"] == "done"]
    assert all(each in expected for each in good)
    assert fault.n_failed


def test_a_lane_that_does_not_come_back(
    tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """/healthz fails, the other lane's streams go on, and the server ends without the lane."""
    monkeypatch.setattr(server_module, "_STUCK_S", 0.2)
    monkeypatch.setattr(batcher_module, "_LAST_TICK_S", 0.2)
    release, stuck = threading.Event(), list[threading.Thread]()
    advance = tiny_recognizer.advance

    def hang(steps: Sequence[Step]) -> Any:
        if not stuck:
            stuck.append(threading.current_thread())
        if threading.current_thread() in stuck:
            assert release.wait(LIMIT_S)
        return advance(steps)

    expected = alone(tiny_recognizer, clips[1])
    monkeypatch.setattr(tiny_recognizer, "advance", hang)

    async def work() -> None:
        async with serving(tiny_recognizer, n_lanes=2) as (server, _), connected(server) as victim:
            await victim.start()
            await say(victim, clips[0])
            while not stuck:
                await asyncio.sleep(0.01)
            assert finals(await stream(server, clips[1])) == expected
            while (answer := await get(server, "/healthz"))[0] == 200:
                await asyncio.sleep(0.02)
            assert b"the model has not come back for" in answer[2]

    try:
        run(work)
    finally:
        release.set()
    (thread,) = stuck
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    ends = [record for record in caplog.records if "stops without it" in record.message]
    assert len(ends) == 1 and ends[0].levelno == logging.ERROR


def test_a_drain_of_two_lanes(
    tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams of both lanes, in the middle of words: each ends with its finals and the reason drain."""
    monkeypatch.setattr(server_module, "_FINISH_S", LIMIT_S)
    parts = [clip[: 2 * SAMPLE_RATE] for clip in clips]
    expected = [alone(tiny_recognizer, part) for part in parts]

    async def work() -> list[Any]:
        async with (
            serving(tiny_recognizer, n_lanes=2, drain_s=0) as (server, batcher),
            AsyncExitStack() as stack,
        ):
            clients = [await stack.enter_async_context(connected(server)) for _ in parts]
            for client, part in zip(clients, parts, strict=True):
                await client.start()
                await say(client, part)
            while await metric(server, "audio_seconds_total") < len(parts):
                await asyncio.sleep(0.05)
            assert {lane.n_streams for lane in batcher._lanes} == {1, 2}
            await asyncio.gather(server.drain(), *(client.rest() for client in clients))
            assert {client.websocket.close_code for client in clients} == {1001}
            assert batcher.n_used == 0
            return [client.received for client in clients]

    results = run(work)
    assert [messages[-1]["reason"] for messages in results] == ["drain"] * 3
    assert [finals(messages) for messages in results] == expected


def test_a_stream_that_cannot_begin_leaves_its_slot_free(
    tiny_recognizer: Recognizer, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread can be started for its decoder: that start fails, and the next one finds the slot."""
    open_intake = batcher_module.open_intake
    fault = Fault(open_intake, RuntimeError("can't start new thread"), when=lambda *_, **__: True)

    async def work() -> list[str]:
        async with serving(tiny_recognizer, n_slots=1) as (server, batcher):
            with monkeypatch.context() as patch:
                patch.setattr(batcher_module, "open_intake", fault)
                (error,) = await stream_that_fails(server)
            assert error["code"] == "model_error" and batcher.n_used == 0
            return finals(await stream(server, data))

    async def stream_that_fails(server: Any) -> Any:
        async with connected(server) as client:
            await client.send("start")
            return await client.rest()

    data = pcm(jfk[: 2 * SAMPLE_RATE])
    assert run(work) == alone(tiny_recognizer, data) and fault.n_failed == 1


def test_a_batcher_without_work_ends_at_once(tiny_recognizer: Recognizer) -> None:
    """The patience is for ticks that run."""

    async def work() -> None:
        async with Batcher(tiny_recognizer, n_slots=2, n_lanes=2) as batcher:
            slot = await batcher.open(PCM, StreamSettings(), lambda _: None)
            slot.feed(bytes(SAMPLE_RATE))
        assert not any(lane.thread.is_alive() for lane in batcher._lanes)

    run(work)
