"""From a client's bytes to mono samples at 16 kHz, piece by piece.

Every intake is pushed bytes by the event loop and pulled samples by the worker thread; plain encodings are
decoded when they are pulled, compressed ones in a thread of their own.
"""

from __future__ import annotations

import io
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from asr.errors import AudioError
from asr.events import SAMPLE_RATE
from service.stream_settings import COMPRESSED_ENCODINGS, AudioFormat

Samples = NDArray[np.float32]

_NOTHING: Samples = np.zeros(0, np.float32)

_NOMINAL_BYTES_PER_S = {"flac": 30_000, "ogg_opus": 4_000}  # until the stream itself tells
_CONTAINERS = {"flac": "flac", "ogg_opus": "ogg"}
# A live stream must not wait until the demuxer has seen enough to be sure of everything.
_PROBE_BYTES = 4096
_PROBE_OPTIONS = {"probesize": str(_PROBE_BYTES), "analyzeduration": "1"}


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
    if audio.encoding in COMPRESSED_ENCODINGS:
        return CompressedIntake(audio.encoding, on_samples=on_samples)
    return PlainIntake(audio, on_samples=on_samples)


class PlainIntake:
    """Uncompressed samples: 16-bit and float PCM, mu-law and A-law."""

    def __init__(self, audio: AudioFormat, *, on_samples: Callable[[], None]) -> None:
        """Start with nothing pushed."""
        assert audio.bytes_per_frame is not None
        self._audio = audio
        self._bytes_per_s = audio.bytes_per_frame * audio.sample_rate
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
        return (self.n_pushed - self.n_taken) / self._bytes_per_s

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


class CompressedIntake:
    """FLAC and Ogg Opus, demuxed and decoded by FFmpeg's libraries (PyAV) while the bytes arrive."""

    def __init__(self, encoding: str, *, on_samples: Callable[[], None]) -> None:
        """Start the decoding thread, which waits for bytes."""
        self._encoding = encoding
        self._on_samples = on_samples
        self._pipe = _Pipe()
        self._blocks: deque[Samples] = deque()
        self.n_pushed = 0
        self._n_decoded = self._n_pulled = 0  # samples
        self._error: AudioError | None = None
        self._is_done = False
        self._thread = threading.Thread(target=self._decode, name=f"decode-{encoding}", daemon=True)
        self._thread.start()

    @property
    def n_taken(self) -> int:
        """Every byte pushed: what the demuxer still holds back cannot be told apart."""
        return self.n_pushed

    @property
    def waiting_s(self) -> float:
        """Seconds of audio pushed and not pulled; what is not decoded yet is estimated from what is."""
        n_read = self.n_pushed - self._pipe.n_waiting
        bytes_per_s = float(_NOMINAL_BYTES_PER_S[self._encoding])
        if self._n_decoded >= SAMPLE_RATE:
            bytes_per_s = n_read * SAMPLE_RATE / self._n_decoded
        return (self._n_decoded - self._n_pulled) / SAMPLE_RATE + self._pipe.n_waiting / bytes_per_s

    def push(self, data: bytes) -> None:
        """Add the next piece of the stream, cut anywhere."""
        self.n_pushed += len(data)
        self._pipe.write(data)

    def end(self) -> None:
        """No more bytes come."""
        self._pipe.write(None)

    def is_drained(self) -> bool:
        """Whether the decoder is through with everything and it has been pulled."""
        return self._is_done and not self._blocks and self._error is None

    def close(self) -> None:
        """Let the thread come to its end."""
        self._pipe.close()

    def pull(self) -> Samples:
        """Take what has been decoded.

        Raises:
            AudioError: The bytes could not be decoded.
        """
        blocks = [self._blocks.popleft() for _ in range(len(self._blocks))]
        if blocks:
            samples = np.concatenate(blocks)
            self._n_pulled += len(samples)
            return samples
        if self._error is not None:
            raise self._error
        return _NOTHING

    def _decode(self) -> None:
        try:
            self._read_container()
        except (av.FFmpegError, ValueError, IndexError) as error:
            if self.n_pushed and not self._pipe.is_closed:
                reason = getattr(error, "strerror", None) or str(error)
                message = f"the bytes are no {self._encoding} stream ({reason}); check the encoding in start"
                self._error = AudioError(message)
        finally:
            self._is_done = True
            self._on_samples()

    def _read_container(self) -> None:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        container = _CONTAINERS[self._encoding]
        with av.open(
            self._pipe, mode="r", format=container, options=_PROBE_OPTIONS, buffer_size=_PROBE_BYTES
        ) as opened:
            for frame in opened.decode(audio=0):
                self._keep(resampler.resample(frame))
            self._keep(resampler.resample(None))
        if not self._n_decoded:
            raise ValueError("no audio in it")

    def _keep(self, frames: list[Any]) -> None:
        for frame in frames:
            samples = np.clip(frame.to_ndarray().reshape(-1).astype(np.float32), -1.0, 1.0)
            self._n_decoded += len(samples)
            self._blocks.append(samples)
        self._on_samples()


class _Pipe:
    """A file for the demuxer whose reads wait for the client's next bytes."""

    def __init__(self) -> None:
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._piece = b""
        self._is_ended = False
        self.is_closed = False
        self._n_written = self._n_read = 0

    @property
    def n_waiting(self) -> int:
        """Bytes written and not read."""
        return self._n_written - self._n_read

    def write(self, data: bytes | None) -> None:
        """Add bytes, or None for the end."""
        self._n_written += len(data or b"")
        self._pieces.put(data)

    def close(self) -> None:
        """Let the reader find the end at once."""
        self.is_closed = True
        self._pieces.put(None)

    def read(self, n_bytes: int) -> bytes:
        """Up to ``n_bytes``, as soon as there are any; empty at the end."""
        while not self._piece and not self._is_ended:
            data = self._pieces.get()
            if data is None:
                self._is_ended = True
            else:
                self._piece = data
        if self.is_closed:
            return b""
        part, self._piece = self._piece[:n_bytes], self._piece[n_bytes:]
        self._n_read += len(part)
        return part
