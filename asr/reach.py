"""How far frames look ahead through a stack of adaptive blocks, and its price (ANCAT, arXiv 2305.04159).

A frame's gates say for k = 1..K whether it looks at the frame k after it; p_k is the probability that it
looks at least that far. Axis letters: N blocks, B streams, T frames, K the farthest that one block looks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def log_soft_gates(logits: Tensor, temperature: float) -> Tensor:
    """Stick-breaking: ``log p_k`` of ``p_k = g_1 g_2 ... g_k`` with ``g_k = sigmoid(s_k / temperature)``.

    Args:
        logits: ``[..., K]`` the scheduler's s_k.
        temperature: Above 0; the nearer to 0, the harder the gates.

    Returns:
        ``[..., K]``, never increasing along K.
    """
    return F.logsigmoid(logits / temperature).cumsum(dim=-1)


def hard_gates(logits: Tensor) -> Tensor:
    """The soft gates' limit at temperature 0, ``p_k > 0.5``: open as long as every s up to k is positive.

    Args:
        logits: ``[..., K]`` the scheduler's s_k.

    Returns:
        Boolean ``[..., K]``.
    """
    return (logits > 0).cumprod(dim=-1).bool()


def fixed_gates(look: int, max_look: int, *, like: Tensor) -> Tensor:
    """Gates ``[K]`` of frames that always look ``look`` frames ahead, as floats on the device of ``like``."""
    return (torch.arange(1, max_look + 1, device=like.device) <= look).to(like.dtype)


def inside(lengths: Tensor, n_frames: int) -> Tensor:
    """Boolean ``[B, T]``: frames that belong to a stream of the given ``[B]`` lengths, not to padding."""
    return torch.arange(n_frames, device=lengths.device) < lengths[:, None]


def expected_reach(gates: Tensor, arrival: Tensor, lengths: Tensor) -> Tensor:
    """When the last frame that each output depends on is there; exact for hard gates, expected for soft ones.

    Through depth waits add up: an output of block l waits for outputs of block l - 1 up to i + k, and a
    streaming block computes its outputs in order, so it waits for the slowest of all that come before. Let
    ``M_l(j) = max over j' <= j of reach_l(j')``. Block l looks just k frames ahead with probability
    p_k - p_{k+1}, so
    ``reach_l(i) = M_{l-1}(i) + sum over k of p_k (M_{l-1}(i + k) - M_{l-1}(i + k - 1))``.

    Args:
        gates: ``[N, B, T, K]`` p_k of every block, from 0 to 1.
        arrival: ``[B, T]`` when each input frame is there, never decreasing, at least 0; in frames.
        lengths: ``[B]`` frames of each stream; nobody waits for what comes after.

    Returns:
        ``[B, T]`` in frames; meaningless in the padding.
    """
    max_look = gates.shape[-1]
    is_inside = inside(lengths, gates.shape[2])
    reach = arrival.to(gates.dtype)
    for block_gates in gates:
        newest = torch.where(is_inside, reach, 0.0).cummax(dim=-1).values
        ahead = F.pad(newest, (0, max_look), mode="replicate").unfold(-1, max_look + 1, 1)  # [B, T, K + 1]
        reach = newest + (block_gates * ahead.diff(dim=-1)).sum(dim=-1)
    return reach


def delays(reach: Tensor, arrival: Tensor) -> Tensor:
    """How long each output of the last block waits after its own frame came, all outputs being read in order.

    Args:
        reach: ``[B, T]`` from :func:`expected_reach`.
        arrival: ``[B, T]`` as given to it.

    Returns:
        ``[B, T]`` in frames, at least 0.
    """
    return reach.cummax(dim=-1).values - arrival


def plain_penalty(gates: Tensor, lengths: Tensor) -> Tensor:
    """The plain regulariser: mean p_k over blocks, frames and k. It does not know that waits add up.

    Args:
        gates: ``[N, B, T, K]``.
        lengths: ``[B]``.

    Returns:
        ``[]`` from 0 to 1.
    """
    return gates.mean(dim=(0, -1))[inside(lengths, gates.shape[2])].mean()


def latency_penalty(gates: Tensor, arrival: Tensor, lengths: Tensor) -> Tensor:
    """The latency regulariser: the mean delay that a listener feels.

    Args:
        gates: ``[N, B, T, K]``.
        arrival: ``[B, T]`` as in :func:`expected_reach`.
        lengths: ``[B]``.

    Returns:
        ``[]`` in frames.
    """
    waits = delays(expected_reach(gates, arrival, lengths), arrival)
    return waits[inside(lengths, gates.shape[2])].mean()


def frame_arrival(lengths: Tensor, n_frames: int) -> Tensor:
    """``[B, T]`` arrival of frames that come one by one: frame i at i."""
    return torch.arange(n_frames, device=lengths.device).expand(len(lengths), -1)
