"""What clients of :mod:`benchmarks.soak` and :mod:`benchmarks.crosstalk` say, and what a lone run hears."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
import soxr

from asr import SAMPLE_RATE, Recognizer
from benchmarks.soak_load import BYTES_PER_S, Clip
from training.manifest import Utterance, load_audio, read_manifest

_CLIP_S = 3.0


def cut_clips(recognizer: Recognizer, samples: np.ndarray) -> list[Clip]:
    """Cut a recording into clips, and recognise each in a stream of its own.

    Args:
        recognizer: The server's model.
        samples: float32 at 16 kHz, ``[N]``.
    """
    length = int(_CLIP_S * SAMPLE_RATE)
    starts = range(0, len(samples) - length, SAMPLE_RATE // 2)
    return [lone_clip(recognizer, to_pcm(samples[start : start + length])) for start in starts]


def utterance_clips(recognizer: Recognizer, manifest: Path, *, n_clips: int, max_s: float) -> list[Clip]:
    """Recognise utterances of different texts, each in a stream of its own.

    Args:
        recognizer: The server's model.
        manifest: Of utterances.
        n_clips: How many, at most.
        max_s: Longest one.
    """
    short = (each for each in read_manifest(manifest) if each.duration_s <= max_s)
    clips: dict[tuple[str, ...], Clip] = {}
    for utterance in islice(short, 2 * n_clips):
        clip = lone_clip(recognizer, to_pcm(load_audio(utterance)))
        clips.setdefault(clip.texts, clip)
        if len(clips) == n_clips:
            break
    return list(clips.values())


def lone_clip(recognizer: Recognizer, pcm: bytes) -> Clip:
    """Recognise audio in a stream of its own.

    Args:
        recognizer: The server's model.
        pcm: As clients send it.
    """
    stream = recognizer.stream()
    stream.feed(np.frombuffer(pcm, np.int16))
    stream.finish()
    return Clip(pcm, tuple(segment.text for segment in stream.transcript.segments))


def long_speech(utterances: Sequence[Utterance], *, hours: float) -> tuple[bytes, str]:
    """Join utterances, from the first again after the last, until it is enough.

    Args:
        utterances: With texts.
        hours: How long at least.

    Returns:
        What to send, and what is said in it.
    """
    parts: list[bytes] = []
    texts: list[str] = []
    n_bytes, once = 0, [to_pcm(load_audio(each)) for each in utterances]
    while n_bytes < hours * 3600 * BYTES_PER_S:
        utterance, pcm = utterances[len(parts) % len(once)], once[len(parts) % len(once)]
        parts.append(pcm)
        texts.append(utterance.text or "")
        n_bytes += len(pcm)
    return b"".join(parts), " ".join(texts)


def to_pcm(samples: np.ndarray) -> bytes:
    """Return samples as clients send them.

    Args:
        samples: float32 at 16 kHz, ``[N]``.
    """
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def read_audio(path: Path) -> np.ndarray:
    """Return a file's samples, float32 at 16 kHz, ``[N]``.

    Args:
        path: Any that libsndfile reads.
    """
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)
