"""From a client's bytes to mono samples at 16 kHz, piece by piece.

Every intake is pushed bytes by the event loop and pulled samples by the worker thread; plain encodings are
decoded when they are pulled, compressed ones in a thread of their own.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from asr.errors import AudioError
from asr.events import SAMPLE_RATE
from service.compressed import CompressedIntake
from service.stream_settings import AudioFormat

Samples = NDArray[np.float32]

_NOTHING: Samples = np.zeros(0, np.float32)


class Intake(Protocol):
    """The audio of one stream on its way to the recogniser."""

    def push(self, data: bytes) -> None:
        """Add the client's next bytes."""

    def end(self) -> None:
        """No more bytes come."""

    def pull(self) -> Samples:
        """Take the samples ``[N]`` that have been decoded since the last call.

        Raises:
            AudioError: The bytes are no such audio; samples before the damage have been pulled.
        """

    def is_drained(self) -> bool:
        """Whether everything pushed has been pulled, and after :meth:`end` nothing can follow."""

    def close(self) -> None:
        """Drop what is left."""

    @property
    def waiting_s(self) -> float:
        """Seconds of audio pushed and not pulled, estimated for compressed audio."""

    @property
    def n_pushed(self) -> int:
        """Bytes pushed."""

    @property
    def n_taken(self) -> int:
        """Bytes whose samples have been pulled, as far as is known."""


def open_intake(audio: AudioFormat, *, on_samples: Callable[[], None]) -> Intake:
    """Return the intake for a format.

    Args:
        audio: What the client sends.
        on_samples: Called from any thread when there may be something new to pull.

    Returns:
        The intake.
    """
    if audio.bytes_per_frame is None:
        return CompressedIntake(audio.encoding, on_samples=on_samples)
    return PlainIntake(audio, on_samples=on_samples)


class PlainIntake:
    """Uncompressed samples: 16-bit and float PCM, mu-law and A-law."""

    def __init__(self, audio: AudioFormat, *, on_samples: Callable[[], None]) -> None:
        """Start with nothing pushed."""
        assert audio.bytes_per_frame is not None
        self._audio = audio
        self._on_samples = on_samples
        self._pieces: deque[bytes] = deque()  # appended by one thread, popped by another
        self.n_pushed = self.n_taken = 0
        self._is_ended = self._is_flushed = False
        self._resampler = (
            None
            if audio.sample_rate == SAMPLE_RATE
            else soxr.ResampleStream(audio.sample_rate, SAMPLE_RATE, 1, dtype="float32")
        )

    @property
    def waiting_s(self) -> float:
        """Seconds of audio pushed and not pulled."""
        return (self.n_pushed - self.n_taken) / self._audio.bytes_per_s

    def push(self, data: bytes) -> None:
        """Add whole sample frames."""
        self.n_pushed += len(data)
        self._pieces.append(data)
        self._on_samples()

    def end(self) -> None:
        """No more bytes come."""
        self._is_ended = True
        self._on_samples()

    def is_drained(self) -> bool:
        """Whether everything has been pulled."""
        return not self._pieces and (self._is_flushed or not self._is_ended)

    def close(self) -> None:
        """Drop what is left."""
        self._pieces.clear()

    def pull(self) -> Samples:
        """Decode what has been pushed.

        Raises:
            AudioError: A sample is no finite number.
        """
        is_last = self._is_ended  # read first: what is pushed before the end is in the pieces below
        if not self._pieces and is_last == self._is_flushed:
            return _NOTHING  # what most calls find
        pieces = [self._pieces.popleft() for _ in range(len(self._pieces))]
        data = b"".join(pieces)
        self.n_taken += len(data)
        mono = _decode_plain(data, self._audio).mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise AudioError("the audio holds NaN or infinite samples; send finite floats in [-1, 1]")
        if self._resampler is not None and not self._is_flushed:
            mono = self._resampler.resample_chunk(mono, last=is_last)
        self._is_flushed = is_last
        return np.clip(mono, -1.0, 1.0)


def _decode_plain(data: bytes, audio: AudioFormat) -> Samples:
    """Samples ``[N, channels]`` of whole sample frames."""
    flat: Samples = _NOTHING
    if audio.encoding == "pcm_s16le":
        flat = np.frombuffer(data, dtype="<i2").astype(np.float32) / np.float32(32768)
    elif audio.encoding == "pcm_f32le":
        flat = np.frombuffer(data, dtype="<f4").astype(np.float32)
    elif data:
        subtype = {"mulaw": "ULAW", "alaw": "ALAW"}[audio.encoding]
        raw, _ = soundfile.read(
            io.BytesIO(data), samplerate=8000, channels=1, format="RAW", subtype=subtype, dtype="float32"
        )
        flat = np.asarray(raw, dtype=np.float32)
    return flat.reshape(-1, audio.channels)
