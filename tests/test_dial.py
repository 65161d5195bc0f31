"""The dial: wanted delays become biases, and names and numbers become policies."""

import pytest
import torch

from asr.dial import Dial, DialPoint, calibrate, measure
from asr.errors import OptionError
from asr.frontier import LookPolicy
from asr.lookahead import Lookahead

FRAME_MS = 40.0


@pytest.fixture(scope="module")
def stack() -> Lookahead:
    torch.manual_seed(0)
    stack = Lookahead(width=16, n_blocks=2, n_head=2, max_look=4, left_context=8)
    for block in stack.blocks:
        torch.nn.init.normal_(block.scheduler.gates.weight, std=3.0)
    return stack.eval()


@pytest.fixture(scope="module")
def features() -> list[torch.Tensor]:
    return [torch.randn(1, n, 16, generator=torch.Generator().manual_seed(n)) for n in (120, 200)]


def test_wanted_delays_are_found(stack: Lookahead, features: list[torch.Tensor]) -> None:
    """Every wanted mean that the blocks can give is given within a tenth of a frame."""
    dial = calibrate(stack, features, [10, 60, 200, 9999], frame_ms=FRAME_MS)
    means = [point.mean_ms for point in dial.points]
    assert means[:3] == pytest.approx([10, 60, 200], abs=4)
    longest = measure(stack, features, LookPolicy(fixed=(4, 4)), frame_ms=FRAME_MS)
    assert means[3] == pytest.approx(longest.mean_ms)
    again = measure(stack, features, LookPolicy(dial.bias(60)), frame_ms=FRAME_MS)
    assert again.mean_ms == pytest.approx(60, abs=8)
    assert again.p95_ms >= again.mean_ms


def test_positions_survive_json() -> None:
    """What a card holds is what was measured."""
    dial = Dial((DialPoint(-2.0, 0.0, 0.0), DialPoint(1.5, 80.0, 200.0)))
    assert Dial.from_json(dial.to_json()) == dial


@pytest.mark.parametrize(
    ("latency", "bias"), [(0, -2.0), (40, 0.0), ("low", 2.0), (5000, 4.0), ("minimal", -1.0)]
)
def test_names_and_numbers(latency: str | float, bias: float) -> None:
    """Between measured positions the bias is interpolated, beyond them it is the nearest."""
    dial = Dial((DialPoint(-2.0, 0.0, 0.0), DialPoint(2.0, 80.0, 200.0), DialPoint(4.0, 160.0, 300.0)))
    assert dial.bias(latency) == bias


@pytest.mark.parametrize("latency", ["fast", -1, float("nan")])
def test_wrong_positions_are_refused(latency: str | float) -> None:
    """The message lists the names, or the range."""
    with pytest.raises(OptionError, match="minimal, low, medium, high|at least 0"):
        Dial((DialPoint(0.0, 0.0, 0.0),)).bias(latency)
