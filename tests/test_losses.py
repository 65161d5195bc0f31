"""The training loss asks for each token when it is due, for silence before, and never peeks."""

import copy
import math

import numpy as np
import pytest
import torch
from whisper.tokenizer import get_tokenizer

from asr.adapters import add_adapter
from asr.chunking import Chunking
from asr.encoder import step_bounds
from tests.tiny import tiny_whisper
from training.config import LossConfig
from training.dataset import Example
from training.losses import IGNORE, StreamLoss, build_targets

TOKENIZER = get_tokenizer(multilingual=False)
PREFIX = (*TOKENIZER.sot_sequence, TOKENIZER.no_timestamps)


def _example(seconds: float, due_s: list[float], *, seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    audio = (rng.standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)
    tokens = tuple(int(t) for t in rng.integers(300, 40_000, len(due_s)))
    return Example(audio, audio, PREFIX, tokens, np.array(due_s))


def _targets(example: Example, chunking: Chunking, n_frames: int, *, full_share: float = 0.0, seed: int = 0):  # noqa: ANN202
    return build_targets(
        [example],
        chunking=chunking,
        n_frames=n_frames,
        eot=TOKENIZER.eot,
        full_share=full_share,
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("chunk_ms", [40, 300, 1000])
def test_tokens_are_asked_for_at_the_first_chunk_that_ends_after_they_are_due(chunk_ms: int) -> None:
    """Each main copy sees frames up to the end of that chunk, and no fewer than the one before it."""
    example = _example(5.0, [0.7, 1.1, 1.1, 2.93, 4.0])
    chunking = Chunking.from_ms(chunk_ms)
    targets = _targets(example, chunking, 250)
    assert targets.labels[0, 1 : targets.n_main].tolist() == [*example.tokens, TOKENIZER.eot]
    visible = targets.visible[0, 1 : targets.n_main - 1]
    due = torch.from_numpy(np.ceil(example.due_s * 50)).long()
    assert (visible >= due).all()
    _, end = step_bounds(chunking, due - 1)
    assert visible.tolist() == end.clamp(max=250).tolist()
    assert (visible.diff() >= 0).all()


def test_probes_ask_for_silence_before_the_next_token_is_due() -> None:
    """A probe sees what brought the previous token, less than the next one needs, and wants end-of-text."""
    example = _example(6.0, [0.9, 2.2, 5.1])
    for seed in range(20):
        targets = _targets(example, Chunking.from_ms(80), 300, seed=seed)
        probes = slice(targets.n_main, None)
        assert set(targets.labels[0, probes].tolist()) == {TOKENIZER.eot}
        for at, seen in zip(targets.positions[0, probes], targets.visible[0, probes], strict=True):
            j = int(at) - 1
            assert j == 0 or seen * 0.02 >= example.due_s[j - 1]
            assert j == 3 or seen * 0.02 <= example.due_s[j] - 0.1


def test_unknown_words_are_not_trained_on() -> None:
    """A token without a due time has no label and no probe, and its neighbours keep theirs."""
    example = _example(4.0, [0.9, math.nan, 2.5])
    targets = _targets(example, Chunking.from_ms(80), 200)
    labels = targets.labels[0, 1 : targets.n_main].tolist()
    assert labels == [example.tokens[0], IGNORE, example.tokens[2], TOKENIZER.eot]
    assert 2 not in targets.positions[0, targets.n_main :].tolist()


def test_main_copies_ignore_probes() -> None:
    """Nobody attends to a probe but the probe itself."""
    targets = _targets(_example(6.0, [0.9, 2.2, 5.1]), Chunking.from_ms(80), 300)
    mask, n = targets.self_mask[0], targets.n_main
    assert not mask[:n, n:].any()
    assert torch.equal(mask[n:, n:], torch.eye(mask.shape[0] - n, dtype=torch.bool))
    assert torch.equal(mask[:n, :n], torch.ones(n, n, dtype=torch.bool).tril())


def test_full_streams_see_everything() -> None:
    """The whole utterance is one of the points."""
    targets = _targets(_example(6.0, [0.9, 2.2, 5.1]), Chunking.from_ms(80), 300, full_share=1.0)
    assert targets.visible.unique().tolist() == [300]
    assert targets.tokens.shape[1] == targets.n_main


def _loss(config: LossConfig | None = None):  # noqa: ANN202
    torch.manual_seed(0)
    teacher = tiny_whisper()
    student = copy.deepcopy(teacher).requires_grad_(False)
    wrapped = add_adapter(student, encoder_rank=4, decoder_rank=2)
    loss = StreamLoss(student, teacher, eot=TOKENIZER.eot, config=config or LossConfig(teacher_share=1.0))
    return loss, [p for p in wrapped.parameters() if p.requires_grad]


def test_four_golden_losses() -> None:
    """Four optimiser steps on a tiny random model give the losses they gave when this was written."""
    loss_of, parameters = _loss()
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    examples = [_example(3.0, [0.9, 2.2], seed=1), _example(2.0, [1.5], seed=2)]
    losses = []
    for step in range(4):
        parts = loss_of(examples, chunking=Chunking.from_ms(300), rng=np.random.default_rng(step))
        parts.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(parts.total.item())
    assert losses == pytest.approx(GOLDEN, rel=0.02)


GOLDEN = [30.209, 25.887, 16.904, 13.091]


def test_speech_without_text_only_distils() -> None:
    """Unknown words leave the features' distance as the only part."""
    loss_of, _ = _loss()
    example = Example(*[_example(2.0, [1.0]).clean] * 2, PREFIX, None, np.zeros(0))
    parts = loss_of([example], chunking=Chunking.from_ms(300), rng=np.random.default_rng(0))
    assert parts.token.item() == 0
    assert parts.feature.item() > 0
    assert parts.total.item() == pytest.approx(LossConfig().feature_weight * parts.feature.item(), rel=1e-4)
