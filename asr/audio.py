"""Audio from files and pipes, read in blocks as 16 kHz mono float32.

Nothing here holds a whole recording: a two-hour file costs as much memory as a short one.
soundfile decodes what it knows, ffmpeg (when installed) decodes other containers, and
:mod:`asr.audio_decoders` holds both. soxr resamples with a state that is carried from block
to block.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import soxr
from numpy.typing import NDArray

from asr.audio_decoders import Decoder, PcmDecoder, open_file_decoder, open_stream_decoder
from asr.errors import AudioError
from asr.events import SAMPLE_RATE

# Decoded floats may overshoot 1.0 a little; far beyond it the file is in integer units.
_MAX_PLAUSIBLE_PEAK = 64.0


class AudioSource:
    """Audio of any rate and channel count, seen as blocks of 16 kHz mono samples.

    Attributes:
        name: What to call the source in messages.
        sample_rate: Samples per second and channel before resampling.
        channels: Channels before they are averaged.
        duration_s: Length in seconds, None where only the end will tell.
    """

    def __init__(self, decoder: Decoder, *, name: str) -> None:
        """Wrap a decoder.

        Args:
            decoder: Gives frames of shape [n_frames, channels].
            name: What to call the source in messages.

        Raises:
            AudioError: The decoder's rate or channel count makes no sense.
        """
        if decoder.sample_rate < 1 or decoder.channels < 1:
            decoder.close()
            raise AudioError(
                f"{name}: claims {decoder.sample_rate} Hz and {decoder.channels} channels; "
                "the file is damaged, convert it again"
            )
        self.name = name
        self.sample_rate = decoder.sample_rate
        self.channels = decoder.channels
        known = decoder.n_frames
        self.duration_s = None if known is None else known / decoder.sample_rate
        self._decoder = decoder

    def __enter__(self) -> AudioSource:
        """Return itself; the file is closed when the block is left."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file or end the ffmpeg process; closing twice is harmless."""
        self._decoder.close()

    def blocks(self, block_s: float = 0.1) -> Iterator[NDArray[np.float32]]:
        """Yield the audio once, from where reading stands to the end.

        Args:
            block_s: Seconds read at a time. A pipe yields what has arrived, so its blocks
                may be shorter.

        Yields:
            Samples of shape [n_samples], 16 kHz mono float32 in [-1, 1]. Block lengths vary
            by a few samples where the rate is changed; no block is empty.

        Raises:
            AudioError: No sample at all, damaged data, or samples that are not finite.
            ValueError: ``block_s`` is not positive.
        """
        if not block_s > 0:
            raise ValueError(f"block_s is {block_s}; it must be positive")
        block_frames = max(1, round(block_s * self.sample_rate))
        resampler = None
        if self.sample_rate != SAMPLE_RATE:
            resampler = soxr.ResampleStream(self.sample_rate, SAMPLE_RATE, 1, dtype="float32")
        heard_frames = 0
        while len(frames := self._decoder.read(block_frames)):
            self._check(frames, heard_frames=heard_frames)
            heard_frames += len(frames)
            mono = frames.mean(axis=1, dtype=np.float32)
            samples = mono if resampler is None else resampler.resample_chunk(mono)
            if len(samples):
                yield np.clip(samples, -1.0, 1.0)
        if not heard_frames:
            raise AudioError(f"{self.name}: contains no audio (0 samples); record or convert it again")
        if resampler is not None:
            tail = resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
            if len(tail):
                yield np.clip(tail, -1.0, 1.0)

    def _check(self, frames: NDArray[np.float32], *, heard_frames: int) -> None:
        """Refuse samples that are no audio; clipped ones are fine.

        Args:
            frames: [n_frames, channels].
            heard_frames: Frames before these, to name the time.
        """
        # One comparison finds NaN (never <=), infinities and integer-scaled floats alike.
        plausible = np.abs(frames) <= _MAX_PLAUSIBLE_PEAK
        if plausible.all():
            return
        row, channel = np.argwhere(~plausible)[0]
        value = float(frames[row, channel])
        time_s = (heard_frames + int(row)) / self.sample_rate
        problem = f"{self.name}: a sample is {value:g} at {time_s:.3f} s"
        if np.isfinite(value):
            raise AudioError(f"{problem}, expected -1 to 1; scale the samples and write the file again")
        raise AudioError(f"{problem}, not a finite number; write the file again without NaN or infinity")


class AudioFile(AudioSource):
    """An audio file, opened for one pass from start to end."""

    def __init__(self, path: str | Path) -> None:
        """Open a file.

        Args:
            path: Any format soundfile reads; other containers need ffmpeg on the PATH.

        Raises:
            AudioError: The file is missing, not a file, not readable or not audio.
        """
        super().__init__(open_file_decoder(Path(path)), name=str(path))


def read_audio(path: str | Path) -> AudioFile:
    """Open an audio file for reading in blocks.

    Args:
        path: Any format soundfile reads; other containers need ffmpeg on the PATH.

    Returns:
        The open file; use it in a ``with`` statement.

    Raises:
        AudioError: The file is missing, not a file, not readable or not audio.
    """
    return AudioFile(path)


def read_stream(
    binary: BinaryIO, *, sample_rate: int = SAMPLE_RATE, channels: int = 1, name: str = "stdin"
) -> AudioSource:
    """Read audio from a pipe while it is still being written.

    A WAV header is recognised and rules; anything else is raw signed 16-bit little-endian
    PCM with interleaved channels.

    Args:
        binary: An open binary stream; it need not be seekable and is not closed.
        sample_rate: Samples per second of raw PCM.
        channels: Channels of raw PCM.
        name: What to call the stream in messages.

    Returns:
        The source. Its blocks come as soon as bytes have arrived.

    Raises:
        AudioError: A WAV header that cannot be used, or the start of a compressed format.
        ValueError: ``sample_rate`` or ``channels`` is not positive.
    """
    if sample_rate < 1 or channels < 1:
        raise ValueError(f"sample_rate is {sample_rate} and channels {channels}; both must be positive")
    decoder: PcmDecoder = open_stream_decoder(binary, sample_rate=sample_rate, channels=channels, name=name)
    return AudioSource(decoder, name=name)
