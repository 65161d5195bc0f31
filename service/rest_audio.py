"""An uploaded recording, decoded block by block by FFmpeg's libraries (PyAV)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from asr.errors import AudioError
from asr.events import SAMPLE_RATE
from service.compressed import demuxer_of

_MAGIC_BYTES = 16


def audio_blocks(file: BinaryIO) -> Iterator[NDArray[np.float32]]:
    """Decode a file; work for a thread other than the event loop's.

    Args:
        file: At its start, seekable.

    Yields:
        Samples ``[N]``: mono at 16 kHz in [-1, 1].

    Raises:
        AudioError: It is no recording of a kind that is known, or damaged.
    """
    magic = file.read(_MAGIC_BYTES)
    file.seek(0)
    # The format is named, never guessed by FFmpeg: some of its demuxers open other files.
    demuxer = "mp4" if magic[4:8] == b"ftyp" else demuxer_of(magic)
    if demuxer is None:
        raise AudioError("the file is no FLAC, M4A, MP3, MP4, Ogg, WAV or WebM recording")
    resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE)
    n_samples = 0
    try:
        with av.open(file, mode="r", format=demuxer) as container:
            for frame in container.decode(audio=0):
                for resampled in resampler.resample(frame):
                    samples = _mono(resampled)
                    n_samples += len(samples)
                    yield samples
            for resampled in resampler.resample(None):
                yield _mono(resampled)
    except (av.FFmpegError, ValueError, IndexError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(f"the file cannot be decoded ({reason}); convert it again") from error
    if not n_samples:
        raise AudioError("the file has no audio in it")


def _mono(frame: av.AudioFrame) -> NDArray[np.float32]:
    channels = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
    mono = channels.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise AudioError("the recording holds NaN or infinite samples; write it again without them")
    return np.clip(mono, -1.0, 1.0)
