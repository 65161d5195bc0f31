"""The soak, a short one: a real server process with the fake model keeps its size under churn."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from asyncio.subprocess import DEVNULL
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asr.errors import ForesoundError
from benchmarks import soak as soak_module
from benchmarks import soak_load as soak_load_module
from benchmarks.soak import Sample, Soak, growth, is_good, report
from benchmarks.soak_load import BYTES_PER_S, Clip
from benchmarks.soak_speech import long_speech
from tests.fake_batcher import expected_texts
from tests.processes import Address, process
from training.manifest import read_manifest


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
    """Each by itself, and what could not be measured."""
    good: dict[str, Any] = {"growth": dict.fromkeys(soak_module.GROWING, 0.0)}
    good |= {"wrong": [], "failed": [], "faults": [], "long_broken": [], "long_done": True}
    good |= {"crashes": 0.0, "slots_at_rest": 0.0}
    assert is_good(good)
    bad: list[dict[str, Any]] = [{"growth": good["growth"] | {"fds": 0.05}}, {"growth": {}}]
    bad += [{name: ["a"]} for name in ("wrong", "failed", "faults", "long_broken")]
    bad += [{"slots_at_rest": 1.0}, {"slots_at_rest": None}, {"crashes": 1.0}, {"long_done": False}]
    for worse in bad:
        assert not is_good(good | worse), worse


def test_a_server_that_dies_is_reported(unused_tcp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers: the run goes on to its end, and all that failed is in the report."""
    monkeypatch.setattr(soak_module, "_QUIET_S", 0.1)
    monkeypatch.setattr(soak_load_module, "_MAX_BROKEN", 2)
    soak = Soak(unused_tcp_url, [Clip(bytes(3200), ("w",))], n_clients=2, speed=20, round_s=0.5)

    async def run() -> dict[str, Any]:
        long = await soak.run(seconds=1, long_audio=bytes(BYTES_PER_S), long_speed=10)
        return report(soak, long, await soak.at_rest(), warm_up_s=0)

    numbers = asyncio.run(asyncio.wait_for(run(), 60))
    assert numbers["failed"] and numbers["long_broken"] and not numbers["long_done"]
    assert "too few" in numbers["faults"][-1] and numbers["slots_at_rest"] is None
    assert not is_good(numbers)


@pytest.fixture
def unused_tcp_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"ws://127.0.0.1:{free.getsockname()[1]}/v1/stream"


def test_long_speech_begins_again(tmp_path: Path) -> None:
    """Utterances in turn until it is enough, and what is said in them."""
    import soundfile

    lines = []
    for name, seconds in (("a", 0.5), ("b", 0.25)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(int(seconds * 16_000), 0.5), 16_000)
        lines.append(json.dumps({"audio": f"{name}.wav", "duration": seconds, "text": name}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    audio, said = long_speech(read_manifest(tmp_path / "m.jsonl"), hours=1.1 / 3600)
    assert said == "a b a" and len(audio) == 1.25 * BYTES_PER_S


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
