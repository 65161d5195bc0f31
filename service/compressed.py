"""Compressed audio, decoded by FFmpeg's libraries (PyAV) in a thread of its own while its bytes arrive."""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from asr.errors import AudioError
from asr.events import SAMPLE_RATE
from service.stream_settings import AudioFormat

Samples = NDArray[np.float32]

_DEMUXERS = {"flac": "flac", "ogg_opus": "ogg"}
# A live stream must not wait until the demuxer has seen enough to be sure of everything.
_PROBE_BYTES = 4096
_PROBE_OPTIONS = {"probesize": str(_PROBE_BYTES), "analyzeduration": "1"}
_MAGIC = {b"OggS": "ogg", b"\x1a\x45\xdf\xa3": "matroska", b"RIFF": "wav", b"fLaC": "flac", b"ID3": "mp3"}
_MAGIC_BYTES = 4
# Decoded and not pulled. A megabyte of FLAC may hold days of silence, which would not fit into memory.
_MAX_DECODED = 30 * SAMPLE_RATE


class CompressedIntake:
    """FLAC, Ogg Opus, Opus packets and containers on their way to the recogniser; see `Intake`."""

    def __init__(self, encoding: str, *, on_samples: Callable[[], None]) -> None:
        """Start the decoding thread, which waits for bytes.

        Args:
            encoding: ``flac``, ``ogg_opus``, ``opus`` or ``container``.
            on_samples: Called from any thread when there may be something new to pull.
        """
        self._encoding = encoding
        self._on_samples = on_samples
        self._pipe = _Pipe(on_empty=on_samples)
        self._blocks: deque[Samples] = deque()
        self.n_pushed = self.n_taken = 0
        self._n_decoded = self._n_pulled = 0  # samples
        self._has_room = threading.Condition()
        self._error: AudioError | None = None
        self._is_done = False
        self._thread = threading.Thread(target=self._decode, name=f"decode-{encoding}", daemon=True)
        self._thread.start()

    @property
    def waiting_s(self) -> float:
        """Seconds of audio pushed and not pulled; what is not decoded yet is estimated from what is."""
        n_read = self.n_pushed - self._pipe.n_waiting
        bytes_per_s = AudioFormat(self._encoding).bytes_per_s  # until the stream itself tells
        if self._n_decoded >= SAMPLE_RATE:
            bytes_per_s = n_read * SAMPLE_RATE / self._n_decoded
        return (self._n_decoded - self._n_pulled) / SAMPLE_RATE + self._pipe.n_waiting / bytes_per_s

    def push(self, data: bytes) -> None:
        """Add the next piece: cut anywhere, but of Opus packets one whole packet."""
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
        with self._has_room:
            self._has_room.notify()

    def pull(self) -> Samples:
        """Take what has been decoded.

        Raises:
            AudioError: The bytes could not be decoded.
        """
        # Read first: the samples of all these bytes are in the blocks, save what the decoder holds back.
        n_settled = self.n_pushed if self._is_done else self._pipe.n_settled
        blocks = [self._blocks.popleft() for _ in range(len(self._blocks))]
        self.n_taken = n_settled
        if blocks:
            samples = np.concatenate(blocks)
            with self._has_room:
                self._n_pulled += len(samples)
                self._has_room.notify()
            return samples
        if self._error is not None:
            raise self._error
        return np.zeros(0, np.float32)

    def _decode(self) -> None:
        try:
            # All channels are kept here: FFmpeg's way to mono makes what is on both of them too loud.
            resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE)
            for frame in self._frames():
                self._keep(resampler.resample(frame))
            self._keep(resampler.resample(None))
            if not self._n_decoded:
                raise ValueError("no audio in it")
        except (av.FFmpegError, ValueError, IndexError) as error:
            if self.n_pushed and not self._pipe.is_closed:
                reason = getattr(error, "strerror", None) or str(error)
                self._error = AudioError(f"{self._expectation} ({reason}); check the encoding")
        finally:
            self._is_done = True
            self._on_samples()

    @property
    def _expectation(self) -> str:
        if self._encoding == "container":
            return "the bytes are no WAV, Ogg, WebM, FLAC, MP3 or AAC file"
        return f"the bytes are no {self._encoding} stream"

    def _frames(self) -> Iterator[Any]:
        demuxer = _DEMUXERS.get(self._encoding)
        if self._encoding == "opus":
            # Browsers call Opus in Ogg or WebM by this name too. No other magic: a packet may begin with it.
            demuxer = {"ogg": "ogg", "matroska": "matroska"}.get(demuxer_of(self._pipe.peek_piece()) or "")
        elif self._encoding == "container":
            demuxer = demuxer_of(self._pipe.peek(_MAGIC_BYTES))
        if demuxer is not None:
            yield from self._demuxed(demuxer)
        elif self._encoding == "opus":
            yield from self._opus_packets()
        else:
            raise ValueError("unknown format")

    def _demuxed(self, demuxer: str) -> Iterator[Any]:
        # The format is named, never guessed by FFmpeg: some of its demuxers open other files.
        with av.open(
            self._pipe, mode="r", format=demuxer, options=_PROBE_OPTIONS, buffer_size=_PROBE_BYTES
        ) as opened:
            yield from opened.decode(audio=0)

    def _opus_packets(self) -> Iterator[Any]:
        decoder = av.CodecContext.create("opus", "r")
        while packet := self._pipe.read_piece():
            yield from decoder.decode(av.Packet(packet))

    def _keep(self, frames: list[Any]) -> None:
        for frame in frames:
            channels = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
            samples = np.clip(channels.mean(axis=1, dtype=np.float32), -1.0, 1.0)
            self._n_decoded += len(samples)
            self._blocks.append(samples)
        self._on_samples()
        with self._has_room:
            self._has_room.wait_for(
                lambda: self._pipe.is_closed or self._n_decoded - self._n_pulled < _MAX_DECODED
            )


