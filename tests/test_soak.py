"""The soak, a short one: a real server process with the fake model keeps its size under churn."""

from __future__ import annotations

from typing import Any

import pytest

from asr.errors import ForesoundError
from benchmarks import soak as soak_module
from benchmarks.soak import Sample, Soak, growth, is_good, report
from benchmarks.soak_load import BYTES_PER_S, Clip
from tests.fake_batcher import expected_texts
from tests.processes import Address, process
from tests.serving import in_loop


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


@in_loop
async def test_a_short_soak(tmp_path: Any) -> None:
    """Clients of all kinds beside a long stream: files, tasks, threads and slots are as at the start."""
    clips = [Clip(bytes(int(s * BYTES_PER_S)), tuple(expected_texts(s))) for s in (0.5, 1, 1.5, 2)]
    async with process("--resume-s", "0.3", "--max-streams", "12") as (_, url):
        address = Address(url)
        soak = Soak(address.stream_url, clips, n_clients=4, speed=20, round_s=0.8)
        long = await soak.run(seconds=8, long_audio=bytes(600 * BYTES_PER_S), long_speed=40)
        at_rest = await soak.at_rest()
    numbers = report(soak, long, at_rest, warm_up_s=2)
    # Seconds say nothing of memory, whose steps are of whole arenas; benchmarks/soak.py runs longer.
    assert is_good(numbers | {"growth": numbers["growth"] | {"rss_mb": 0.0}}), numbers
    assert numbers["growth"]["rss_mb"] < 0.1
    assert sum(numbers["visits"].values()) > 20 and numbers["cuts"]
    assert list(long.texts) == expected_texts(numbers["long_minutes"] * 60)
    from benchmarks.soak_plot import draw

    draw(numbers["samples"], warm_up_s=2, path=tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
