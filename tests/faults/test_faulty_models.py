"""A model that fails: in one stream, for want of memory, in its audio, for ever. The others go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from asr.second_pass import PendingFinal
from service import batcher as batcher_module
from service import server as server_module
from service.batcher import Batcher
from service.intake import PlainIntake
from service.stream_settings import AudioFormat, StreamSettings
from tests.faults.recognising import LIMIT_S, Fault, alone, pcm, run, say, serving, stream
from tests.serving import connected, finals, get, kinds, metric

PCM = AudioFormat()


def test_exception_in_the_model_for_one_stream(
    tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """That client gets its committed words, model_error and 4500; one traceback; the batch goes on."""
    expected = [alone(tiny_recognizer, clip) for clip in clips]
    decoder, culprit = tiny_recognizer._engine.decoder, list[object]()

    def is_hit(jobs: Sequence[Any]) -> bool:
        return any(job.cross is culprit[0] and job.cross.n_frames > 60 for job in jobs)

    fault = Fault(decoder.step, RuntimeError("cannot be computed"), when=is_hit)

    async def work() -> tuple[list[Any], float, float, int, str]:
        async with serving(tiny_recognizer) as (server, batcher):
            async with connected(server) as client:
                session = (await client.start())["session"]
                culprit.append(batcher._works[0].state.cross)
                monkeypatch.setattr(decoder, "step", fault)
                reading = asyncio.create_task(client.rest())
                others = [asyncio.create_task(stream(server, clip)) for clip in clips[1:]]
                with contextlib.suppress(Exception):
                    await say(client, clips[0])
                hit = await reading
                assert client.websocket.close_code == 4500
            results = [hit, *[await other for other in others]]
            ended = await metric(server, 'sessions_ended_total{cause="model_error"}')
            return results, ended, await metric(server, "crashes_total"), batcher.n_used, session

    (hit, *others), ended, crashes, n_used, session = run(work)
    assert fault.n_failed and (ended, crashes, n_used) == (1, 0, 0)
    assert hit[-1]["code"] == "model_error" and "cannot be computed" not in hit[-1]["message"]
    partials = [each["committed"] for each in hit if each["type"] == "partial" and each["committed"].strip()]
    assert not partials or finals(hit)[-1] == partials[-1].strip()
    assert [finals(other) for other in others] == expected[1:]
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == 1 and logged[0].exc_info and "cannot be computed" in str(logged[0].exc_info[1])
    assert logged[0].session == session and session in logged[0].getMessage()


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_in_a_tick(
    error: Exception, tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that does not fit is computed stream by stream: nobody loses a word."""
    expected = [alone(tiny_recognizer, clip) for clip in clips]
    encoder = tiny_recognizer._engine.encoder
    fault = Fault(encoder.step, error, when=lambda jobs: len(jobs) > 1)
    monkeypatch.setattr(encoder, "step", fault)

    async def work() -> list[Any]:
        async with serving(tiny_recognizer) as (server, _):
            return await asyncio.gather(*(stream(server, clip) for clip in clips))

    assert [finals(messages) for messages in run(work)] == expected
    assert fault.n_failed


