"""The soak, a short one: a real server process with the fake model keeps its size under churn."""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import DEVNULL
from pathlib import Path
from typing import Any

import pytest

from asr.errors import ForesoundError
from benchmarks import soak as soak_module
from benchmarks.soak import Sample, Soak, growth, is_good, report
from benchmarks.soak_load import BYTES_PER_S, Clip
from tests.fake_batcher import expected_texts
from tests.processes import Address, process


def sample(**values: float) -> Sample:
    defaults: dict[str, Any] = dict.fromkeys(Sample.__dataclass_fields__, 1)
    return Sample(**(defaults | values))


def test_growth_is_that_of_the_quarters() -> None:
    """After the warm-up; from nothing to something is growth as well."""
    memory = (1, 50, 100, 101, 102, 103, 104, 110, 111)
    samples = [sample(at_s=at, rss_mb=rss) for at, rss in enumerate(memory)]
    assert growth(samples, "rss_mb", warm_up_s=1) == pytest.approx(0.11)
    assert growth(samples, "fds", warm_up_s=1) == 0
    leak = [sample(at_s=at, slots=slots) for at, slots in enumerate([0, 0, 0, 0, 3, 3])]
    assert growth(leak, "slots", warm_up_s=1) == 3
    with pytest.raises(ForesoundError, match="too few"):
        growth(samples, "rss_mb", warm_up_s=100)


def test_a_leak_or_a_wrong_final_is_not_good() -> None:
    """Each by itself."""
    good: dict[str, Any] = {"growth": dict.fromkeys(soak_module.GROWING, 0.0)}
    good |= {"wrong": [], "crashes": 0.0, "slots_at_rest": 0.0}
    assert is_good(good)
    for worse in ({"growth": good["growth"] | {"fds": 0.05}}, {"wrong": ["a | b"]}, {"slots_at_rest": 1.0}):
        assert not is_good(good | worse)


SECONDS = float(os.environ.get("FORESOUND_SOAK_S", "8"))
PLOT = os.environ.get("FORESOUND_SOAK_PLOT")


def test_a_short_soak(tmp_path: Path) -> None:
    """Clients of all kinds beside a long stream: files, tasks, threads and slots are as at the start.

    FORESOUND_SOAK_S makes it longer, FORESOUND_SOAK_PLOT keeps the picture.
    """
    asyncio.run(asyncio.wait_for(short_soak(Path(PLOT or tmp_path / "soak.png")), 5 * SECONDS + 60))


async def short_soak(plot: Path) -> None:
    clips = [Clip(bytes(int(s * BYTES_PER_S)), tuple(expected_texts(s))) for s in (0.5, 1, 1.5, 2)]
    options = ("--resume-s", "0.3", "--max-streams", "12")
    async with process(*options, stderr=DEVNULL) as (_, url):  # a pipe would fill up with its log
        address = Address(url)
        soak = Soak(address.stream_url, clips, n_clients=4, speed=20, round_s=SECONDS / 10)
        long_audio = bytes(round(20 * SECONDS) * BYTES_PER_S)
        long = await soak.run(seconds=SECONDS, long_audio=long_audio, long_speed=15)
        at_rest = await soak.at_rest()
    numbers = report(soak, long, at_rest, warm_up_s=SECONDS / 5)
    # Seconds say nothing of memory, whose steps are of whole arenas.
    small = {"rss_mb": 0.0} if SECONDS < 60 else {}
    assert is_good(numbers | {"growth": numbers["growth"] | small}), numbers
    assert numbers["growth"]["rss_mb"] < 0.1
    assert sum(numbers["visits"].values()) > 20 and numbers["cuts"]
    assert list(long.texts) == expected_texts(numbers["long_minutes"] * 60)
    from benchmarks.soak_plot import draw

    draw(numbers["samples"], warm_up_s=numbers["warm_up_s"], path=plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
    print(json.dumps({name: value for name, value in numbers.items() if name != "samples"}))
