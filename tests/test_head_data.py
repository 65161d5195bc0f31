"""Batches for a head: features are the encoder's, tokens may come out around their words' ends."""

from pathlib import Path

import numpy as np
import pytest
import torch

from asr.chunking import Chunking
from asr.encoder import CausalEncoder
from asr.features import LogMel, RunningNorm
from tests.tiny import tiny_whisper
from training.config import DataConfig, HeadLossConfig
from training.dataset import Example
from training.head_data import (
    TAIL_S,
    FeatureMaker,
    FeatureStore,
    HeadBatch,
    chunk_arrival,
    fingerprint,
    texts,
)
from training.runs import Position

CHUNKINGS = [Chunking.from_ms(80), Chunking.from_ms(300)]


@pytest.fixture(scope="module")
def maker() -> FeatureMaker:
    return FeatureMaker(CausalEncoder(tiny_whisper().encoder), n_mels=80, chunkings=CHUNKINGS, seed=1)


def _example(seconds: float, due_s: list[float], *, seed: int = 0) -> Example:
    audio = (np.random.default_rng(seed).standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)
    return Example(audio, audio, (), tuple(range(10, 10 + len(due_s))), np.array(due_s))


def test_features_are_the_streaming_encoders(maker: FeatureMaker) -> None:
    """A short stream beside a long one gets the frames that it gets alone, silence after it included."""
    long, short = _example(3.0, [1.0]), _example(1.23, [], seed=1)
    frames, lengths = maker.encode([long.noisy, short.noisy], CHUNKINGS[1])
    assert lengths.tolist() == [-(-(len(x.noisy) + round(TAIL_S * 16_000)) // 640) for x in (long, short)]
    signal = np.pad(short.noisy, (0, 640 * 60))
    mel = RunningNorm().forward(LogMel(80).forward(torch.from_numpy(signal)[None]))[0]
    with torch.no_grad():
        alone = CausalEncoder(tiny_whisper().encoder).forward(mel[..., :221], CHUNKINGS[1])
    n_frames = 2 * int(lengths[1])
    assert n_frames <= 100
    torch.testing.assert_close(frames[1, :90], alone[0, :90], atol=0.2, rtol=0.05)  # bfloat16


def test_a_batch_holds_what_is_known(maker: FeatureMaker) -> None:
    """Texts of different lengths, none for silence; the chunk size depends on the place in the data alone."""
    examples = [_example(2.0, [0.5, np.nan, 1.5]), _example(1.0, [])]
    batch = maker.batch(examples, Position(2, 7))
    assert batch.frames.dtype == torch.float16
    assert batch.tokens.tolist() == [[10, 11, 12], [0, 0, 0]]
    assert batch.n_tokens.tolist() == [3, 0]
    assert batch.seconds == pytest.approx(3.0 + 2 * TAIL_S, abs=0.08)
    again = maker.batch(examples, Position(2, 7))
    assert torch.equal(again.chunk_frames, batch.chunk_frames)
    sizes = {int(maker.batch(examples[1:], Position(0, i)).chunk_frames[1]) for i in range(8)}
    assert sizes == {4, 15}


def _batch(due_s: list[list[float]], lengths: list[int], *, chunk: tuple[int, int] = (8, 4)) -> HeadBatch:
    n_tokens = [len(row) for row in due_s]
    padded = [row + [float("nan")] * (max(n_tokens) - len(row)) for row in due_s]
    return HeadBatch(
        torch.zeros(len(lengths), 2 * max(lengths), 4),
        torch.tensor(lengths),
        torch.zeros(len(lengths), max(n_tokens), dtype=torch.int64),
        torch.tensor(n_tokens),
        torch.tensor(padded).reshape(len(lengths), -1),
        torch.tensor(chunk),
    )


def test_tokens_may_come_out_around_their_words_ends() -> None:
    """From a little before to a little after; unknown ones between their neighbours; never past the end."""
    nan = float("nan")
    batch = _batch([[0.4, nan, 1.0, 1.0], [nan, 0.8], []], [40, 21, 10])
    window = texts(batch, HeadLossConfig(early_s=0.2, late_s=0.4))
    assert window.first_frames[0].tolist() == [5, 5, 20, 20]
    assert window.last_frames[0].tolist() == [20, 35, 35, 35]
    assert window.first_frames[1, :2].tolist() == [0, 15]
    assert window.last_frames[1, :2].tolist() == [20, 20]
    assert (window.first_frames <= window.last_frames).all()
    assert (window.last_frames < batch.lengths[:, None]).all()


def test_frames_of_a_chunk_arrive_together() -> None:
    """At the end of the chunk, in head frames; the first chunk is twice as long."""
    assert chunk_arrival(_batch([[]], [9]))[0].tolist() == [3, 3, 3, 3, 5, 5, 7, 7, 9]
    odd = chunk_arrival(_batch([[]], [6], chunk=(3, 3)))[0].tolist()
    assert odd == [0.5, 2.0, 2.0, 3.5, 5.0, 5.0]


def test_kept_batches_come_back(maker: FeatureMaker, tmp_path: Path) -> None:
    """Once made, a batch is read; another fingerprint is another batch."""
    calls = []

    def make() -> HeadBatch:
        calls.append(1)
        return maker.batch([_example(1.0, [0.5])], Position())

    stores = [FeatureStore(tmp_path, "a"), FeatureStore(tmp_path, "a"), FeatureStore(tmp_path, "b")]
    first, again, other = (store.get(Position(1, 2), make) for store in stores)
    assert len(calls) == 2
    for a, b, c in zip(vars(first).values(), vars(again).values(), vars(other).values(), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
        torch.testing.assert_close(a, c, equal_nan=True)
    FeatureStore(None, "").get(Position(), make)
    assert len(calls) == 3


def test_the_fingerprint_is_of_contents(tmp_path: Path) -> None:
    """Settings and what is in the files count, not where they lie."""
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(content)
    prints = [
        fingerprint(DataConfig(tmp_path / name, tmp_path / "a", batch_s=batch_s), seed=seed)
        for name, batch_s, seed in (("a", 1, 1), ("b", 1, 1), ("c", 1, 1), ("a", 2, 1), ("a", 1, 2))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
