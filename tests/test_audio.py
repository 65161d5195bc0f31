"""Reading audio: rates, channels, containers, pipes, and everything that is no audio."""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from asr.audio import read_audio, read_stream
from asr.errors import AudioError
from asr.events import SAMPLE_RATE

JFK = Path(__file__).parent / "fixtures" / "jfk.flac"


def sine(rate: int, *, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def read_all(path: Path, block_s: float = 0.1) -> np.ndarray:
    with read_audio(path) as audio:
        return np.concatenate(list(audio.blocks(block_s)))


def peak_frequency(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(samples)


def wav_bytes(samples: np.ndarray, rate: int, subtype: str = "PCM_16", kind: str = "WAV") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, subtype=subtype, format=kind)
    return out.getvalue()


class Trickle:
    """A pipe that hands out a few bytes at a time and cannot seek."""

    def __init__(self, data: bytes, step: int) -> None:
        self.data, self.step = data, step

    def read(self, n_bytes: int = -1) -> bytes:
        n_bytes = self.step if n_bytes < 0 else min(n_bytes, self.step)
        part, self.data = self.data[:n_bytes], self.data[n_bytes:]
        return part

    read1 = read


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_441_stereo_sine_keeps_frequency_and_length(tmp_path: Path, suffix: str) -> None:
    """Resampling and averaging channels change neither pitch nor duration."""
    path = tmp_path / f"sine.{suffix}"
    soundfile.write(path, np.stack([sine(44_100, seconds=2.0)] * 2, axis=1), 44_100)
    with read_audio(path) as audio:
        assert (audio.sample_rate, audio.channels) == (44_100, 2)
        assert audio.duration_s == pytest.approx(2.0, abs=0.1)
        samples = np.concatenate(list(audio.blocks()))
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=1 if suffix in ("wav", "flac") else 2000)
    assert peak_frequency(samples) == pytest.approx(440, abs=1)
    assert np.sqrt(np.mean(samples[4000:-4000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 48_000, 96_000])
@pytest.mark.parametrize("block_s", [0.013, 0.1, 60.0])
def test_streaming_equals_whole_file(tmp_path: Path, rate: int, block_s: float) -> None:
    """Any block size gives the samples that resampling the whole file gives."""
    rng = np.random.default_rng(rate)
    pcm = rng.uniform(-0.4, 0.4, size=(rate, 2)).astype(np.float32)
    path = tmp_path / "noise.wav"
    soundfile.write(path, pcm, rate, subtype="FLOAT")
    whole = soxr.resample(pcm.mean(axis=1), rate, SAMPLE_RATE)
    samples = read_all(path, block_s)
    assert len(samples) == len(whole)
    np.testing.assert_allclose(samples, whole, atol=1e-6)


@pytest.mark.parametrize(("kind", "subtype"), [("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_compressed_formats_are_decoded_without_gaps(tmp_path: Path, kind: str, subtype: str | None) -> None:
    """Blocks of a lossy file equal the file read at once."""
    path = tmp_path / "tone"
    soundfile.write(path, np.stack([sine(48_000)] * 2, axis=1), 48_000, format=kind, subtype=subtype)
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    np.testing.assert_allclose(
        read_all(path, 0.05), soxr.resample(whole.mean(axis=1), 48_000, SAMPLE_RATE), atol=1e-6
    )


def test_channels_are_averaged(tmp_path: Path) -> None:
    """Mono is the mean of the channels, not their sum or the first one."""
    path = tmp_path / "three.wav"
    soundfile.write(path, np.tile([0.6, 0.0, -0.3], (1600, 1)), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_all(path), 0.1, atol=1e-6)


def test_jfk_fixture() -> None:
    """The shipped clip is 11 s of real speech."""
    samples = read_all(JFK)
    assert len(samples) == 11 * SAMPLE_RATE
    assert 0.05 < float(np.sqrt(np.mean(samples**2))) < 0.3


def test_clipped_and_telephone_audio_is_fine(tmp_path: Path) -> None:
    """Clipping, 8 kHz mu-law and floats a little beyond 1 are audio like any other."""
    path = tmp_path / "phone.wav"
    soundfile.write(path, np.clip(8 * sine(8_000), -1, 1), 8_000, subtype="ULAW")
    samples = read_all(path)
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=1)
    loud = tmp_path / "loud.wav"
    soundfile.write(loud, 3 * sine(SAMPLE_RATE), SAMPLE_RATE, subtype="FLOAT")
    samples = read_all(loud)
    assert np.abs(samples).max() == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused_with_their_time(tmp_path: Path, value: float) -> None:
    """The blocks before the bad sample are given, then an error names its time."""
    pcm = sine(SAMPLE_RATE).astype(np.float32)
    pcm[12_000] = value
    path = tmp_path / "bad.wav"
    soundfile.write(path, pcm, SAMPLE_RATE, subtype="FLOAT")
    heard = 0
    with read_audio(path) as audio, pytest.raises(AudioError, match=r"bad\.wav: .* at 0\.750 s"):
        for block in audio.blocks():
            heard += len(block)
    assert heard == 11_200


def test_integer_scaled_floats_are_refused(tmp_path: Path) -> None:
    """Floats of up to 32768 are a mistake that clipping would hide."""
    path = tmp_path / "scaled.wav"
    soundfile.write(path, 30_000 * sine(SAMPLE_RATE), SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="expected -1 to 1"):
        read_all(path)


def test_short_files(tmp_path: Path) -> None:
    """10 ms are audio, also through the resampler; no sample at all is an error."""
    path = tmp_path / "short.wav"
    soundfile.write(path, sine(44_100, seconds=0.01), 44_100)
    assert len(read_all(path)) == 160
    soundfile.write(path, np.zeros(0), SAMPLE_RATE)
    with pytest.raises(AudioError, match="contains no audio"):
        read_all(path)


def test_files_that_are_no_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of wrong file is named and says what to do."""
    monkeypatch.setenv("PATH", str(tmp_path))  # no ffmpeg
    (tmp_path / "empty.wav").touch()
    (tmp_path / "notes.txt").write_text("not audio at all\n" * 100)
    (tmp_path / "x.raw").write_bytes(bytes(3200))
    os.mkfifo(tmp_path / "fifo")
    for name, message in [
        ("missing.wav", "no such file"),
        ("empty.wav", "empty"),
        ("notes.txt", "ffmpeg is not installed"),
        ("x.raw", "pipe them in"),
        ("fifo", "'-'"),
        (".", "is a folder"),
        ("nul\0.wav", "cannot be opened"),
    ]:
        with pytest.raises(AudioError) as raised:
            read_audio(tmp_path / name)
        text = str(raised.value)
        assert text.startswith(f"{tmp_path / name}: ") and message in text and ";" in text


def test_damaged_flac_gives_its_start_then_an_error(tmp_path: Path) -> None:
    """A file that was cut in the middle is heard up to there."""
    path = tmp_path / "cut.flac"
    path.write_bytes(JFK.read_bytes()[: JFK.stat().st_size // 2])
    heard = 0
    with read_audio(path) as audio, pytest.raises(AudioError, match=r"cut\.flac: damaged at \d\.\d s"):
        for block in audio.blocks():
            heard += len(block)
    assert heard > 3 * SAMPLE_RATE


@pytest.mark.slow
def test_two_hours_need_little_memory(tmp_path: Path) -> None:
    """Memory does not grow with the length of the file."""
    path = tmp_path / "long.flac"
    minute = np.zeros(60 * 8_000, dtype=np.int16)
    with soundfile.SoundFile(path, "w", samplerate=8_000, channels=1) as file:
        for _ in range(120):
            file.write(minute)
    tracemalloc.start()
    with read_audio(path) as audio:
        assert audio.duration_s == 7200
        n_samples = sum(len(block) for block in audio.blocks(1.0))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_samples == 7200 * SAMPLE_RATE
    assert peak_bytes < 4_000_000


def test_block_s_must_be_positive() -> None:
    """A block of no length would never end."""
    with read_audio(JFK) as audio, pytest.raises(ValueError, match="positive"):
        next(audio.blocks(0.0))


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64"])
def test_wav_on_a_pipe_equals_the_file(tmp_path: Path, step: int, subtype: str, kind: str) -> None:
    """The pipe's reader agrees with libsndfile for every sample type and any arrival of bytes."""
    pcm = np.stack([sine(8_000, seconds=0.1), sine(8_000, seconds=0.1, frequency=300)], axis=1)
    data = wav_bytes(pcm, 8_000, subtype, kind)
    path = tmp_path / "x.wav"
    path.write_bytes(data)
    source = read_stream(Trickle(data + b"LIST trailing chunk", step))  # type: ignore[arg-type]
    assert (source.sample_rate, source.channels, source.duration_s) == (8_000, 2, 0.1)
    np.testing.assert_allclose(np.concatenate(list(source.blocks())), read_all(path), atol=1e-6)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_wav_of_unknown_length_is_read_to_the_end(size: int) -> None:
    """Writers to pipes leave the length open, as ffmpeg does."""
    data = wav_bytes(sine(SAMPLE_RATE), SAMPLE_RATE)
    assert data[36:40] == b"data"
    data = data[:40] + struct.pack("<I", size) + data[44:]
    source = read_stream(io.BytesIO(data))
    assert source.duration_s is None
    assert sum(map(len, source.blocks())) == SAMPLE_RATE


def test_raw_pcm() -> None:
    """Anything without a header is s16le of the given layout; half a frame at the end is dropped."""
    pcm = (20_000 * sine(8_000)).astype("<i2")
    stereo = np.stack([pcm, pcm], axis=1).tobytes() + b"\x01\x02\x03"
    source = read_stream(Trickle(stereo, 501), sample_rate=8_000, channels=2)  # type: ignore[arg-type]
    samples = np.concatenate(list(source.blocks()))
    np.testing.assert_allclose(samples, soxr.resample((pcm / 32768).astype("f4"), 8_000, 16_000), atol=1e-4)


def test_short_pipes() -> None:
    """A pipe shorter than a header is raw PCM; an empty one is an error."""
    source = read_stream(io.BytesIO(struct.pack("<3h", 1, -32768, 32767)))
    assert np.concatenate(list(source.blocks())).tolist() == [1 / 32768, -1.0, 32767 / 32768]
    with pytest.raises(AudioError, match="stdin: contains no audio"):
        list(read_stream(io.BytesIO(b"")).blocks())
    with pytest.raises(ValueError, match="positive"):
        read_stream(io.BytesIO(b""), sample_rate=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (JFK.read_bytes()[:1000], "holds FLAC"),
        (wav_bytes(np.zeros(10), 8_000, "ULAW"), "WAV format 7"),
        (wav_bytes(np.zeros(10), 8_000)[:30], "without samples"),
        (wav_bytes(np.zeros(10), 8_000)[:36], "without samples"),
        (b"RIFF\0\0\0\0WAVEdata\x08\0\0\0", "before their format"),
        (b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\x7f", "without samples"),
    ],
)
def test_pipes_that_are_no_pcm(data: bytes, message: str) -> None:
    """Compressed data and broken headers are refused instead of heard as noise."""
    with pytest.raises(AudioError, match=message):
        read_stream(io.BytesIO(data))


def test_a_pipe_is_heard_before_it_ends() -> None:
    """The first samples come out while the writer still holds the pipe open."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as binary, os.fdopen(writing, "wb", buffering=0) as writer:
        writer.write(bytes(1000))
        blocks = read_stream(binary).blocks()
        n_samples = 0
        while n_samples < 500:
            n_samples += len(next(blocks))
        writer.write(bytes(200))
        assert len(next(blocks)) == 100


def fake_ffmpeg(folder: Path, body: str) -> None:
    path = folder / "ffmpeg"
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_other_containers_go_through_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What soundfile does not know is decoded by the ffmpeg on the PATH."""
    fake_ffmpeg(tmp_path, "assert sys.argv[-1] == 'pipe:1'\nsys.stdout.buffer.write(b'\\x00\\x40' * 16000)")
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "film.mkv"
    path.write_bytes(b"\x1aE\xdf\xa3" + bytes(100))
    samples = read_all(path)
    assert len(samples) == SAMPLE_RATE
    np.testing.assert_array_equal(samples, 0.5)


@pytest.mark.parametrize(("written", "message"), [("", "not audio"), ("\0" * 3200, "damaged at 0.1 s")])
def test_ffmpeg_failures_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, message: str
) -> None:
    """The first line of ffmpeg's complaint becomes part of ours."""
    body = (
        f"sys.stdout.write({written!r}); sys.stderr.write('[in#0 @ 0x1f] it broke\\n' * 50000); sys.exit(1)"
    )
    fake_ffmpeg(tmp_path, body)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "film.mkv").write_bytes(bytes(100))
    with pytest.raises(AudioError, match=rf"film\.mkv: {message} \(ffmpeg: it broke\)"):
        read_all(tmp_path / "film.mkv")


def test_an_unfinished_ffmpeg_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing early leaves no process behind."""
    fake_ffmpeg(tmp_path, "while True: sys.stdout.buffer.write(bytes(32000))")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "film.mkv").write_bytes(bytes(100))
    with read_audio(tmp_path / "film.mkv") as audio:
        next(audio.blocks())
        process = audio._decoder._process  # type: ignore[attr-defined]
    assert process.poll() is not None
