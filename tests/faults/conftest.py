"""Fixtures of several fault tests."""

from __future__ import annotations

import numpy as np
import pytest

from asr.events import SAMPLE_RATE
from tests.faults.recognising import pcm


@pytest.fixture
def clips(jfk: np.ndarray) -> list[bytes]:
    """Three different ones."""
    return [pcm(jfk[int(start * SAMPLE_RATE) :][: 5 * SAMPLE_RATE // 2]) for start in (0, 3.2, 6)]
