"""Lookahead in the encoder: a frame waits for the next step only where that may change what is said.

With right context (:mod:`asr.encoder`) every step computes the newest frames again, so a frame comes in
versions, each with more future in it. A head would do best to read the last one and soonest with the first.
The scheduler looks at the newest version of a frame and decides whether the next one is worth waiting for:
stick-breaking gates as those of an adaptive block (:mod:`asr.reach`), but each opens or closes in the light
of what has been heard by then. Axis letters: T head frames, D their width, V versions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_HIDDEN = 128


class WaitScheduler(nn.Module):
    """Says of each provisional head frame whether to wait for its next version.

    Attributes:
        max_future: Head frames of future that it tells apart; more is as so many.
    """

    def __init__(self, width: int, *, max_future: int) -> None:
        """Make weights that wait for half of the frames.

        Args:
            width: D.
            max_future: At least 1.
        """
        super().__init__()
        self.max_future = max_future
        self.frame_in = nn.Linear(width, _HIDDEN)
        self.future_in = nn.Embedding(max_future + 1, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, frames: Tensor, future: Tensor) -> Tensor:
        """How much each frame had better wait.

        Args:
            frames: ``[..., T, D]`` the head's frames, each computed from its newest version.
            future: ``[..., T]`` int64, head frames after each that had been encoded with it.

        Returns:
            Logits ``[..., T]``: a frame is worth waiting for where its logit and the dial's bias exceed 0.
        """
        known = self.future_in(future.clamp(max=self.max_future))
        output: Tensor = self.out(nn.functional.gelu(self.frame_in(frames) + known))
        return output[..., 0]


def n_ready(logits: Tensor, bias: float) -> int:
    """How many of a stream's provisional frames are read now: those before the first that waits.

    Args:
        logits: ``[T]`` of consecutive frames, the oldest first.
        bias: The dial.
    """
    waits = (logits + bias > 0).tolist()
    return waits.index(True) if True in waits else len(waits)


def expected_cost(stays: Tensor, costs: Tensor) -> Tensor:
    """What reading costs when gates are soft.

    Args:
        stays: ``[V - 1, T]`` probability of waiting for at least one, two, ... versions more.
        costs: ``[V, T]`` of reading each version.

    Returns:
        ``[T]`` expected cost of the version that is read.
    """
    ones, zeros = torch.ones_like(stays[:1]), torch.zeros_like(stays[:1])
    stops = torch.cat([ones, stays]) - torch.cat([stays, zeros])
    return (stops * costs).sum(dim=0)


def waiting_delays(stays: Tensor, heard: Tensor) -> Tensor:
    """How long each frame waits after the step that first brought it; frames are read in order.

    Args:
        stays: ``[V - 1, T]`` as in :func:`expected_cost`; ones and zeros for hard gates.
        heard: ``[V, T]`` head frames that had been encoded with each version.

    Returns:
        ``[T]`` in head frames; exact for hard gates.
    """
    steps = heard.diff(dim=0).to(stays.dtype)
    read_at = heard[0] + (stays * steps).sum(dim=0)
    return read_at.cummax(dim=0).values - heard[0]


def hard_stays(logits: Tensor, bias: float) -> Tensor:
    """``[V - 1, T]`` ones and zeros: waiting goes on as long as every logit so far and the bias exceed 0."""
    return (logits + bias > 0).cumprod(dim=0).to(logits.dtype)


def soft_stays(logits: Tensor) -> Tensor:
    """``[V - 1, T]`` probabilities of waiting for at least one, two, ... versions more."""
    return torch.sigmoid(logits).cumprod(dim=0)
