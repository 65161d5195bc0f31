"""What an operator can watch: metrics, the dashboard's queries, logs as JSON."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from asr.events import SAMPLE_RATE, Final, Partial, Word
from service.admission import Tick
from service.logs import JsonFormatter
from service.metrics import Metrics
from service.stream_settings import Finished
from service.word_latency import WordLatency
from tests.fake_batcher import BROKEN_MODEL
from tests.serving import connected, get, in_loop, metric, serving

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "deploy" / "monitoring" / "grafana.json"
ALERTS = ROOT / "deploy" / "monitoring" / "alerts.yaml"


async def exported() -> set[str]:
    """The names of all time series that a server has once it has seen everything."""
    async with serving() as server:
        async with connected(server) as client:
            token = (await client.start())["resume_token"]
            await client.audio(1)
            await client.send("nonsense")
            await client.until("final")
            client.cut()
        async with connected(server, f"?resume_token={token}") as client:
            await client.start(resume_token=token)
            await client.send("stop")
            await client.rest()
        async with connected(server, "?resume_token=unknown") as client:
            await client.start()
            await client.websocket.send(BROKEN_MODEL)
            await client.rest()
        server.metrics.count_tick(Tick(0.1, 1, 1, 0.3))
        server.metrics.refused.labels("full").inc()
        page = (await get(server, "/metrics"))[2].decode()
    return {re.split(r"[{ ]", line)[0] for line in page.splitlines() if not line.startswith("#")}


def queries(thing: Any) -> list[str]:
    """Every PromQL expression of a dashboard."""
    if isinstance(thing, dict):
        own = [thing["expr"]] if isinstance(thing.get("expr"), str) else []
        return own + [each for value in thing.values() for each in queries(value)]
    return [each for value in thing for each in queries(value)] if isinstance(thing, list) else []


def series(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:foresound|process)_\w+", expression))


@in_loop
async def test_every_query_of_the_dashboard_and_the_alerts_names_a_series_that_there_is() -> None:
    """Each panel has a query, and each query's series are on a server's page."""
    there = await exported()
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) >= 10 and all(queries(panel) for panel in panels)
    for expression in queries(dashboard):
        assert series(expression), expression
        assert series(expression) <= there, (expression, series(expression) - there)
    alerts = re.findall(r"expr: (.+)", ALERTS.read_text())
    assert alerts
    for expression in alerts:
        assert series(expression) and series(expression) <= there, expression


@in_loop
async def test_the_documented_metrics_exist() -> None:
    """The table of docs/deploy.md names nothing that is not there."""
    named = set(re.findall(r"`((?:foresound|process)_\w+)", (ROOT / "docs" / "deploy.md").read_text()))
    assert named and named <= await exported() | {"foresound_word_latency_seconds", "foresound_tick_seconds"}


@in_loop
async def test_words_are_timed_from_the_arrival_of_their_end() -> None:
    """Each committed word once, also if the final repeats it."""
    async with serving() as server, connected(server) as client:
        await client.start()
        await client.audio(2.5)
        await client.send("stop")
        await client.rest()
        assert await metric(server, "word_latency_seconds_count") == 10
        assert 0 <= await metric(server, "word_latency_seconds_sum") < 10 * 20


def word(start_s: float, end_s: float, *, stable: bool = True) -> Word:
    return Word("w", int(start_s * SAMPLE_RATE), int(end_s * SAMPLE_RATE), 0.9, stable)


def test_word_latency() -> None:
    """By the clock it is given; drafts do not count, nor words of audio that arrived too long ago."""
    seen: list[float] = []
    watch = WordLatency(seen.append)
    for second in range(1, 5):
        watch.heard(float(second), now=float(second))
    words = (word(0, 0.5), word(0.5, 1.0), word(1.0, 1.5), word(1.5, 2, stable=False))
    watch.told(Partial(0, "w w w", " w", words, 0), now=4.5)
    assert seen == [3.5, 3.5, 2.5]
    watch.told(Final(0, "w w w w", (*words[:3], word(1.5, 2)), 0, 2, False, 0), now=5.0)
    assert seen[3:] == [3.0]
    watch.told(Finished(4.0, 0.1), now=5.0)  # the session restarts, its next stream's times begin at 0
    watch.heard(5.0, now=6.0)
    watch.told(Partial(1, "w", "", (word(0, 1),), 0), now=6.25)
    assert seen[4:] == [0.25]
    watch.heard(6.0, now=7.0)
    watch.heard(500.0, now=8.0)
    watch.told(Partial(1, "w", "", (word(1, 2),), 0), now=9.0)  # when its audio came is forgotten
    watch.told(Partial(1, "w", "", (word(2, 490),), 0), now=9.0)
    watch.told(Partial(1, "w", "", (word(490, 600),), 0), now=9.0)  # and this has not come at all
    assert seen[5:] == [1.0]


@in_loop
async def test_resumes_drains_and_errors_are_counted() -> None:
    """Each by its name."""
    async with serving() as server:
        async with connected(server) as client:
            token = (await client.start())["resume_token"]
            client.cut()
        async with connected(server, f"?resume_token={token}") as client:
            await client.start(resume_token=token)
            await client.websocket.send(BROKEN_MODEL)
            await client.rest()
        assert await metric(server, "resumes_total") == 1
        assert await metric(server, 'errors_total{code="model_error"}') == 1
        assert (await metric(server, "draining"), await metric(server, "drains_total")) == (0, 0)
        await server.drain()
        assert (await metric(server, "draining"), await metric(server, "drains_total")) == (1, 1)


def test_ticks_are_counted() -> None:
    """What they took, and how much audio was in them: the real-time factor is the quotient of the rates."""
    metrics = Metrics()
    metrics.count_tick(Tick(0.25, 5, 5, 1.5))
    metrics.count_tick(Tick(0.03125, 6, 6, 2.0))
    page = metrics.page().decode()
    assert "foresound_tick_seconds_sum 0.28125" in page and 'tick_seconds_bucket{le="0.04"} 1.0' in page
    assert "foresound_recognised_audio_seconds_total 3.5" in page


@pytest.fixture
def json_log() -> Any:
    """What the service's loggers write as JSON."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("service")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_logs_as_json(json_log: Any) -> None:
    """One object a line with the session's id, tracebacks included; nothing of what was said or sent."""
    secret = "ein sehr geheimer Satz"

    async def talk() -> tuple[str, str]:
        async with serving() as server, connected(server, "?token=nobody-asked") as client:
            ready = await client.start(prompt=secret, hotwords=[secret])
            await client.audio(1)
            await client.send(secret)
            await client.send("stop")
            await client.rest()
            try:
                raise ValueError("one\ntwo")
            except ValueError:
                logging.getLogger("service.live").exception("a fault")
            return ready["session"], ready["resume_token"]

    session, token = asyncio.run(talk())
    started, ended, fault = json_log()
    assert (started["session"], started["level"], started["key"]) == (session, "info", "anybody")
    assert (ended["session"], ended["cause"], ended["audio_s"]) == (session, "stop", 1.0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", started["time"])
    assert "ValueError: one\ntwo" in fault["traceback"] and fault["level"] == "error"
    everything = json.dumps(json_log())
    assert not [each for each in (secret, token, "nobody-asked", "w0") if each in everything]


def test_a_fault_is_logged_with_its_session(json_log: Any) -> None:
    """A traceback says whose stream it was."""

    async def talk() -> str:
        async with serving() as server, connected(server) as client:
            ready = await client.start()
            await client.websocket.send(BROKEN_MODEL)
            await client.rest()
            return ready["session"]

    session = asyncio.run(talk())
    _, fault, ended = json_log()
    assert (fault["session"], fault["level"], fault["key"]) == (session, "error", "anybody")
    assert "RuntimeError: the model broke" in fault["traceback"]
    assert (ended["session"], ended["cause"]) == (session, "model_error")
