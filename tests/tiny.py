"""A small random Whisper for tests that need no real weights."""

from __future__ import annotations

import torch
from whisper.model import ModelDimensions, Whisper

TINY_DIMS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=64,
    n_audio_head=2,
    n_audio_layer=3,
    n_vocab=51864,
    n_text_ctx=448,
    n_text_state=64,
    n_text_head=2,
    n_text_layer=2,
)


def tiny_whisper(seed: int = 0) -> Whisper:
    """Random weights large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    model = Whisper(TINY_DIMS).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5 * 2
                )
            elif "bias" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    heads = torch.zeros(TINY_DIMS.n_text_layer, TINY_DIMS.n_text_head, dtype=torch.bool)
    heads[-1] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return model
