"""The head: streaming from encoder frames equals one pass, and the stacking leaves no frame out."""

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.frontier import LookPolicy
from asr.head import HeadJob
from tests.heads import TINY_HEAD, tiny_head


def _frames(n_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, n_frames, TINY_HEAD.encoder_width, generator=generator, dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9999))
def test_streaming_equals_one_pass(seed: int) -> None:
    """Encoder frames in pieces of any size, odd ones too, of two streams with dials of their own."""
    generator = random.Random(seed)
    head = tiny_head(seed).double()
    streams = [_frames(generator.randint(2, 80), seed + i) for i in range(2)]
    policies = [LookPolicy(), LookPolicy(fixed=(1, 3))]
    states = [head.init_state(policy) for policy in policies]
    outputs: list[list[torch.Tensor]] = [[], []]
    at = [0, 0]
    ended = [False, False]
    while not all(ended):
        jobs, rows = [], [i for i in range(2) if not ended[i]]
        for i in rows:
            size = generator.choice([0, 1, 2, 3, 15])
            part = streams[i][:, at[i] : at[i] + size]
            at[i] += size
            ended[i] = at[i] >= streams[i].shape[1]
            jobs.append(HeadJob(part, states[i], ends=ended[i]))
        for i, released in zip(rows, head.step(jobs), strict=True):
            outputs[i].append(released.frames)
    for frames, policy, parts in zip(streams, policies, outputs, strict=True):
        whole = head(frames, torch.tensor([frames.shape[1] // 2]), policy=policy).frames
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-9, rtol=0)


def test_declared_latency() -> None:
    """A head frame depends on encoder frames up to its own pair and the latency, and on no later one."""
    head = tiny_head().double()
    always = LookPolicy(fixed=(3, 3))
    frames, noise = _frames(60), _frames(60, seed=1)
    whole = head(frames, torch.tensor([30]), policy=always).frames
    end = 2 * 10 + head.block_size + head.latency  # of what head frame 10 needs
    for first, is_same in ((end, True), (end - 1, False)):
        changed = torch.cat([frames[:, :first], noise[:, first:]], dim=1)
        after = head(changed, torch.tensor([30]), policy=always).frames
        assert torch.equal(after[:, 10], whole[:, 10]) is is_same


def test_it_declares_its_block() -> None:
    """Two encoder frames make a head frame; a single one at the end makes none."""
    head = tiny_head().double()
    assert head.gather(_frames(7)).shape == (1, 3, TINY_HEAD.width)
    state = head.init_state()
    (released,) = head.step([HeadJob(_frames(7), state, ends=True)])
    assert released.frames.shape[1] == 3
