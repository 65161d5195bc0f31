"""The dial of a trained stack of adaptive blocks: which bias on its schedulers gives which mean delay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asr.errors import OptionError
from asr.frontier import LookPolicy
from asr.lookahead import Lookahead
from asr.reach import delays, expected_reach, frame_arrival

LATENCY_MS = {"minimal": 20, "low": 80, "medium": 160, "high": 320}  # mean delay that each position asks for
MAX_BIAS = 256.0  # beyond it gates are open, or closed, whatever the schedulers say
TOLERANCE_MS = 1.0  # a wanted mean delay is met
_BISECTIONS = 12


@dataclass(frozen=True)
class DialPoint:
    """One measured position: what a bias does to delays over some speech."""

    bias: float
    mean_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Dial:
    """Measured positions, by growing mean delay.

    Attributes:
        points: At least one of them.
    """

    points: tuple[DialPoint, ...]

    def bias(self, latency: str | float) -> float:
        """What to add to schedulers' logits.

        Args:
            latency: A name from ``LATENCY_MS``, or the wanted mean delay in ms. What lies beyond the measured
                positions is the nearest of them.

        Returns:
            A bias with which the mean delay was about that over the speech that the dial was measured on.

        Raises:
            OptionError: The name is unknown or the number is negative.
        """
        if isinstance(latency, str):
            if latency not in LATENCY_MS:
                raise OptionError(
                    f"latency must be one of {', '.join(LATENCY_MS)} or a number of ms, not {latency!r}"
                )
            latency = LATENCY_MS[latency]
        if not latency >= 0:
            raise OptionError(f"latency must be at least 0 ms, not {latency}")
        means = [point.mean_ms for point in self.points]
        return float(np.interp(latency, means, [point.bias for point in self.points]))

    def to_json(self) -> list[dict[str, float]]:
        """The points as plain values."""
        return [vars(point) for point in self.points]

    @classmethod
    def from_json(cls, values: Sequence[dict[str, Any]]) -> Dial:
        """Read :meth:`to_json`'s values."""
        return cls(tuple(DialPoint(**value) for value in values))


@torch.no_grad()
def measure(
    stack: Lookahead, features: Sequence[Tensor], policy: LookPolicy, *, frame_ms: float
) -> DialPoint:
    """Delays of hard gates over whole streams.

    Args:
        stack: The blocks, in eval mode.
        features: ``[1, T, D]`` input frames of some streams.
        policy: What to measure.
        frame_ms: Length of a frame.

    Returns:
        The mean and the 95th percentile over all frames.
    """
    waits = []
    for frames in features:
        lengths = torch.tensor([frames.shape[1]], device=frames.device)
        arrival = frame_arrival(lengths, frames.shape[1])
        gates = stack(frames, lengths, policy=policy).gates
        waits.append(delays(expected_reach(gates, arrival, lengths), arrival)[0])
    all_waits = torch.cat(waits).double() * frame_ms
    return DialPoint(policy.bias, float(all_waits.mean()), float(all_waits.quantile(0.95)))


def calibrate(
    stack: Lookahead, features: Sequence[Tensor], targets_ms: Sequence[float], *, frame_ms: float
) -> Dial:
    """Find the biases that give wanted mean delays.

    Args:
        stack: The blocks, in eval mode.
        features: ``[1, T, D]`` input frames of some streams, enough to stand for others.
        targets_ms: As in :func:`find_positions`.
        frame_ms: Length of a frame.

    Returns:
        The dial.
    """
    return find_positions(
        lambda bias: measure(stack, features, LookPolicy(bias), frame_ms=frame_ms), targets_ms
    )


def find_positions(measured_at: Callable[[float], DialPoint], targets_ms: Sequence[float]) -> Dial:
    """Find the biases that give wanted mean delays, by bisection.

    Args:
        measured_at: Measures a bias; more bias is never less delay.
        targets_ms: Wanted mean delays; what cannot be reached gives the nearest that can.

    Returns:
        The dial.
    """
    measured: dict[float, DialPoint] = {}

    def mean_ms(bias: float) -> float:
        if bias not in measured:
            measured[bias] = measured_at(bias)
        return measured[bias].mean_ms

    points = []
    for target in sorted(targets_ms):
        low, high = -1.0, 1.0
        while low > -MAX_BIAS and mean_ms(low) > target:
            low *= 2
        while high < MAX_BIAS and mean_ms(high) < target:
            high *= 2
        tried = {low, high}
        for _ in range(_BISECTIONS):
            if min(abs(mean_ms(bias) - target) for bias in tried) < TOLERANCE_MS:
                break
            middle = (low + high) / 2
            tried.add(middle)
            low, high = (middle, high) if mean_ms(middle) < target else (low, middle)
        points.append(measured[min(tried, key=lambda bias: (abs(mean_ms(bias) - target), abs(bias)))])
    unique = {point.mean_ms: point for point in points}
    return Dial(tuple(sorted(unique.values(), key=lambda point: point.mean_ms)))
