"""Checks what callers feed: one place that decides which samples are usable."""

from __future__ import annotations

from typing import Any

import numpy as np

from asr.errors import AudioError
from asr.events import SAMPLE_RATE

_MAX_LEVEL = 8.0  # resampling overshoots 1.0 a little; beyond this the scale is wrong


def as_samples(samples: Any, *, heard: int = 0) -> np.ndarray:
    """Return audio as float32.

    Args:
        samples: Mono audio at 16 kHz: floats in [-1, 1] or int16, shape ``[N]``, N may be 0.
        heard: Samples of the stream before these, for the message's time.

    Returns:
        Float32 of the same length, contiguous.

    Raises:
        AudioError: Wrong shape, type or scale, or samples that are not finite numbers.
    """
    array = np.asarray(samples)
    if array.ndim != 1:
        raise AudioError(f"samples must be mono, of shape [N], not {list(array.shape)}")
    if array.dtype == np.int16:
        return array.astype(np.float32) / 32768
    if array.dtype.kind != "f" and len(array):
        raise AudioError(f"samples must be float32 in [-1, 1] or int16, not {array.dtype}")
    array = np.ascontiguousarray(array, dtype=np.float32)
    if not len(array):
        return array
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise AudioError(
            f"sample at {(heard + bad) / SAMPLE_RATE:.3f} s is {array[bad]}, not a finite number"
        )
    level = float(np.abs(array).max())
    if level > _MAX_LEVEL:
        raise AudioError(f"samples must be in [-1, 1], but reach {level:.0f}; divide integers by 32768")
    return array
