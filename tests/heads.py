"""A small random transducer head for tests that need no trained one."""

from __future__ import annotations

import torch

from asr.head import HeadConfig, TransducerHead

TINY_HEAD = HeadConfig(
    encoder_width=64,
    n_tokens=300,
    width=32,
    n_blocks=2,
    n_head=2,
    max_look=3,
    left_context=12,
    embedding_width=16,
    joint_width=24,
)


def tiny_head(seed: int = 0, config: HeadConfig = TINY_HEAD) -> TransducerHead:
    """Random weights whose frames look differently far and say a token now and then."""
    torch.manual_seed(seed)
    head = TransducerHead(config).eval().requires_grad_(False)
    for block in head.lookahead.blocks:
        torch.nn.init.normal_(block.scheduler.gates.weight, std=3.0)
    # Frames decide what is said, hardly what was said before.
    head.transducer.frame_in.weight *= 4
    head.transducer.predictor.out.weight *= 0.3
    head.transducer.out.weight *= 6
    let_speak(head, torch.randn(1, 400, config.width))
    return head


def let_speak(head: TransducerHead, frames: torch.Tensor) -> None:
    """Make blank just so likely that about one in five of some head frames ``[1, T, D]`` says something."""
    transducer = head.transducer
    before = transducer.predict(torch.zeros(1, 0, dtype=torch.int64))
    logits = transducer.join(transducer.transcribe(frames), before)[0]
    margin = logits[:, : transducer.blank].amax(dim=1) - logits[:, transducer.blank]
    transducer.out.bias[transducer.blank] += margin.quantile(0.8).to(transducer.out.bias.dtype)
