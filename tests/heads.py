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
    """Random weights whose frames look differently far and say a token every few frames."""
    torch.manual_seed(seed)
    head = TransducerHead(config).eval().requires_grad_(False)
    for block in head.lookahead.blocks:
        torch.nn.init.normal_(block.scheduler.gates.weight, std=3.0)
    head.transducer.out.weight *= 6
    head.transducer.out.bias[head.transducer.blank] += 4.5
    return head
