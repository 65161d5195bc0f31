"""benchmarks/protocols.py reads every protocol alike."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from benchmarks.protocols import PROTOCOLS, Screen, summarize, with_ratios
from benchmarks.server import ServerProcess
from tests.fake_batcher import FakeBatcher
from tests.serving import in_loop, serving


@in_loop
async def test_every_protocol_shows_the_same_words() -> None:
    """All words of the clip, each shown and kept no sooner than it was spoken."""
    async with serving(FakeBatcher(draft=""), vosk_port=0) as server:
        process = cast(ServerProcess, SimpleNamespace(url=server.stream_url, vosk_url=server.vosk_url))
        clips = (np.zeros(int(1.5 * each.sample_rate), np.int16) for each in PROTOCOLS)
        plays = [each.play(process, clip) for each, clip in zip(PROTOCOLS, clips, strict=True)]
        screens = await asyncio.gather(*plays)
    for screen in screens:
        assert screen.ends_s == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
        assert all(kept >= end for kept, end in zip(screen.kept_s, screen.ends_s, strict=True))
        assert all(shown >= end for shown, end in zip(screen.shown_s, screen.ends_s, strict=True))


def test_latencies_and_ratios() -> None:
    """A draft counts as shown, not as kept; a word counts from its end."""
    now = [0.0]
    screen = Screen(lambda: now[0])
    now[0] = 1.0
    screen.show(kept="one", draft="two three")
    now[0] = 2.0
    screen.close([{"end": 0.5}, {"end": 1.0}])
    row = summarize([screen])
    assert (row["words"], row["first_text_ms"], row["shown_p50_ms"], row["kept_p50_ms"]) == (
        2,
        1000,
        250,
        750,
    )
    slow = {name: 2 * value for name, value in row.items()}
    assert with_ratios({"native": row, "slow": slow})["slow"]["kept_p50_ms_to_native"] == 2
