"""Reach through depth: the recursion, its soft version and what the regularisers do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.reach import (
    delays,
    expected_reach,
    fixed_gates,
    frame_arrival,
    hard_gates,
    latency_penalty,
    log_soft_gates,
    plain_penalty,
)


def _logits(n_blocks: int, n_frames: int, max_look: int, *, seed: int = 0, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_blocks, batch, n_frames, max_look, generator=generator, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 5), st.integers(0, 99))
def test_recursion_is_that_of_the_definition(n_blocks: int, n_frames: int, max_look: int, seed: int) -> None:
    """With hard gates: the newest frame of the block before among all that a frame sees, in plain Python."""
    gates = hard_gates(_logits(n_blocks, n_frames, max_look, seed=seed) + 0.5)
    length = 1 + seed % n_frames
    lengths = torch.tensor([length])
    reach = list(range(length))
    for looks in gates.sum(-1)[:, 0].tolist():
        reach = [max(reach[: min(i + looks[i], length - 1) + 1]) for i in range(length)]
    found = expected_reach(gates.double(), frame_arrival(lengths, n_frames), lengths)
    assert found[0, :length].tolist() == reach


@pytest.mark.parametrize("temperature", [1e-3, 1e-6])
def test_soft_gates_become_hard_ones(temperature: float) -> None:
    """At a temperature near 0, p_k is 0 or 1 and the expected reach is the hard one."""
    logits = _logits(3, 40, 6, batch=2)
    logits[logits.abs() < 0.02] = 0.02
    lengths = torch.tensor([40, 31])
    hard, soft = hard_gates(logits).double(), log_soft_gates(logits, temperature).exp()
    torch.testing.assert_close(soft, hard, atol=1e-6, rtol=0)
    reach = [expected_reach(gates, frame_arrival(lengths, 40), lengths) for gates in (hard, soft)]
    torch.testing.assert_close(reach[1], reach[0], atol=1e-4, rtol=0)


def test_soft_reach_is_the_expectation_over_looks() -> None:
    """For one block: the sum over looks of the probability to look just so far times where that ends."""
    logits = _logits(1, 9, 3)
    gates = log_soft_gates(logits, 1.0).exp()
    lengths = torch.tensor([9])
    probability = torch.cat([torch.ones(9, 1), gates[0, 0]], 1) - torch.cat(
        [gates[0, 0], torch.zeros(9, 1)], 1
    )
    ends = (torch.arange(9)[:, None] + torch.arange(4)).clamp(max=8)
    torch.testing.assert_close(
        expected_reach(gates, frame_arrival(lengths, 9), lengths)[0], (probability * ends).sum(1)
    )


def test_looking_within_a_chunk_is_free() -> None:
    """Frames that arrive together cost nothing to look at; the next chunk's do."""
    arrival = torch.tensor([[2, 2, 2, 5, 5, 5]])
    lengths = torch.tensor([6])
    gates = hard_gates(torch.tensor([[[[1.0, 1.0], [1, -1], [-1, 1], [1, 1], [1, 1], [1, 1]]]]))
    reach = expected_reach(gates.float(), arrival, lengths)
    assert delays(reach, arrival)[0].tolist() == [0, 0, 0, 0, 0, 0]
    gates[0, 0, 1] = True
    assert delays(expected_reach(gates.float(), arrival, lengths), arrival)[0].tolist() == [0, 3, 3, 0, 0, 0]


def test_outputs_wait_for_those_before_them() -> None:
    """All outputs are read in order, so a frame that looks far delays the ones after it."""
    gates = torch.zeros(1, 1, 6, 3)
    gates[0, 0, 1] = 1.0
    lengths = torch.tensor([6])
    arrival = frame_arrival(lengths, 6)
    reach = expected_reach(gates, arrival, lengths)
    assert reach[0].tolist() == [0, 4, 2, 3, 4, 5]
    assert delays(reach, arrival)[0].tolist() == [0, 3, 2, 1, 0, 0]


def test_always_looking_adds_up_through_depth() -> None:
    """N blocks that look K frames ahead wait N K frames; the plain penalty is 1 whatever N is."""
    gates = fixed_gates(3, 3, like=torch.zeros(1)).expand(4, 1, 50, 3)
    lengths = torch.tensor([50])
    reach = expected_reach(gates, frame_arrival(lengths, 50), lengths)
    assert (reach[0, :38] - torch.arange(38)).tolist() == [12] * 38
    assert reach[0, 38:].tolist() == [49] * 12
    assert float(plain_penalty(gates, lengths)) == 1.0
    assert fixed_gates(2, 3, like=torch.zeros(1)).tolist() == [1, 1, 0]


@pytest.mark.parametrize("penalty", ["plain", "latency"])
def test_regularisers_move_reach_down(penalty: str) -> None:
    """A step along the negative gradient closes gates; the latency penalty alone grows with depth."""
    logits = _logits(3, 30, 5, batch=2).requires_grad_()
    lengths = torch.tensor([30, 17])
    arrival = frame_arrival(lengths, 30)

    def value() -> torch.Tensor:
        gates = log_soft_gates(logits, 1.0).exp()
        return (
            plain_penalty(gates, lengths) if penalty == "plain" else latency_penalty(gates, arrival, lengths)
        )

    def hard_delay() -> float:
        return float(latency_penalty(hard_gates(logits).double(), arrival, lengths))

    before, delay_before = value(), hard_delay()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(value(), logits)
        logits.data -= 20 * gradient
    assert value() < before
    assert hard_delay() < 0.7 * delay_before
    assert (gradient[:, 1, 17:] == 0).all(), "padding must not be trained on"
