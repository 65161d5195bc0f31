"""How many streams fit: learned from ticks of a simulated server whose truth is known."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import replace

import pytest

from asr.errors import OptionError
from service.admission import Goodput, Tick

CHUNK_S = 0.3


def _ticks(goodput: Goodput, *, tick_s: float, stream_s: float, n_streams: int, seconds: float) -> float:
    """Serve real-time streams at random phases for a while; the worst latency of a sample."""
    random.seed(n_streams)
    arrivals = [random.uniform(0, CHUNK_S) for _ in range(n_streams)]
    heapq.heapify(arrivals)
    now = worst_s = 0.0
    while now < seconds:
        now = max(now, arrivals[0])
        going = []
        while arrivals and arrivals[0] <= now:
            going.append(heapq.heappop(arrivals))
        took_s = (tick_s + stream_s * len(going)) * random.uniform(0.9, 1.1)
        goodput.observe(Tick(took_s, len(going), n_streams, CHUNK_S * len(going)))
        now += took_s
        worst_s = max(worst_s, *(now - arrival + CHUNK_S for arrival in going))
        for arrival in going:
            heapq.heappush(arrivals, arrival + CHUNK_S)
    return worst_s


@pytest.mark.parametrize(("tick_s", "stream_s"), [(0.02, 0.008), (0.001, 0.02), (0.08, 0.002)])
@pytest.mark.parametrize("target_s", [0.5, 1.0])
def test_what_is_admitted_stays_within_the_target(tick_s: float, stream_s: float, target_s: float) -> None:
    """Streams are added as long as they fit; then the target holds, and half as many more would break it."""
    goodput = Goodput(target_s)
    costs = {"tick_s": tick_s, "stream_s": stream_s}
    n_streams = 0
    while goodput.capacity is None or n_streams < goodput.capacity:
        n_streams += 1
        _ticks(goodput, n_streams=n_streams, seconds=10.0, **costs)
    assert _ticks(goodput, n_streams=n_streams, seconds=30.0, **costs) <= 1.1 * target_s
    more = math.ceil(1.5 * n_streams) + 1
    assert _ticks(Goodput(target_s), n_streams=more, seconds=60.0, **costs) > target_s


def test_one_stream_is_always_let_in() -> None:
    """However slow the machine; nothing is known before the first tick."""
    goodput = Goodput(0.4)
    assert goodput.capacity is None
    goodput.observe(Tick(5.0, 1, 1, 0.3))
    assert goodput.capacity == 1


def test_like_ticks_are_shared_out() -> None:
    """As long as every tick has one stream, half of its cost counts as the stream's."""
    goodput = Goodput(1.0)
    for _ in range(200):
        goodput.observe(Tick(0.03, 1, 1, 0.3))
    assert goodput.capacity == pytest.approx(0.9 * 0.3 / 0.015 * (1 - 0.015 / 0.3), abs=1)


def test_it_follows_the_machine() -> None:
    """When ticks become three times as dear, fewer streams fit, and again more when they are cheap."""
    goodput = Goodput(1.0)
    capacities = []
    for cost in (0.004, 0.012, 0.004):
        for i in range(3000):
            n_streams = 1 + i % 8
            goodput.observe(Tick(0.01 + cost * n_streams, n_streams, 8, 0.3 * n_streams))
        capacities.append(goodput.capacity or 0)
    share = 0.9 * (1 - 0.01 / 0.3)
    cheap, dear = 0.3 / 0.004 * share, 0.3 / 0.012 * share
    assert capacities == [
        pytest.approx(cheap, abs=4),
        pytest.approx(dear, abs=2),
        pytest.approx(cheap, abs=4),
    ]


@pytest.mark.parametrize("target_s", [0.0, -1.0, math.nan, math.inf])
def test_a_target_must_be_one(target_s: float) -> None:
    """Anything else is refused when the server is set up."""
    with pytest.raises(OptionError, match="more than 0"):
        Goodput(target_s)


def test_as_many_lanes_hold_as_many_times_the_streams() -> None:
    one, three = Goodput(1.0), Goodput(1.0)
    for n_streams in (1, 4, 2, 3, 4):
        tick = Tick(0.01 + 0.02 * n_streams, n_streams, 4, 0.3 * n_streams)
        one.observe(tick)
        three.observe(replace(tick, n_lanes=3))
    assert one.capacity and three.capacity == 3 * one.capacity
