"""Real model processes, two of them: what happens to one is not the other's, at the end neither is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from whisper.model import Whisper

from asr.errors import CheckpointError, OptionError
from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from service import server as server_module
from service import workers as workers_module
from service.admission import Tick
from service.config import Limits, ServerConfig
from service.server import Server
from service.stream_settings import AudioFormat, NoSlotError, StreamSettings
from service.worker_wire import Model
from service.workers import Workers
from tests.faults.recognising import LIMIT_S, alone, run, say, stream
from tests.processes import ROOT
from tests.serving import connected, finals, get, metric

PCM = AudioFormat()


@pytest.fixture(scope="module")
def weights(tiny_model: Whisper, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save({"dims": vars(tiny_model.dims), "model_state_dict": tiny_model.state_dict()}, path)
    return path


def model(weights: Path, **changes: Any) -> Model:
    given = {"adapter": "none", "head": "none", "weights": "fp32", "device": "cpu"}
    return Model(str(weights), **{**given, "defaults": StreamSettings(), **changes})


@contextlib.asynccontextmanager
async def serving(
    weights: Path, *, n_slots: int = 4, drain_s: float = 30, on_tick: Any = lambda tick: None
) -> AsyncIterator[tuple[Server, Workers]]:
    config = ServerConfig(port=0, limits=Limits(max_streams=n_slots, drain_s=drain_s))
    async with (
        Server(config) as server,
        Workers(model(weights), n_slots=n_slots, n_workers=2, on_tick=on_tick) as workers,
    ):
        server.open_for(workers, model=workers.loaded.name, languages=workers.loaded.languages)
        yield server, workers
        await server.close()


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.02)


def test_streams_are_shared_and_drained(
    weights: Path, tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole streams say what each says alone; those that a drain cuts end with their finals."""
    monkeypatch.setattr(server_module, "_FINISH_S", LIMIT_S)
    expected = [alone(tiny_recognizer, clip) for clip in clips]
    parts = [clip[: 2 * SAMPLE_RATE] for clip in clips]
    ticks: list[Tick] = []

    async def work() -> list[Any]:
        async with serving(weights, drain_s=0, on_tick=ticks.append) as (server, workers):
            assert await metric(server, "lanes") == 2 and workers.n_slots == 4
            results = await asyncio.gather(*(stream(server, clip) for clip in clips))
            assert [finals(messages) for messages in results] == expected
            assert {tick.n_lanes for tick in ticks} == {2}
            heard_s = sum(tick.audio_s for tick in ticks)
            assert heard_s == pytest.approx(sum(map(len, clips)) / 2 / SAMPLE_RATE)
            await until(lambda: workers.n_used == 0 and workers.cpu_s > 0 and workers.memory_bytes > 1e8)
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(connected(server)) for _ in parts]
                for client, part in zip(clients, parts, strict=True):
                    await client.start()
                    await say(client, part)
                assert {worker.n_streams for worker in workers._workers} == {1, 2}
                await until(lambda: sum(tick.audio_s for tick in ticks) > heard_s + 2)
                await asyncio.gather(server.drain(), *(client.rest() for client in clients))
                return [client.received for client in clients]

    results = run(work)
    assert [messages[-1]["reason"] for messages in results] == ["drain"] * 3
    assert [finals(messages) for messages in results] == [alone(tiny_recognizer, part) for part in parts]
    assert not psutil.Process().children()[1:]  # the first is multiprocessing's own


def test_a_process_that_is_killed(
    weights: Path, tiny_recognizer: Recognizer, clips: list[bytes], caplog: Any
) -> None:
    """Its stream ends with what was committed, the other one's with all its words; it begins anew."""
    expected = alone(tiny_recognizer, clips[1])

    async def work() -> list[dict[str, Any]]:
        async with serving(weights) as (server, workers):
            first, second = workers._workers
            async with connected(server) as victim:
                await victim.start()
                assert (first.n_streams, second.n_streams) == (1, 0)
                other = asyncio.create_task(stream(server, clips[1]))
                await say(victim, clips[0])
                while not (await victim.until("partial"))["committed"].strip():
                    pass
                assert first.pid
                os.kill(first.pid, signal.SIGKILL)
                await victim.rest()
                assert victim.websocket.close_code == 4500
            assert finals(await other) == expected
            assert (workers.n_lanes, workers.n_slots, workers.n_used) == (1, 2, 0)
            assert await metric(server, "lanes") == 1 and (await get(server, "/healthz"))[0] == 200
            await until(lambda: workers.n_lanes == 2)
            results = await asyncio.gather(*(stream(server, clips[1]) for _ in range(2)))
            assert [finals(messages) for messages in results] == [expected] * 2
            return victim.received

    messages = run(work)
    assert messages[-1]["code"] == "model_error"
    partials = [each for each in messages if each["type"] == "partial" and each["committed"].strip()]
    assert finals(messages)[-1] == partials[-1]["committed"].strip()
    (record,) = [
        each for each in caplog.records if each.levelno == logging.ERROR and each.name == "service.workers"
    ]
    assert "exit code -9; 1 streams failed" in record.message


