"""Reverberation for training: speech as it sounds in simulated rooms (image sources, by pyroomacoustics)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from asr.errors import OptionError
from asr.events import SAMPLE_RATE

N_ROOMS = 64
MAX_ORDER = 12  # reflections; those after the twelfth are inaudible in rooms this small
MARGIN_M = 0.5  # from walls to speaker and microphone


@lru_cache(maxsize=N_ROOMS)
def impulse_response(room: int) -> np.ndarray:
    """What a click at the speaker's place becomes at the microphone's.

    Args:
        room: Number of the room, which decides its size, its walls and the two places.

    Returns:
        Float32 ``[S]`` at 16 kHz, of unit energy, beginning with the direct sound: words are heard when they
        are said.

    Raises:
        OptionError: pyroomacoustics is not installed.
    """
    try:
        import pyroomacoustics
    except ImportError as error:
        raise OptionError(
            "reverb_share needs pyroomacoustics: pip install 'foresound[train]', or set reverb_share to 0"
        ) from error
    rng = np.random.default_rng(room)
    size = rng.uniform((3.0, 3.0, 2.3), (9.0, 7.0, 4.0))
    decay_s = rng.uniform(0.2, 0.6)
    absorption, order = pyroomacoustics.inverse_sabine(decay_s, size)
    shoebox = pyroomacoustics.ShoeBox(
        size,
        fs=SAMPLE_RATE,
        materials=pyroomacoustics.Material(absorption),
        max_order=min(order, MAX_ORDER),
    )
    shoebox.add_source(rng.uniform(MARGIN_M, size - MARGIN_M))
    shoebox.add_microphone(rng.uniform(MARGIN_M, size - MARGIN_M))
    shoebox.compute_rir()
    response = np.asarray(shoebox.rir[0][0])
    response = response[int(np.abs(response).argmax()) :]
    return np.asarray(response / np.sqrt((response**2).sum()), np.float32)


def reverberate(audio: np.ndarray, room: int) -> np.ndarray:
    """Put speech into a room.

    Args:
        audio: Float32 ``[S]`` at 16 kHz.
        room: As in :func:`impulse_response`.

    Returns:
        Float32 ``[S]``, about as loud.
    """
    response = impulse_response(room)  # first: it says what must be installed
    from scipy.signal import oaconvolve  # comes with pyroomacoustics

    return np.asarray(oaconvolve(audio, response)[: len(audio)])