def demuxer_of(magic: bytes) -> str | None:
    """Return FFmpeg's name of the container that begins with these bytes, if it is one we take.

    Args:
        magic: The first bytes, a dozen or more.
    """
    for start, demuxer in _MAGIC.items():
        if magic.startswith(start):
            return demuxer
    if len(magic) >= 2 and magic[0] == 0xFF:
        layer = magic[1] & 0b0110
        if magic[1] & 0xF0 == 0xF0 and layer == 0:
            return "aac"  # ADTS
        if magic[1] & 0xE0 == 0xE0 and layer != 0:
            return "mp3"
    return None


class _Pipe:
    """A file for the demuxer whose reads wait for the client's next bytes."""

    def __init__(self, *, on_empty: Callable[[], None]) -> None:
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._piece = b""
        self._is_ended = False
        self._on_empty = on_empty
        self.is_closed = False
        self._n_written = self._n_read = 0
        self.n_settled = 0  # bytes that the reader was through with when it last came for more

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

    def peek(self, n_bytes: int) -> bytes:
        """The next ``n_bytes``, which stay; fewer only at the end."""
        while len(self._piece) < n_bytes and not self._is_ended:
            self._piece += self._next() or b""
        return self._piece[:n_bytes]

    def peek_piece(self) -> bytes:
        """The next piece as it was written, which stays; empty at the end."""
        return self.peek(1) and self._piece

    def read(self, n_bytes: int) -> bytes:
        """Up to ``n_bytes``, as soon as there are any; empty at the end."""
        self._settle()
        while not self._piece and not self._is_ended:
            self._piece = self._next() or b""
        if self.is_closed:
            return b""
        part, self._piece = self._piece[:n_bytes], self._piece[n_bytes:]
        self._n_read += len(part)
        return part

    def read_piece(self) -> bytes:
        """The next piece as it was written; empty at the end."""
        return self.read(sys.maxsize)

    def _settle(self) -> None:
        if not self._piece and self._pieces.empty() and self.n_settled != self._n_read:
            self.n_settled = self._n_read
            self._on_empty()

    def _next(self) -> bytes | None:
        piece = self._pieces.get()
        self._is_ended = piece is None
        return piece
