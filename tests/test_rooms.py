"""Simulated rooms."""

from __future__ import annotations

import numpy as np
import pytest

from asr.events import SAMPLE_RATE
from training.rooms import impulse_response, reverberate

pytest.importorskip("pyroomacoustics")


def test_responses_begin_with_the_direct_sound_and_die_away() -> None:
    """A click is heard at once, and half a second later hardly any more."""
    for room in range(4):
        response = impulse_response(room)
        assert np.abs(response).argmax() == 0
        assert (response**2).sum() == pytest.approx(1, rel=1e-4)
        late = response[SAMPLE_RATE // 2 :]
        assert (late**2).sum() < 0.05


def test_the_same_room_sounds_the_same_and_others_differ() -> None:
    """What a run hears depends on its draws alone."""
    audio = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    first = reverberate(audio, 1)
    assert first.shape == audio.shape and first.dtype == np.float32
    impulse_response.cache_clear()
    assert np.array_equal(first, reverberate(audio, 1))
    assert not np.allclose(first, reverberate(audio, 2))


def test_rooms_keep_time() -> None:
    """Reverberated noise correlates with itself at no delay."""
    audio = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    heard = reverberate(audio, 3)
    correlation = np.correlate(heard[:4000], audio[:4000], mode="full")
    assert abs(int(np.abs(correlation).argmax()) - 3999) <= 1
