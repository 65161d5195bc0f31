"""8-bit weights: near the exact product, the same in any company, and only where the processor can."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from whisper.model import Whisper

from asr import int8
from asr.batch import Step
from asr.errors import OptionError
from asr.int8 import Int8Linear, fuse
from asr.recognizer import Recognizer
from asr.weight_format import choose_format
from tests.test_recognizer import told

CPU = torch.device("cpu")

needs_int8 = pytest.mark.skipif(not int8.weight_levels(), reason="this processor cannot multiply bytes")


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@needs_int8
def test_product_is_near_the_exact_one() -> None:
    """The error of a product is a hundredth of its size, with and without a bias, for rows of any scale."""
    weight, bias, x = _random(96, 64), _random(96, seed=1), _random(5, 64, seed=2)
    x *= torch.tensor([1e-3, 1.0, 10.0, 1e4, 1.0])[:, None]
    for b in (None, bias):
        exact = nn.functional.linear(x, weight, b)
        for levels, limit in ((int8.weight_levels(), 0.03), (int8.FEW_LEVELS, 0.03), (int8.LEVELS, 0.02)):
            if levels <= int8.weight_levels():
                error = (Int8Linear(weight, b, levels=levels)(x) - exact).norm(dim=1) / exact.norm(dim=1)
                assert float(error.max()) < limit
    assert torch.equal(Int8Linear(weight, bias)(torch.zeros(1, 64))[0], bias)


@needs_int8
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_a_row_does_not_depend_on_its_neighbours(n_rows: int, seed: int) -> None:
    """Bit for bit: a row alone gives what it gives among louder and softer ones."""
    layer = Int8Linear(_random(48, 64), _random(48, seed=1))
    x = _random(n_rows, 64, seed=seed) * _random(n_rows, 1, seed=seed + 1).exp()
    together = layer(x)
    for row in range(n_rows):
        assert torch.equal(layer(x[row : row + 1])[0], together[row])


@needs_int8
def test_fused_layers_are_the_layers_side_by_side() -> None:
    """One product for three layers gives each what it gives by itself, one without a bias among them."""
    layers = [nn.Linear(32, 24), nn.Linear(32, 24, bias=False), nn.Linear(32, 24)]
    x = _random(7, 32)
    with torch.no_grad():
        parts = fuse(layers)(x).chunk(3, dim=-1)
        for layer, part in zip(layers, parts, strict=True):
            assert torch.equal(part, fuse([layer])(x))


@needs_int8
def test_streams_in_company_say_what_they_say_alone(tiny_model: Whisper, jfk: np.ndarray) -> None:
    """With 8-bit weights, three streams in one batch have exactly the texts and times they have alone."""
    recognizer = Recognizer(tiny_model, tiny_model, name="tiny-random", weights="int8")
    clips = [jfk[start : start + 48_000] for start in (0, 30_000, 90_000)]
    streams = [recognizer.stream() for _ in clips]
    together = recognizer.advance([Step(s, clip, "finish") for s, clip in zip(streams, clips, strict=True)])
    for stream, clip, outcome in zip(streams, clips, together, strict=True):
        assert isinstance(outcome, list)
        other = recognizer.stream()
        alone = recognizer.advance([Step(other, clip, "finish")])[0]
        assert isinstance(alone, list)
        ours, theirs = stream._window.cross, other._window.cross
        n_frames = ours.n_frames
        assert torch.equal(ours.frames[:, :n_frames], theirs.frames[:, : theirs.n_frames])
        assert told(outcome) == told(alone)  # type: ignore[arg-type]
        assert len(alone) > 3


@needs_int8
def test_second_passes_and_offline_stay_exact(tiny_model: Whisper) -> None:
    """The base model's own modules are not replaced."""
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    recognizer = Recognizer(tiny_model, tiny_model, name="tiny-random", weights="int8")
    assert recognizer.weights == "int8"
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in recognizer.base_model.state_dict().items()
    )
    assert all(not isinstance(module, Int8Linear) for module in tiny_model.modules())


def test_formats_are_chosen_by_what_the_processor_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto is int8 with all 8 bits only; int8 may have 7; refusals give a reason."""
    monkeypatch.setattr(int8, "weight_levels", lambda: 0)
    assert choose_format("auto", device=CPU) == "fp32"
    assert choose_format("fp32", device=CPU) == "fp32"
    with pytest.raises(OptionError, match="fp32"):
        choose_format("int8", device=CPU)
    monkeypatch.setattr(int8, "weight_levels", lambda: int8.FEW_LEVELS)
    assert choose_format("auto", device=CPU) == "fp32"
    assert choose_format("int8", device=CPU) == "int8"
    monkeypatch.setattr(int8, "weight_levels", lambda: int8.LEVELS)
    assert choose_format("auto", device=CPU) == "int8"
    assert choose_format("auto", device=torch.device("cuda")) == "fp32"
    with pytest.raises(OptionError, match="auto, int8, fp32"):
        choose_format("int4", device=CPU)


@needs_int8
def test_largest_products_are_added_up_exactly() -> None:
    """Bytes and weights of greatest size and either sign give the sum that integers give."""
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]).repeat(8)
    weight, x = torch.stack([torch.ones(64), -torch.ones(64), signs]), torch.stack([torch.ones(64), signs])
    torch.testing.assert_close(Int8Linear(weight)(x), x @ weight.T, rtol=1e-5, atol=1e-4)


def test_overflow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights have 7 bits where sums are cut off with 8; without the operator there are none."""
    most = (2**15 - 1) // (2 * 255)  # levels up to which a pair of products fits into 16 bits

    def cut_off(self: Int8Linear, x: torch.Tensor) -> torch.Tensor:
        return torch.full((2, 64), 64.0 * min(1.0, most / self._levels))

    plain = Int8Linear.__init__

    def remember(self: Int8Linear, weight: torch.Tensor, *, levels: int) -> None:
        self._levels = levels  # type: ignore[attr-defined]

    monkeypatch.setattr(Int8Linear, "__init__", remember)
    monkeypatch.setattr(Int8Linear, "__call__", cut_off)
    assert int8.weight_levels.__wrapped__() == int8.FEW_LEVELS
    monkeypatch.setattr(Int8Linear, "__init__", plain)

    def fail(self: Int8Linear, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such engine")

    monkeypatch.setattr(Int8Linear, "__call__", fail)
    assert int8.weight_levels.__wrapped__() == 0
