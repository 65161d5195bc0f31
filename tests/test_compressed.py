"""Compressed audio and containers that arrive piece by piece."""

from __future__ import annotations

import io
import threading
import time

import av
import numpy as np
import pytest

from asr.errors import AudioError
from asr.events import SAMPLE_RATE
from service.compressed import CompressedIntake
from service.intake import open_intake
from service.stream_settings import CONTAINER, OPUS, AudioFormat

SECONDS = 3.0
TONE_HZ = 440


def tone(seconds: float = SECONDS, *, rate: int = 48_000, channels: int = 1) -> np.ndarray:
    """A tone ``[channels, N]``."""
    wave = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(int(seconds * rate)) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def contained(container: str, codec: str, *, rate: int = 48_000, channels: int = 1) -> bytes:
    """The tone in a file."""
    return contained_samples(tone(rate=rate, channels=channels), container, codec, rate=rate)


def contained_samples(samples: np.ndarray, container: str, codec: str, *, rate: int = 48_000) -> bytes:
    """Samples ``[channels, N]`` or ``[N]`` in a file written without seeking, as live streams are."""
    samples = np.atleast_2d(samples).astype(np.float32)
    data = io.BytesIO()
    data.seekable = lambda: False  # type: ignore[method-assign]
    with av.open(data, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo" if len(samples) == 2 else "mono")
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=stream.layout.name)
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=rate)
        for part in resampler.resample(frame):
            for packet in stream.encode(part):
                file.mux(packet)
        file.mux(stream.encode(None))
    return data.getvalue()


def opus_packets() -> list[bytes]:
    """The tone as Opus packets."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "mono", "flt"
    samples = tone()
    frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
    frame.sample_rate = 48_000
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    return [bytes(packet) for packet in packets]


def hear(encoding: str, pieces: list[bytes]) -> np.ndarray:
    """What an intake gives for the pieces of a whole stream."""
    intake = open_intake(AudioFormat(encoding), on_samples=lambda: None)
    for piece in pieces:
        intake.push(piece)
    intake.end()
    heard = []
    deadline = time.monotonic() + 20
    while not intake.is_drained():
        assert time.monotonic() < deadline
        heard.append(intake.pull())
        time.sleep(0.002)
    return np.concatenate(heard)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[n : n + size] for n in range(0, len(data), size)]


def assert_tone(samples: np.ndarray) -> None:
    assert len(samples) == pytest.approx(SECONDS * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(samples) == pytest.approx(TONE_HZ, abs=2)
    middle = samples[SAMPLE_RATE // 2 : -SAMPLE_RATE // 2]
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("container", "codec", "piece"),
    [
        ("wav", "pcm_s16le", 3),
        ("wav", "pcm_s24le", 4001),
        ("ogg", "libopus", 777),
        ("webm", "libopus", 1000),
        ("webm", "libopus", 1),
        ("matroska", "pcm_s16le", 5000),
        ("flac", "flac", 5000),
        ("mp3", "libmp3lame", 417),
        ("adts", "aac", 999),
    ],
)
def test_containers(container: str, codec: str, piece: int) -> None:
    """A container that nobody announced is recognised by its first bytes, however it is cut."""
    assert_tone(hear(CONTAINER, cut(contained(container, codec), piece)))


def test_channels_of_a_container_are_averaged() -> None:
    """A stereo file becomes mono."""
    assert_tone(hear(CONTAINER, cut(contained("webm", "libopus", channels=2), 4000)))


def test_opus_packets() -> None:
    """Opus packets, one a push; and what browsers call opus, which is WebM or Ogg."""
    assert_tone(hear(OPUS, opus_packets()))
    assert_tone(hear(OPUS, cut(contained("webm", "libopus"), 1000)))
    assert_tone(hear(OPUS, cut(contained("ogg", "libopus"), 1000)))


@pytest.mark.parametrize("encoding", [CONTAINER, OPUS])
@pytest.mark.parametrize(
    "data",
    [b"x", b"\0\0\0\0" * 4000, b"RIFF" + bytes(4000), b"\x1a\x45\xdf\xa3" + bytes(4000), b"\xff" * 4000],
    ids=["one byte", "silence", "wav", "webm", "ones"],
)
def test_nonsense_is_an_audio_error(encoding: str, data: bytes) -> None:
    """Bytes that are no audio are told as such; what Opus makes of them may also be silence."""
    try:
        samples = hear(encoding, [data])
    except AudioError as error:
        assert "the bytes are no" in str(error) and "check the encoding" in str(error)
    else:
        assert encoding == OPUS and np.isfinite(samples).all()


def test_playlists_are_not_followed() -> None:
    """Formats that make FFmpeg open other files are not recognised as audio."""
    for text in (b"ffconcat version 1.0\nfile '/etc/hostname'\n", b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"):
        with pytest.raises(AudioError, match="WAV, Ogg, WebM, FLAC, MP3 or AAC"):
            hear(CONTAINER, [text])


def test_a_stream_without_a_byte_is_silence() -> None:
    """Nothing pushed is no error."""
    assert len(hear(CONTAINER, [])) == 0


def test_bytes_count_as_taken_once_their_samples_are_pulled() -> None:
    """A flush after some compressed audio waits until that audio has been decoded."""
    packets = opus_packets()
    news = threading.Event()
    intake = CompressedIntake(OPUS, on_samples=news.set)
    n_samples, deadline = 0, time.monotonic() + 20
    for piece in (packets[:50], packets[50:]):
        for packet in piece:
            intake.push(packet)
        while intake.n_taken < intake.n_pushed:
            assert news.wait(deadline - time.monotonic()), "nobody is told that all has been decoded"
            news.clear()
            n_samples += len(intake.pull())
        assert n_samples >= 0.99 * SAMPLE_RATE
    assert n_samples == pytest.approx(SECONDS * SAMPLE_RATE, abs=1000)
    intake.close()
