"""Attention primitives shared by the causal encoder, the adaptive blocks and the streaming decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROTARY_BASE = 10_000.0  # the slowest pair of channels turns once in 2 pi times as many frames


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """Reshape ``[B, N, D]`` to ``[B, n_head, N, D / n_head]``."""
    batch, length, width = x.shape
    return x.view(batch, length, n_head, width // n_head).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Reshape ``[B, n_head, N, d]`` to ``[B, N, n_head * d]``."""
    batch, n_head, length, width = x.shape
    return x.transpose(1, 2).reshape(batch, length, n_head * width)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    n_head: int,
    mask: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention with a boolean mask.

    Args:
        query: ``[B, Q, D]``.
        key: ``[B, K, D]``.
        value: ``[B, K, D]``.
        n_head: Number of heads that D is split into.
        mask: Boolean, broadcastable to ``[B, Q, K]``; True = attend. None attends everywhere.
        bias: ``[n_head, Q, K]`` added to the scores, together with a mask.

    Returns:
        ``[B, Q, D]``.
    """
    visible = None if mask is None else mask.unsqueeze(-3)
    if bias is not None:
        assert visible is not None
        visible = bias.to(query.dtype).masked_fill(~visible, -torch.inf)
    if visible is not None and visible.dim() == 3:
        visible = visible[None]  # torch's fast kernels take no mask of three dimensions
    mixed = F.scaled_dot_product_attention(
        split_heads(query, n_head),
        split_heads(key, n_head),
        split_heads(value, n_head),
        attn_mask=visible,
    )
    return merge_heads(mixed)


def attention_weights(query: Tensor, key: Tensor, *, n_head: int, mask: Tensor | None) -> Tensor:
    """The weights that :func:`attend` uses, in float32, for alignment.

    Args:
        query: ``[B, Q, D]``.
        key: ``[B, K, D]``.
        n_head: Number of heads.
        mask: As in :func:`attend`.

    Returns:
        ``[B, n_head, Q, K]``; each row sums to 1.
    """
    q, k = split_heads(query, n_head).float(), split_heads(key, n_head).float()
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(-3), -torch.inf)
    return scores.softmax(dim=-1)


def gated_attend(
    query: Tensor, key: Tensor, value: Tensor, *, n_head: int, log_gate: Tensor, bias: Tensor
) -> Tensor:
    """Scaled dot-product attention whose weights are multiplied by gates before they are normalised.

    Args:
        query: ``[B, Q, D]``.
        key: ``[B, K, D]``.
        value: ``[B, K, D]``.
        n_head: Number of heads that D is split into.
        log_gate: ``[B, Q, K]`` logarithms of the gates, at most 0; -inf is a closed gate. Every row holds an
            open one.
        bias: ``[n_head, Q, K]`` added to the scores.

    Returns:
        ``[B, Q, D]``.
    """
    mixed = F.scaled_dot_product_attention(
        split_heads(query, n_head),
        split_heads(key, n_head),
        split_heads(value, n_head),
        attn_mask=(log_gate.unsqueeze(-3) + bias).to(query.dtype),
    )
    return merge_heads(mixed)


def distance_bias(offset: Tensor, *, n_head: int) -> Tensor:
    """What makes heads prefer near frames, in the past and in the future alike (ALiBi, arXiv 2108.12409).

    Args:
        offset: ``[Q, K]`` integers, how many frames each key lies after each query.
        n_head: Heads; the first looks nearest, each of the others four times as far as the one before it.

    Returns:
        ``[n_head, Q, K]`` float32, at most 0.
    """
    slopes = 0.5 * 0.25 ** torch.arange(n_head, dtype=torch.float32, device=offset.device)
    return -slopes[:, None, None] * offset.abs()


def rotate(x: Tensor, positions: Tensor, *, n_head: int) -> Tensor:
    """Rotary positions (RoFormer, arXiv 2104.09864): scores depend only on how far apart two frames are.

    Args:
        x: ``[B, T, D]`` queries or keys; each head's width is even.
        positions: ``[T]`` integers, as large as a stream without end makes them.
        n_head: Number of heads that D is split into.

    Returns:
        ``[B, T, D]``.
    """
    heads = split_heads(x, n_head)
    n_pairs = heads.shape[-1] // 2
    # In float32 the angles of the first hours of a stream would already be wrong in the third digit.
    exponent = torch.arange(n_pairs, device=x.device, dtype=torch.float64) / n_pairs
    angles = positions.double()[:, None] * ROTARY_BASE**-exponent
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = heads.split(n_pairs, dim=-1)
    return merge_heads(torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1))
