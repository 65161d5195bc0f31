"""Recordings of many kinds, decoded for OpenAI's REST interface."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile

from asr.errors import AudioError
from asr.events import SAMPLE_RATE
from service.rest_audio import audio_blocks


def encoded(container: str, codec: str, *, rate: int = 48_000, layout: str = "stereo") -> bytes:
    """Two seconds of a tone."""
    file = io.BytesIO()
    times = np.arange(2 * rate) / rate
    tone = (0.3 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
    n_channels = 2 if layout == "stereo" else 1
    with av.open(file, "w", format=container) as writer:
        stream = writer.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(
            np.repeat(tone[None], n_channels, axis=0), format="fltp", layout=layout
        )
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
        for each in [*resampler.resample(frame), *resampler.resample(None)]:
            writer.mux(stream.encode(each))
        writer.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "aac"), ("webm", "libopus"), ("ogg", "libopus"), ("flac", "flac"), ("mp3", "libmp3lame")],
)
def test_recordings_of_many_kinds(container: str, codec: str) -> None:
    """What OpenAI's interface takes, also M4A whose index comes last."""
    samples = np.concatenate(list(audio_blocks(io.BytesIO(encoded(container, codec)))))
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=2500)
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_wav_files_keep_their_samples() -> None:
    """Of any rate and width; channels are averaged."""
    file = io.BytesIO()
    stereo = np.stack([np.full(SAMPLE_RATE, 0.5), np.full(SAMPLE_RATE, -0.1)], axis=1)
    soundfile.write(file, stereo, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    file.seek(0)
    samples = np.concatenate(list(audio_blocks(file)))
    assert len(samples) == SAMPLE_RATE and np.allclose(samples, 0.2, atol=1e-4)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nothing",
        b"#EXTM3U\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"RIFF",
        b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data\0\0\0\0",
    ],
)
def test_what_is_no_recording(data: bytes) -> None:
    """An error that says so; no format that names other files is ever read."""
    with pytest.raises(AudioError, match="the file"):
        list(audio_blocks(io.BytesIO(data)))
