"""A recogniser with a small random transducer head, for tests of everything around it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import soundfile
import soxr
import torch
from whisper.tokenizer import get_tokenizer

from asr.chunking import Chunking
from asr.encoder import CausalEncoder
from asr.events import SAMPLE_RATE
from asr.features import LogMel, RunningNorm
from asr.head import TransducerHead
from asr.head_files import HeadCard
from asr.recognizer import Recognizer
from tests.heads import let_speak, tiny_head
from tests.tiny import tiny_whisper

FIXTURES = Path(__file__).parent / "fixtures"
DIAL = [
    {"bias": -80.0, "mean_ms": 0.0, "p95_ms": 0.0},
    {"bias": 0.0, "mean_ms": 80.0, "p95_ms": 160.0},
    {"bias": 80.0, "mean_ms": 240.0, "p95_ms": 240.0},
]


@cache
def speaking_head() -> TransducerHead:
    """Says words now and then in the speech of the fixture jfk.flac, heard by :func:`tiny_whisper`."""
    samples, rate = soundfile.read(FIXTURES / "jfk.flac", dtype="float32")
    signal = torch.from_numpy(soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE))[None, : 5 * SAMPLE_RATE]
    head = tiny_head(3)
    texts = [get_tokenizer(multilingual=False).decode([token]) for token in range(head.config.n_tokens)]
    for token, text in enumerate(texts):
        is_spoken = text.strip().isascii() and text.strip().isalpha()
        head.transducer.out.bias[token] += (2.0 if text.startswith(" ") else 0.0) if is_spoken else -1e4
    with torch.inference_mode():
        mel = RunningNorm().forward(LogMel(80).forward(signal))[0]
        frames = CausalEncoder(tiny_whisper().encoder).forward(mel, Chunking.from_ms(300))
        let_speak(head, head(frames, torch.tensor([frames.shape[1] // 2])).frames)
    return head


def head_card(weights_hash: str = "", adapter_hash: str = "none") -> HeadCard:
    """A card for that head."""
    return HeadCard(
        base_model="tiny-random",
        base_weights_hash=weights_hash,
        adapter_hash=adapter_hash,
        config=speaking_head().config.to_json(),
        dial=DIAL,
        lead_ms=300.0,
        lag_ms=80.0,
    )


def transducer_recognizer() -> Recognizer:
    """Streams with either decoder."""
    model = tiny_whisper()
    return Recognizer(model, model, name="tiny-random", head=(speaking_head(), head_card()))
