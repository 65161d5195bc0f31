"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from whisper.model import Whisper

from asr.checkpoint import Checkpoint, load_checkpoint
from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from tests.tiny import tiny_whisper

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def tiny_model() -> Whisper:
    return tiny_whisper()


@pytest.fixture(scope="session")
def tiny_recognizer(tiny_model: Whisper) -> Recognizer:
    return Recognizer(tiny_model, tiny_model, name="tiny-random")


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """tiny.en's real weights, from the package that is a dependency."""
    return load_checkpoint("tiny.en")


@pytest.fixture(scope="session")
def recognizer() -> Recognizer:
    """tiny.en with the shipped adapter."""
    return Recognizer.load("tiny.en")


@pytest.fixture(scope="session")
def jfk() -> np.ndarray:
    """Eleven seconds of speech with pauses, float32 at 16 kHz."""
    samples, rate = soundfile.read(FIXTURES / "jfk.flac", dtype="float32")
    return soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)
