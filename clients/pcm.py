"""Audio as callers have it, turned into the bytes of an encoding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from asr.errors import AudioError
from asr.samples import as_samples

Audio = bytes | bytearray | memoryview | np.ndarray

_SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}
_COMPRESSED_BYTES_PER_S = 16_000  # about what FLAC makes of 16 kHz speech; Ogg Opus is smaller


class AudioEncoder:
    """Cuts audio into frames of one encoding.

    Attributes:
        bytes_per_s: How much a second takes; an estimate for compressed encodings.
        is_plain: Audio may begin at any sample: the encoding is not compressed.
    """

    def __init__(self, encoding: str, *, sample_rate: int, channels: int) -> None:
        """Prepare.

        Args:
            encoding: One of the protocol's; the server refuses what it does not know.
            sample_rate: In Hz.
            channels: Interleaved.
        """
        self._encoding = encoding
        self._channels = channels
        size = _SAMPLE_BYTES.get(encoding)
        self._frame_bytes = None if size is None else max(1, size * channels)
        self._sample_rate = sample_rate
        self.is_plain = self._frame_bytes is not None
        self.bytes_per_s = (self._frame_bytes or 0) * sample_rate or _COMPRESSED_BYTES_PER_S

    def samples_in(self, n_bytes: int) -> int:
        """Return how many samples of each channel some bytes of a plain encoding are."""
        return n_bytes // (self._frame_bytes or 1)

    def bytes_before(self, time_s: float) -> int:
        """Return how many bytes of a plain encoding precede a time, whole samples of every channel."""
        return round(time_s * self._sample_rate) * (self._frame_bytes or 1)

    def frames(self, audio: Audio, *, max_bytes: int) -> Iterator[bytes]:
        """Yield audio in messages that are not too long.

        Args:
            audio: Bytes in the encoding, or int16 or float samples in [-1, 1] of shape [n_samples], or
                [n_samples, channels] where there are several.
            max_bytes: Longest message.

        Yields:
            Bytes, whole samples of every channel where the encoding has such.

        Raises:
            AudioError: Bytes that are no whole number of samples, or samples that cannot be used.
        """
        data = self._to_bytes(audio) if isinstance(audio, np.ndarray) else bytes(audio)
        whole = self._frame_bytes or 1
        if len(data) % whole:
            raise AudioError(
                f"{len(data)} bytes are no whole number of {self._encoding} samples with {self._channels} "
                f"channels ({whole} bytes); keep the rest for the next call"
            )
        step = max(max_bytes // whole, 1) * whole
        for start in range(0, len(data), step):
            yield data[start : start + step]

    def _to_bytes(self, audio: np.ndarray) -> bytes:
        is_mono = audio.ndim == 1 and self._channels == 1
        if not is_mono and (audio.ndim != 2 or audio.shape[1] != self._channels):
            expected = f"[n_samples, {self._channels}]" + " or [n_samples]" * (self._channels == 1)
            raise AudioError(f"samples have shape {list(audio.shape)}; expected {expected}")
        samples: Any = as_samples(audio.reshape(-1))
        if self._encoding == "pcm_f32le":
            return bytes(samples.astype("<f4").tobytes())
        if self._encoding == "pcm_s16le":
            return bytes(np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes())
        raise AudioError(f"arrays cannot be sent as {self._encoding}; pass bytes, or choose a pcm encoding")