def test_a_process_that_stands_still(
    weights: Path, tiny_recognizer: Recognizer, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """/healthz fails while it does; the other one's streams go on; when it goes on nothing is lost."""
    monkeypatch.setattr(server_module, "_STUCK_S", 0.2)
    expected = [alone(tiny_recognizer, clip) for clip in clips]

    async def work() -> None:
        async with serving(weights) as (server, workers), connected(server) as victim:
            await victim.start()
            (still,) = [worker.pid for worker in workers._workers if worker.n_streams]
            assert still
            os.kill(still, signal.SIGSTOP)
            try:
                await say(victim, clips[0])
                assert finals(await stream(server, clips[1])) == expected[1]
                while (answer := await get(server, "/healthz"))[0] == 200:
                    await asyncio.sleep(0.02)
                assert b"the model has not come back for" in answer[2]
            finally:
                os.kill(still, signal.SIGCONT)
            await victim.send("stop")
            assert finals(await victim.rest()) == expected[0]
            while (await get(server, "/healthz"))[0] != 200:
                await asyncio.sleep(0.02)

    run(work)


def test_slots_of_processes(weights: Path, clips: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals, full slots, abandoned starts and queues are as in one process; one that hangs is ended."""
    monkeypatch.setattr(workers_module, "_END_S", 0.2)

    async def work() -> None:
        async with Workers(model(weights), n_slots=2, n_workers=3) as workers:
            assert workers.n_lanes == 2
            with pytest.raises(OptionError, match="language must be one of"):
                await workers.open(PCM, StreamSettings(language="xx"), lambda _: None)
            starting = asyncio.create_task(workers.open(PCM, StreamSettings(), lambda _: None))
            await asyncio.sleep(0)
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            assert workers.n_used == 0
            slots = [await workers.open(PCM, StreamSettings(), lambda _: None) for _ in range(2)]
            with pytest.raises(NoSlotError, match="all 1 slots are taken"):
                await workers.open(PCM, StreamSettings(), lambda _: None)
            slots[0].feed(clips[0])
            assert slots[0].queued_s == pytest.approx(len(clips[0]) / 2 / SAMPLE_RATE)
            await until(lambda: slots[0].queued_s < 0.6)
            slots[1].close()
            again = await workers.open(AudioFormat("flac"), StreamSettings(), lambda _: None)
            again.feed(b"fLaC")
            assert again.queued_s > 0
            assert (pid := workers._workers[0].pid)
            os.kill(pid, signal.SIGSTOP)

    run(work)
    assert not psutil.Process().children()[1:]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"model": "nowhere.pt"}, CheckpointError, "nowhere.pt"),
        ({"defaults": StreamSettings(decoder="transducer")}, OptionError, "transducer"),
        ({"device": "nothing"}, OptionError, "device 'nothing' cannot be used"),
    ],
)
def test_a_model_that_cannot_be_loaded(weights: Path, changes: Any, error: Any, text: str) -> None:
    """The processes' own error comes out, and they end."""

    async def work() -> None:
        asked = model(weights, **{name: value for name, value in changes.items() if name != "model"})
        if "model" in changes:
            asked = model(Path(changes["model"]))
        with pytest.raises(error, match=text):
            async with Workers(asked, n_slots=1):
                pass

    run(work)
    assert not psutil.Process().children()[1:]


def test_a_server_that_is_killed_leaves_nothing(weights: Path) -> None:
    """Its model processes find their socket closed."""

    async def work() -> list[psutil.Process]:
        command = [sys.executable, "-m", "clients.cli", "serve", "--port", "0", "--model", str(weights)]
        command += ["--adapter", "none", "--threads", "1"]
        server = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        assert server.stdout and (await server.stdout.readline()).startswith(b"listening")
        children = psutil.Process(server.pid).children()
        server.kill()
        await server.wait()
        return children

    children = run(work)
    assert children
    deadline = time.monotonic() + LIMIT_S
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