def test_out_of_memory_for_everybody(
    tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even one stream fits, those that run fail cleanly; when memory is back the server works."""
    expected = alone(tiny_recognizer, clips[0])
    encoder = tiny_recognizer._engine.encoder
    step = encoder.step

    async def work() -> tuple[list[Any], Any, int]:
        async with serving(tiny_recognizer) as (server, batcher):
            monkeypatch.setattr(encoder, "step", Fault(step, MemoryError(), when=lambda jobs: True))
            failed = await asyncio.gather(*(stream(server, clip) for clip in clips))
            monkeypatch.setattr(encoder, "step", step)
            again = await stream(server, clips[0])
            return failed, again, batcher.n_used

    failed, again, n_used = run(work)
    assert [messages[-1]["code"] for messages in failed] == ["model_error"] * 3
    assert finals(again) == expected and n_used == 0


def test_exception_in_the_audio_of_one_stream(
    tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resampling or joining samples may fail for want of memory: it ends that stream, not the worker."""
    expected = alone(tiny_recognizer, clips[1])
    pull, hit = PlainIntake.pull, list[PlainIntake]()

    def fail_first(intake: PlainIntake) -> Any:
        if not hit and intake.n_pushed:
            hit.append(intake)
        if intake in hit:
            raise MemoryError
        return pull(intake)

    async def work() -> tuple[Any, Any, int]:
        async with serving(tiny_recognizer) as (server, batcher):
            monkeypatch.setattr(PlainIntake, "pull", fail_first)
            first = await stream(server, clips[0])
            return first, await stream(server, clips[1]), batcher.n_used

    failed, good, n_used = run(work)
    assert failed[-1]["code"] == "model_error" and finals(good) == expected and n_used == 0


def test_exception_in_a_broken_transcript(
    tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream so broken that it cannot even say what it had still ends, and the worker lives."""
    from asr.stream import Stream

    expected = alone(tiny_recognizer, clips[0])
    step = tiny_recognizer._engine.encoder.step

    def broken(self: Any) -> Any:
        raise IndexError("nothing fits any more")

    async def work() -> tuple[Any, Any]:
        async with serving(tiny_recognizer) as (server, _):
            with monkeypatch.context() as patch:
                patch.setattr(Stream, "transcript", property(broken))
                fault = Fault(step, RuntimeError("broken"), when=lambda jobs: True)
                patch.setattr(tiny_recognizer._engine.encoder, "step", fault)
                failed = await stream(server, clips[1])
            return failed, await stream(server, clips[0])

    failed, good = run(work)
    assert kinds(failed)[-1] == "error" and failed[-1]["code"] == "model_error"
    assert finals(good) == expected


def test_a_second_pass_that_fails(
    tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segment stays as it was heard first, and its final still comes."""
    expected = alone(tiny_recognizer, clips[0])

    def fail(self: PendingFinal) -> Any:
        raise MemoryError

    monkeypatch.setattr(PendingFinal, "run", fail)

    async def work() -> Any:
        async with serving(tiny_recognizer) as (server, _), connected(server) as client:
            await client.start(second_pass=True)
            reading = asyncio.create_task(client.rest())
            await say(client, clips[0])
            await client.send("stop")
            return await reading

    messages = run(work)
    assert finals(messages) == expected and messages[-1]["type"] == "done"


def test_a_model_that_does_not_come_back(
    tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """/healthz fails, so that whoever watches restarts the process; the event loop still answers."""
    monkeypatch.setattr(server_module, "_STUCK_S", 0.2)
    release = threading.Event()
    encoder = tiny_recognizer._engine.encoder
    step = encoder.step

    def hang(jobs: Any) -> Any:
        assert release.wait(LIMIT_S)
        return step(jobs)

    async def work() -> Any:
        async with serving(tiny_recognizer) as (server, _):
            assert (await get(server, "/healthz"))[0] == 200
            monkeypatch.setattr(encoder, "step", hang)
            streaming = asyncio.create_task(stream(server, clips[0]))
            while (answer := await get(server, "/healthz"))[0] == 200:
                await asyncio.sleep(0.02)
            assert answer[0] == 503 and b"the model has not come back for" in answer[2]
            assert await metric(server, "tick_age_seconds") > 0.2
            release.set()
            messages = await streaming
            assert (await get(server, "/healthz"))[0] == 200
            return messages

    expected = alone(tiny_recognizer, clips[0])
    assert finals(run(work)) == expected


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
        async with Batcher(tiny_recognizer, n_slots=2) as batcher:
            slot = await batcher.open(PCM, StreamSettings(), lambda _: None)
            slot.feed(bytes(SAMPLE_RATE))
        assert not batcher.thread.is_alive()

    run(work)


def test_a_batcher_does_not_wait_for_ever(
    tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A step that does not end holds the end of the process up for a while only, and the log says so."""
    monkeypatch.setattr(batcher_module, "_LAST_TICK_S", 0.2)
    release, advance = threading.Event(), tiny_recognizer.advance

    def hang(steps: Any) -> Any:
        assert release.wait(LIMIT_S)
        return advance(steps)

    monkeypatch.setattr(tiny_recognizer, "advance", hang)

    async def work() -> Batcher:
        async with Batcher(tiny_recognizer, n_slots=1) as batcher:
            slot = await batcher.open(PCM, StreamSettings(), lambda _: None)
            slot.feed(clips[0])
            while not batcher.tick_age_s:
                await asyncio.sleep(0.01)
        return batcher

    try:
        batcher = run(work)
    finally:
        release.set()
    batcher.thread.join(LIMIT_S)
    assert [record.levelno for record in caplog.records if "stops without it" in record.message] == [
        logging.ERROR
    ]
