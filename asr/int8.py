"""Linear layers with 8-bit weights and activations, for processors that multiply bytes.

Where pairs of products are added up in 16 bits, weights use 7 of the bits. Weights have a scale for each
output, activations one for each row, so a row's result does not depend on the rows beside it: a stream gives
the same text alone and in company. Axis letters: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import AudioEncoder, MultiHeadAttention, TextDecoder

from asr.blocks import Block, CrossBlock

LEVELS = 127  # of each sign, for activations, and for weights where sums of products are exact
FEW_LEVELS = 63  # for weights elsewhere: two products of an unsigned byte with 7 bits fit into 16 bits
LEAST_ROW = 1e-12  # a row of zeros is divided by this


class Int8Linear:
    """``x @ weight.T + bias`` with both factors rounded to 8 bits."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, levels: int | None = None) -> None:
        """Round and pack.

        Args:
            weight: ``[O, I]``; not kept.
            bias: ``[O]``, added in float32.
            levels: Of weights, of each sign; None is as many as this processor adds up exactly.
        """
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(LEAST_ROW) / (levels or weight_levels() or LEVELS)
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        quantized = torch._make_per_channel_quantized_tensor(rounded, scale.double(), zeros, 0)
        self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self._bias = torch.zeros(()) if bias is None else bias.detach().float()

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply ``[..., I]`` float32; ``[..., O]`` float32."""
        largest = x.abs().amax(dim=-1, keepdim=True).clamp_min_(LEAST_ROW)
        # The operator rounds, multiplies and scales back; its bytes are unsigned, so 128 stands for zero.
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / largest, 1 / LEVELS, LEVELS + 1, self._packed
        )
        return torch.addcmul(self._bias, y, largest)


def fuse(linears: Sequence[nn.Linear]) -> Int8Linear:
    """One product for several layers of the same input; the results lie side by side."""
    biases: list[Tensor] = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
        for linear in linears
    ]
    weights: list[Tensor] = [linear.weight for linear in linears]
    return Int8Linear(torch.cat(weights), torch.cat(biases))


def encoder_blocks(weights: AudioEncoder) -> list[Block]:
    """The blocks of an encoder; adapters must have been merged."""
    return [
        Block(block.attn_ln, _qkv(block.attn), fuse([block.attn.out]), block.mlp_ln, _mlp(block.mlp))
        for block in weights.blocks
    ]


def decoder_blocks(weights: TextDecoder) -> list[CrossBlock]:
    """The blocks of a decoder; adapters must have been merged."""
    return [
        CrossBlock(
            block.attn_ln,
            _qkv(block.attn),
            fuse([block.attn.out]),
            block.mlp_ln,
            _mlp(block.mlp),
            block.cross_attn_ln,
            fuse([block.cross_attn.query]),
            fuse([block.cross_attn.out]),
        )
        for block in weights.blocks
    ]


@cache
def weight_levels() -> int:
    """How many levels of each sign weights may have so that products of bytes are added up exactly; 0: none.

    Without VNNI instructions pairs of products are added in 16 bits, and large ones are cut off: there
    weights have 7 bits.
    """
    return next((levels for levels in (LEVELS, FEW_LEVELS) if _is_exact(levels)), 0)


def _is_exact(levels: int) -> bool:
    try:
        largest = Int8Linear(torch.ones(64, 64), levels=levels)(torch.ones(2, 64))
    except RuntimeError:  # no such operator for this processor
        return False
    return bool(torch.allclose(largest, torch.full_like(largest, 64.0), rtol=1e-5))


def _qkv(attn: MultiHeadAttention) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    together = fuse([layer for layer in (attn.query, attn.key, attn.value) if isinstance(layer, nn.Linear)])

    def qkv(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = together(y).chunk(3, dim=-1)
        return query, key, value

    return qkv


def _mlp(mlp: nn.Sequential) -> Callable[[Tensor], Tensor]:
    first, last = mlp[0], mlp[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear), (
        "Whisper's MLP is linear, GELU, linear"
    )
    widen, narrow = fuse([first]), fuse([last])
    return lambda y: narrow(F.gelu(widen(y)))
