"""The head's loss: its parts, what it trains, and what it leaves alone."""

import pytest
import torch

from asr.errors import OptionError
from asr.frontier import ADAPTIVE, LookPolicy
from asr.head import TransducerHead
from tests.heads import TINY_HEAD, tiny_head
from training.config import HeadLossConfig
from training.head_data import HeadBatch
from training.head_losses import HeadLoss, HeadLossParts, hard_delays, hide_spans


def _batch() -> HeadBatch:
    generator = torch.Generator().manual_seed(0)
    return HeadBatch(
        torch.randn(2, 60, TINY_HEAD.encoder_width, generator=generator).half(),
        torch.tensor([30, 22]),
        torch.randint(300, (2, 5), generator=generator),
        torch.tensor([5, 3]),
        torch.tensor([[0.2, 0.3, 0.6, 0.9, 1.0], [0.3, float("nan"), 0.7, 0.0, 0.0]]),
        torch.tensor([8, 4]),
    )


def _loss(
    head: TransducerHead,
    *,
    temperature: float | None = 0.5,
    policy: LookPolicy = ADAPTIVE,
    **weights: float,
) -> tuple[HeadLoss, HeadLossParts]:
    torch.manual_seed(0)
    loss_of = HeadLoss(head, HeadLossConfig(**weights))  # type: ignore[arg-type]
    return loss_of, loss_of(head, _batch(), temperature=temperature, policy=policy, masked_share=0.0)


def test_the_total_is_the_weighted_sum() -> None:
    """Transducer and CTC per token, delay per second, mean gate."""
    head = tiny_head()
    _, parts = _loss(head, ctc_weight=0.3, latency_weight=2.0, plain_weight=0.5)
    expected = parts.transducer + 0.3 * parts.ctc + 2.0 * parts.delay_s + 0.5 * parts.look
    torch.testing.assert_close(parts.total, expected)
    assert 0 < parts.delay_s < 6 * 0.04
    assert 0 < parts.look < 1


def test_everything_is_trained() -> None:
    """Every parameter of head and auxiliary layer gets a gradient from soft gates."""
    head = tiny_head().requires_grad_()
    loss_of, parts = _loss(head, latency_weight=1.0)
    parts.total.backward()
    for name, parameter in [*head.named_parameters(), *loss_of.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("policy", [LookPolicy(), LookPolicy(fixed=(1, 0))])
def test_schedulers_rest_under_hard_gates(policy: LookPolicy) -> None:
    """Hard or fixed gates train everything else."""
    head = tiny_head().requires_grad_()
    _, parts = _loss(head, temperature=None, policy=policy)
    parts.total.backward()
    for name, parameter in head.named_parameters():
        assert (parameter.grad is None) == ("scheduler" in name), name


def test_a_few_steps_lower_the_loss() -> None:
    """On one batch, with latency regulariser and hidden spans."""
    head = tiny_head().requires_grad_()
    loss_of, first = _loss(head, latency_weight=1.0)
    optimizer = torch.optim.Adam([*head.parameters(), *loss_of.parameters()], lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        parts = loss_of(head, _batch(), temperature=0.5, policy=LookPolicy(), masked_share=0.05)
        parts.total.backward()
        optimizer.step()
    assert parts.transducer < 0.7 * first.transducer
    assert parts.delay_s < first.delay_s


def test_delays_can_begin_at_the_chunks_end() -> None:
    """What comes in the same chunk is free then."""
    head = tiny_head()
    frame, chunk = (_loss(head, arrival=arrival)[1] for arrival in ("frame", "chunk"))  # type: ignore[arg-type]
    assert 0 < chunk.delay_s < frame.delay_s
    with pytest.raises(OptionError, match="frame, chunk"):
        HeadLoss(head, HeadLossConfig(arrival="word"))


def test_spans_are_hidden() -> None:
    """About the wanted share of frames, in spans, differently in every stream."""
    torch.manual_seed(0)
    frames = torch.ones(8, 500, 3)
    hidden = hide_spans(frames, 0.1)[..., 0] == 0
    assert 0.05 < hidden.float().mean() < 0.15
    assert len({tuple(row.tolist()) for row in hidden}) == 8
    assert torch.equal(hide_spans(frames, 0.0), frames)


def test_hard_delays_are_those_of_streaming() -> None:
    """One for each frame of each stream; none where nobody looks ahead, all where everybody does."""
    head, batch = tiny_head(), _batch()
    assert hard_delays(head, batch, LookPolicy(fixed=(0, 0)))[0].tolist() == [0] * 52
    waits, looks = hard_delays(head, batch, LookPolicy(fixed=(3, 2)))
    assert waits.max() == 5
    assert looks.tolist() == [3, 2]
    waits, looks = hard_delays(head, batch, LookPolicy())
    assert 0 < waits.mean() < 6
