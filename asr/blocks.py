"""What a Whisper block does to its input apart from attending; the weights may be in any format.

:class:`asr.encoder.CausalEncoder` and :class:`asr.decoder.Decoder` run any :class:`Block`; here they are
Whisper's own modules, :mod:`asr.int8` makes them from packed 8-bit weights. Axis letters: D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from whisper.model import AudioEncoder, ResidualAttentionBlock, TextDecoder

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """One transformer block; every function maps ``[..., D]`` to ``[..., D]`` row by row."""

    attn_ln: Function
    qkv: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # queries, keys and values of self-attention
    out: Function
    mlp_ln: Function
    mlp: Function


@dataclass(frozen=True)
class CrossBlock(Block):
    """A block of the decoder, which attends to the audio as well."""

    cross_ln: Function
    cross_query: Function
    cross_out: Function


def encoder_blocks(weights: AudioEncoder) -> list[Block]:
    """The modules of an encoder, with or without LoRA layers in them."""
    return [
        Block(block.attn_ln, _separate(block), block.attn.out, block.mlp_ln, block.mlp)
        for block in weights.blocks
    ]


def decoder_blocks(weights: TextDecoder) -> list[CrossBlock]:
    """The modules of a decoder, with or without LoRA layers in them."""
    return [
        CrossBlock(
            block.attn_ln,
            _separate(block),
            block.attn.out,
            block.mlp_ln,
            block.mlp,
            block.cross_attn_ln,
            block.cross_attn.query,
            block.cross_attn.out,
        )
        for block in weights.blocks
    ]


def _separate(block: ResidualAttentionBlock) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values by a product each: what LoRA layers need."""
    attn = block.attn
    return lambda y: (attn.query(y), attn.key(y), attn.value(y))
