"""Decoders behind :mod:`asr.audio`: soundfile, an ffmpeg process, and PCM from a pipe.

Each gives frames of float32 at the source's own rate and channel count; none resamples,
ffmpeg aside, which is asked for 16 kHz mono at once.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.errors import AudioError
from asr.events import SAMPLE_RATE

_HEADER_BYTES = 12  # RIFF, size, WAVE
_WAVE_PCM, _WAVE_FLOAT, _WAVE_EXTENSIBLE = 1, 3, 0xFFFE
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # what writers put before they know how long the data gets
_MAX_HEADER_CHUNK_BYTES = 1 << 24
_MAX_FRAMES = 1 << 48  # libsndfile says 2**63 - 1 where it does not know
# Starts of compressed formats: as raw PCM they would be noise.
_COMPRESSED = {b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3", b"\x1aE\xdf\xa3": "Matroska or WebM"}
_ENCODINGS = {
    (_WAVE_PCM, 8): "u1",
    (_WAVE_PCM, 16): "<i2",
    (_WAVE_PCM, 24): "<i3",
    (_WAVE_PCM, 32): "<i4",
    (_WAVE_FLOAT, 32): "<f4",
    (_WAVE_FLOAT, 64): "<f8",
}


class Decoder(Protocol):
    """What :class:`asr.audio.AudioSource` reads from."""

    sample_rate: int
    channels: int
    n_frames: int | None  # None where only the end will tell

    def read(self, n_frames: int) -> NDArray[np.float32]:
        """Return up to ``n_frames`` as [n_frames, channels]; none at the end."""

    def close(self) -> None:
        """Free the file or process; closing twice is harmless."""


class _ForwardFile(soundfile.SoundFile):
    """A sound file that is never repositioned.

    soundfile seeks after every read of a seekable file, and in MP3 a seek loses the bits that
    frames borrow from those before them: read in blocks, a pure tone came out as noise.
    """

    def seekable(self) -> bool:
        """Return False: reading goes forward only."""
        return False


class SoundFileDecoder:
    """Frames through libsndfile."""

    def __init__(self, path: Path) -> None:
        """Open a file; soundfile's own errors pass through.

        Args:
            path: A file in a format that libsndfile knows.
        """
        self._file = _ForwardFile(str(path))
        self._n_read = 0
        self._path = path
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        frames = int(self._file.frames)
        self.n_frames: int | None = frames if 0 <= frames < _MAX_FRAMES else None

    def read(self, n_frames: int) -> NDArray[np.float32]:
        """Return up to ``n_frames`` as [n_frames, channels]; none at the end.

        Args:
            n_frames: How many to read at most.

        Returns:
            float32 of shape [n_frames, channels].

        Raises:
            AudioError: The data is damaged.
        """
        try:
            frames: NDArray[np.float32] = self._file.read(n_frames, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            at_s = self._n_read / self.sample_rate
            raise AudioError(
                f"{self._path}: damaged at {at_s:.1f} s ({_reason(error)}); repair or copy it again"
            ) from error
        self._n_read += len(frames)
        return frames

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PcmDecoder:
    """Frames of uncompressed samples from a pipe, as they arrive."""

    def __init__(
        self,
        binary: BinaryIO,
        *,
        sample_rate: int,
        channels: int,
        encoding: str = "<i2",
        n_bytes: int | None = None,
        head: bytes = b"",
    ) -> None:
        """Read samples from an open stream.

        Args:
            binary: Where the bytes come from; it is not closed.
            sample_rate: Samples per second.
            channels: Interleaved channels.
            encoding: One of numpy's codes u1, <i2, <i4, <f4, <f8, or <i3 for packed 24 bits.
            n_bytes: Bytes to read; None reads to the end.
            head: Bytes that were already taken from the stream.
        """
        self.sample_rate = sample_rate
        self.channels = channels
        self._encoding = encoding
        self._frame_bytes = int(encoding[-1]) * channels
        self.n_frames = None if n_bytes is None else n_bytes // self._frame_bytes
        # A buffered reader's read1 returns what is there instead of waiting for all of it.
        self._take = getattr(binary, "read1", binary.read)
        self._left = n_bytes
        self._pending = head

    def read(self, n_frames: int) -> NDArray[np.float32]:
        """Return what has arrived, at most ``n_frames``; wait only for the first frame.

        Args:
            n_frames: How many to read at most.

        Returns:
            float32 of shape [n_frames, channels]; empty at the end of the stream. A last
            incomplete frame is dropped.
        """
        wanted = n_frames * self._frame_bytes
        data = self._pending
        while len(data) < self._frame_bytes:
            missing = wanted - len(data)
            more = self._take(missing if self._left is None else min(missing, self._left))
            if not more:
                break
            if self._left is not None:
                self._left -= len(more)
            data += more
        usable = min(len(data), wanted) // self._frame_bytes * self._frame_bytes
        self._pending = data[usable:]
        return _to_float(data[:usable], self._encoding).reshape(-1, self.channels)

    def close(self) -> None:
        """Do nothing: the stream belongs to the caller."""


class FfmpegDecoder:
    """Frames of 16 kHz mono that an ffmpeg process writes."""

    sample_rate = SAMPLE_RATE
    channels = 1

    def __init__(self, path: Path, *, ffmpeg: str) -> None:
        """Start ffmpeg on a file.

        Args:
            path: Any container with an audio track.
            ffmpeg: The program to run.
        """
        url = f"file:{path.resolve()}"
        self._path = path
        self.n_frames = _probed_frames(url, ffmpeg=ffmpeg)
        # A file takes any amount of complaints; a pipe that nobody reads would block ffmpeg.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        # Only local files: a playlist must not make us fetch what it names.
        self._process = subprocess.Popen(
            [ffmpeg, "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", url]
            + ["-vn", "-sn", "-dn", "-f", "s16le", "-ac", "1", "-ar", str(SAMPLE_RATE), "pipe:1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
        )
        assert self._process.stdout is not None
        self._pcm = PcmDecoder(self._process.stdout, sample_rate=SAMPLE_RATE, channels=1)  # type: ignore[arg-type]
        self._n_read = 0

    def read(self, n_frames: int) -> NDArray[np.float32]:
        """Return up to ``n_frames``; none at the end.

        Args:
            n_frames: How many to read at most.

        Returns:
            float32 of shape [n_frames, 1].

        Raises:
            AudioError: ffmpeg found no audio or gave up.
        """
        frames = self._pcm.read(n_frames)
        self._n_read += len(frames)
        if len(frames) or self._process.wait() == 0:
            return frames
        self._complaints.seek(0)
        complaint = self._complaints.readline(1000).decode(errors="replace").strip()
        reason = re.sub(r"^\[[^]]*\] *", "", complaint) or "no reason given"  # without "[in#0 @ 0x1f]"
        what = f"damaged at {self._n_read / SAMPLE_RATE:.1f} s" if self._n_read else "not audio"
        raise AudioError(f"{self._path}: {what} (ffmpeg: {reason}); give a file with an audio track")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._complaints.close()


def open_file_decoder(path: Path) -> Decoder:
    """Open a file with soundfile, else with ffmpeg.

    Args:
        path: The file.

    Returns:
        A decoder at the file's start.

    Raises:
        AudioError: The file is missing, not a file, not readable or not audio.
    """
    _check_readable(path)
    try:
        return SoundFileDecoder(path)
    except TypeError as error:  # soundfile takes the suffix .raw for headerless samples
        raise AudioError(
            f"{path}: raw samples have no header; pipe them in: "
            "foresound transcribe - --sample-rate HZ --channels N < FILE"
        ) from error
    except soundfile.SoundFileError as error:
        ffmpeg = shutil.which("ffmpeg")
        if ffmpeg is None:
            raise AudioError(
                f"{path}: cannot be decoded ({_reason(error)}) and ffmpeg is not installed; "
                "install ffmpeg for video and other containers, or convert the file to WAV or FLAC"
            ) from error
        return FfmpegDecoder(path, ffmpeg=ffmpeg)


def open_stream_decoder(binary: BinaryIO, *, sample_rate: int, channels: int, name: str) -> PcmDecoder:
    """Tell WAV from raw PCM by the first bytes of a stream.

    Args:
        binary: An open binary stream at its start.
        sample_rate: Samples per second if it is raw PCM.
        channels: Channels if it is raw PCM.
        name: What to call the stream in messages.

    Returns:
        A decoder at the first sample.

    Raises:
        AudioError: A WAV header that cannot be used, or the start of a compressed format.
    """
    head = _read_exactly(binary, _HEADER_BYTES)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return _wav_decoder(binary, name=name)
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise AudioError(
                f"{name}: holds {kind}, expected WAV or raw PCM; give it as a file, "
                "or pipe it through: ffmpeg -i FILE -f wav -"
            )
    return PcmDecoder(binary, sample_rate=sample_rate, channels=channels, head=head)


def _check_readable(path: Path) -> None:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise AudioError(f"{path}: is a folder; give audio files")
        if not path.is_file():
            raise AudioError(f"{path}: is a pipe or device, not a file; pipe WAV or raw PCM in with '-'")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise AudioError(f"{path}: no such file; check the name") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(
            f"{path}: cannot be opened ({reason}); check the name and its permissions"
        ) from error
    if size == 0:
        raise AudioError(f"{path}: is empty (0 bytes), so it contains no audio; record or copy it again")


def _reason(error: soundfile.SoundFileError) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return str(text).removeprefix("Error : ").strip().rstrip(".").lower()


def _to_float(data: bytes, encoding: str) -> NDArray[np.float32]:
    """Return samples in [-1, 1] (float encodings as they are), shape [n_samples]."""
    if encoding == "<i3":
        packed = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        wide = np.zeros((len(packed), 4), dtype=np.uint8)
        wide[:, 1:] = packed  # the three bytes become the high ones, so the sign is right
        data, encoding = wide.tobytes(), "<i4"
    values = np.frombuffer(data, dtype=encoding)
    if encoding == "u1":
        return ((values.astype(np.float32) - 128) / 128).astype(np.float32)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(np.float32)
    return (values / np.float64(-int(np.iinfo(values.dtype).min))).astype(np.float32)


def _read_exactly(binary: BinaryIO, n_bytes: int) -> bytes:
    """Return ``n_bytes``, or fewer where the stream ends."""
    take = getattr(binary, "read1", binary.read)
    parts = b""
    while len(parts) < n_bytes and (more := take(n_bytes - len(parts))):
        parts += more
    return parts


def _wav_decoder(binary: BinaryIO, *, name: str) -> PcmDecoder:
    """Walk the chunks after RIFF....WAVE up to the samples.

    Layout: Microsoft, "Multimedia Programming Interface and Data Specifications 1.0"; RF64:
    EBU Tech 3306.
    """
    layout: tuple[int, int, int, int] | None = None
    long_size: int | None = None
    while len(header := _read_exactly(binary, 8)) == 8:
        kind, size = struct.unpack("<4sI", header)
        if kind == b"data":
            if layout is None:
                raise AudioError(f"{name}: WAV data come before their format; write the file again")
            tag, channels, sample_rate, n_bits = layout
            encoding = _ENCODINGS.get((tag, n_bits))
            if encoding is None or not channels or not sample_rate:
                raise AudioError(
                    f"{name}: WAV format {tag} with {n_bits} bits, {channels} channels, {sample_rate} Hz "
                    "cannot be read from a pipe; give the file by name"
                )
            n_bytes = None if size in _UNKNOWN_SIZES else size
            return PcmDecoder(
                binary,
                sample_rate=sample_rate,
                channels=channels,
                encoding=encoding,
                n_bytes=long_size or n_bytes,
            )
        if size > _MAX_HEADER_CHUNK_BYTES:
            break
        body = _read_exactly(binary, size + size % 2)
        if len(body) < size:
            break
        if kind == b"fmt " and size >= 16:
            tag, channels, sample_rate, _, _, n_bits = struct.unpack_from("<HHIIHH", body)
            if tag == _WAVE_EXTENSIBLE and size >= 26:
                (tag,) = struct.unpack_from("<H", body, 24)  # the sub-format's first two bytes
            layout = tag, channels, sample_rate, n_bits
        elif kind == b"ds64" and size >= 16:
            (long_size,) = struct.unpack_from("<Q", body, 8)
    raise AudioError(f"{name}: WAV header without samples; write the file again")


def _probed_frames(url: str, *, ffmpeg: str) -> int | None:
    """Ask ffprobe, ffmpeg's companion, for the length in 16 kHz samples."""
    ffprobe = shutil.which("ffprobe", path=str(Path(ffmpeg).parent))
    if ffprobe is None:
        return None
    command = [ffprobe, "-v", "error", "-protocol_whitelist", "file,pipe"]
    command += ["-show_entries", "format=duration", "-of", "csv=p=0", url]
    answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        return round(float(answer.stdout) * SAMPLE_RATE)
    except (ValueError, OverflowError):
        return None
