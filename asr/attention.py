"""Attention primitives shared by the causal encoder and the streaming decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """Reshape ``[B, N, D]`` to ``[B, n_head, N, D / n_head]``."""
    batch, length, width = x.shape
    return x.view(batch, length, n_head, width // n_head).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Reshape ``[B, n_head, N, d]`` to ``[B, N, n_head * d]``."""
    batch, n_head, length, width = x.shape
    return x.transpose(1, 2).reshape(batch, length, n_head * width)


def attend(query: Tensor, key: Tensor, value: Tensor, *, n_head: int, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention with a boolean mask.

    Args:
        query: ``[B, Q, D]``.
        key: ``[B, K, D]``.
        value: ``[B, K, D]``.
        n_head: Number of heads that D is split into.
        mask: Boolean, broadcastable to ``[B, Q, K]``; True = attend. None attends everywhere.

    Returns:
        ``[B, Q, D]``.
    """
    mixed = F.scaled_dot_product_attention(
        split_heads(query, n_head),
        split_heads(key, n_head),
        split_heads(value, n_head),
        attn_mask=None if mask is None else mask.unsqueeze(-3),
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
