"""Adaptive blocks: streaming equals the masked pass, gates decide what is seen, and they can be learned."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.attention import rotate
from asr.frontier import LookaheadState, LookPolicy
from asr.lookahead import MAX_STEP_FRAMES, Lookahead, LookaheadJob
from asr.reach import expected_reach, frame_arrival, latency_penalty

WIDTH, MAX_LOOK = 16, 3
PAST_ONLY = LookPolicy(fixed=(0, 0, 0))
ALWAYS = LookPolicy(fixed=(MAX_LOOK,) * 3)


def _stack(*, n_blocks: int = 3, left_context: int = 20, seed: int = 0, spread: float = 4.0) -> Lookahead:
    """Random weights in double precision, whose schedulers disagree about every frame."""
    torch.manual_seed(seed)
    stack = Lookahead(
        width=WIDTH, n_blocks=n_blocks, n_head=2, max_look=MAX_LOOK, left_context=left_context
    ).double()
    for block in stack.blocks:
        torch.nn.init.normal_(block.scheduler.gates.weight, std=spread)
        torch.nn.init.normal_(block.qkv.weight, std=0.5)
    return stack.eval().requires_grad_(False)


def _frames(n_frames: int, *, seed: int = 0, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n_frames, WIDTH, generator=generator, dtype=torch.float64)


def _poisoned(stack: Lookahead, policy: LookPolicy) -> LookaheadState:
    """A fresh state whose rings hold what no result may contain."""
    state = stack.init_state(policy)
    for block in state.blocks:
        for ring in block.tensors:
            ring.fill_(1e4)
    return state


def _whole(stack: Lookahead, frames: torch.Tensor, policy: LookPolicy) -> tuple[torch.Tensor, list[int]]:
    """The hard-masked pass, and each frame's reach by the recursion."""
    lengths = torch.tensor([frames.shape[1]])
    output = stack(frames, lengths, policy=policy)
    reach = expected_reach(output.gates, frame_arrival(lengths, frames.shape[1]), lengths)
    return output.frames, [int(i) for i in reach[0]]


def _stream(
    stack: Lookahead, streams: list[tuple[torch.Tensor, LookPolicy, list[int]]]
) -> list[tuple[torch.Tensor, list[int]]]:
    """Step several streams together, each in its own pieces; the last piece ends it."""
    states = [_poisoned(stack, policy) for _, policy, _ in streams]
    outputs: list[list[torch.Tensor]] = [[] for _ in streams]
    reach: list[list[int]] = [[] for _ in streams]
    for tick in range(max(len(sizes) for _, _, sizes in streams)):
        going = [i for i, (_, _, sizes) in enumerate(streams) if tick < len(sizes)]
        jobs = []
        for i in going:
            frames, _, sizes = streams[i]
            at = sum(sizes[:tick])
            jobs.append(
                LookaheadJob(frames[:, at : at + sizes[tick]], states[i], ends=tick + 1 == len(sizes))
            )
        for i, released in zip(going, stack.step(jobs), strict=True):
            assert released.frames.shape[1] == len(released.reach)
            outputs[i].append(released.frames)
            reach[i] += released.reach
    return [(torch.cat(parts, dim=1), seen) for parts, seen in zip(outputs, reach, strict=True)]


def _split(n_frames: int, generator: random.Random) -> list[int]:
    """Random pieces, empty ones among them; sometimes the stream ends without a new frame."""
    sizes: list[int] = []
    while sum(sizes) < n_frames:
        sizes.append(min(generator.choice([0, 1, 2, 3, 5, 9, 40]), n_frames - sum(sizes)))
    return [*sizes, 0] if generator.random() < 0.5 else sizes


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 12), st.integers(1, 3), st.integers(0, 9999))
def test_streaming_equals_the_hard_masked_pass(
    n_blocks: int, more_context: int, n_streams: int, seed: int
) -> None:
    """Unsynchronised streams with dials of their own, in any pieces, give the frames of one pass each."""
    generator = random.Random(seed)
    stack = _stack(n_blocks=n_blocks, left_context=n_blocks * MAX_LOOK + more_context, seed=seed)
    streams = []
    for _ in range(n_streams):
        frames = _frames(generator.randint(1, 90), seed=generator.randint(0, 9999))
        policy = LookPolicy(generator.choice([-3.0, 0.0, 2.0]))
        streams.append((frames, policy, _split(frames.shape[1], generator)))
    for (frames, policy, _), (streamed, reach) in zip(streams, _stream(stack, streams), strict=True):
        whole, expected = _whole(stack, frames, policy)
        torch.testing.assert_close(streamed, whole, atol=1e-9, rtol=0)
        assert reach == expected


@pytest.mark.parametrize("policy", [PAST_ONLY, ALWAYS, LookPolicy(fixed=(0, 2, 1))])
def test_fixed_looks_stream_too(policy: LookPolicy) -> None:
    """The references, never, always and in between, run through the same code."""
    stack = _stack()
    frames = _frames(60)
    ((streamed, reach),) = _stream(stack, [(frames, policy, [7] * 8 + [4])])
    whole, expected = _whole(stack, frames, policy)
    torch.testing.assert_close(streamed, whole, atol=1e-9, rtol=0)
    assert reach == expected
    assert policy.fixed is not None
    assert reach[:50] == [i + sum(policy.fixed) for i in range(50)]


def test_frames_come_as_soon_as_they_can() -> None:
    """Frame by frame, an output appears in the step of its reach, or with an earlier output's."""
    stack, frames = _stack(), _frames(80)
    _, reach = _whole(stack, frames, LookPolicy())
    state = _poisoned(stack, LookPolicy())
    came: list[int] = []
    for now in range(80):
        (released,) = stack.step([LookaheadJob(frames[:, now : now + 1], state)])
        came += [now] * len(released.reach)
    assert len(came) > 65
    waited = torch.tensor([reach]).cummax(-1).values[0]
    assert came == waited[: len(came)].tolist()
    assert (waited[len(came) :] >= 79).all()
    assert [block.n_heard for block in state.blocks] == sorted(
        (b.n_heard for b in state.blocks), reverse=True
    )


def test_long_pieces_and_long_streams() -> None:
    """A piece beyond the ring's room is taken in several; a long stream wraps the rings many times."""
    stack = _stack()
    frames = _frames(10 * MAX_STEP_FRAMES + 5)
    whole, reach = _whole(stack, frames, LookPolicy())
    for sizes in ([frames.shape[1]], [3 * MAX_STEP_FRAMES + 1, 7 * MAX_STEP_FRAMES + 4]):
        ((streamed, seen),) = _stream(stack, [(frames, LookPolicy(), sizes)])
        torch.testing.assert_close(streamed, whole, atol=1e-9, rtol=0)
        assert seen == reach


def test_positions_are_relative() -> None:
    """After weeks of audio, scores still depend on how far apart two frames are, and on nothing else."""
    query, key = torch.randn(2, 1, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    scores = []
    for start in (0, 50_000_000):
        positions = start + torch.arange(6)
        q, k = (rotate(x, positions, n_head=2) for x in (query, key))
        scores.append(q @ k.transpose(1, 2))
    torch.testing.assert_close(scores[1], scores[0], atol=1e-5, rtol=0)
    assert not torch.allclose(scores[0], query @ key.transpose(1, 2), atol=0.1)


def test_the_future_beyond_the_reach_never_leaks() -> None:
    """Changing the input after a frame's reach leaves it bit for bit as it was; changing at it does not."""
    stack, frames, noise = _stack(), _frames(40), _frames(40, seed=1)
    whole, reach = _whole(stack, frames, LookPolicy())
    assert len({newest - i for i, newest in enumerate(reach)}) > 4, "the schedulers must disagree"
    assert max(newest - i for i, newest in enumerate(reach)) <= stack.latency
    for i in range(30):
        later, newest = frames.clone(), frames.clone()
        later[:, reach[i] + 1 :] = noise[:, reach[i] + 1 :]
        newest[:, reach[i]] = noise[:, reach[i]]
        assert torch.equal(_whole(stack, later, LookPolicy())[0][:, i], whole[:, i])
        assert not torch.equal(_whole(stack, newest, LookPolicy())[0][:, i], whole[:, i])


def test_a_longer_stream_never_changes_released_frames() -> None:
    """What was released before the stream went on is what one pass over all of it gives."""
    stack, frames = _stack(), _frames(60)
    whole, _ = _whole(stack, frames, LookPolicy())
    (released,) = stack.step([LookaheadJob(frames[:, :30], _poisoned(stack, LookPolicy()))])
    n_released = released.frames.shape[1]
    assert n_released > 15
    torch.testing.assert_close(released.frames, whole[:, :n_released], atol=1e-9, rtol=0)


def test_left_context_is_a_limit() -> None:
    """Frames older than the left context of all blocks cannot matter; younger ones do."""
    stack, frames, noise = _stack(left_context=9), _frames(80), _frames(80, seed=1)
    older, younger = frames.clone(), frames.clone()
    older[:, : 79 - 3 * 9] = noise[:, : 79 - 3 * 9]
    younger[:, 79 - 9] = noise[:, 79 - 9]
    last = [_whole(stack, x, PAST_ONLY)[0][:, 79] for x in (frames, older, younger)]
    assert torch.equal(last[0], last[1])
    assert not torch.equal(last[0], last[2])


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_padding_and_neighbours_do_not_matter(temperature: float | None) -> None:
    """A stream in a padded batch of poisoned padding gives what it gives alone."""
    stack = _stack()
    a, b = _frames(25, seed=1), _frames(40, seed=2)
    batch = torch.full((2, 40, WIDTH), 1e4, dtype=torch.float64)
    batch[0, :25], batch[1] = a[0], b[0]
    output = stack(batch, torch.tensor([25, 40]), temperature=temperature)
    for row, frames in enumerate((a, b)):
        n_frames = frames.shape[1]
        alone = stack(frames, torch.tensor([n_frames]), temperature=temperature)
        torch.testing.assert_close(output.frames[row, :n_frames], alone.frames[0], atol=1e-9, rtol=0)
        torch.testing.assert_close(output.gates[:, row, :n_frames], alone.gates[:, 0], atol=1e-9, rtol=0)


def test_soft_gates_at_temperature_zero_are_hard_gates() -> None:
    """Frames and gates of the soft pass become those of the hard pass."""
    stack, frames, lengths = _stack(), _frames(50), torch.tensor([50])
    hard = stack(frames, lengths)
    gaps = []
    for temperature in (1.0, 1e-2, 1e-7):
        soft = stack(frames, lengths, temperature=temperature)
        gaps.append(float((soft.frames - hard.frames).abs().max()))
    assert gaps[0] > gaps[1] > gaps[2]
    torch.testing.assert_close(soft.frames, hard.frames, atol=1e-6, rtol=0)
    torch.testing.assert_close(soft.gates, hard.gates, atol=1e-6, rtol=0)


def test_a_state_can_be_used_again() -> None:
    """After restart, what the stream before left in the rings cannot be told."""
    stack, frames = _stack(), _frames(50)
    state = _poisoned(stack, ALWAYS)
    stack.step([LookaheadJob(_frames(77, seed=5), state, ends=True)])
    state.restart(LookPolicy())
    (again,) = stack.step([LookaheadJob(frames, state, ends=True)])
    torch.testing.assert_close(again.frames, _whole(stack, frames, LookPolicy())[0], atol=1e-9, rtol=0)


def test_gradient_of_the_latency_penalty_reaches_the_schedulers() -> None:
    """One step along it lowers the mean delay of hard gates over whole streams."""
    stack = _stack(spread=0.3).requires_grad_(True)
    frames, lengths = _frames(60, batch=2), torch.tensor([60, 45])
    arrival = frame_arrival(lengths, 60)
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.05)
    before = latency_penalty(stack(frames, lengths).gates, arrival, lengths)
    for _ in range(15):
        optimizer.zero_grad()
        latency_penalty(stack(frames, lengths, temperature=1.0).gates, arrival, lengths).backward()
        optimizer.step()
    after = latency_penalty(stack(frames, lengths).gates, arrival, lengths)
    assert after < 0.5 * before


def test_the_future_is_asked_for_only_where_it_is_needed() -> None:
    """A task whose answer comes three frames late at marked frames, at once elsewhere, is learned as such."""
    torch.manual_seed(0)
    stack = Lookahead(width=WIDTH, n_blocks=1, n_head=2, max_look=4, left_context=8)
    read = torch.nn.Linear(WIDTH, 1)
    parameters = [*stack.parameters(), *read.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.full((16,), 32)
    n_steps = 250
    for step in range(n_steps):
        frames, wanted, _ = _marked_task(16, generator)
        temperature = 1.0 * 0.1 ** (step / n_steps)
        output = stack(frames, lengths, temperature=temperature)
        error = (read(output.frames)[..., 0] - wanted)[:, :28].square().mean()
        delay = latency_penalty(output.gates, frame_arrival(lengths, 32), lengths)
        optimizer.zero_grad()
        (error + 0.01 * delay).backward()
        optimizer.step()
    frames, wanted, marked = _marked_task(16, generator)
    with torch.no_grad():
        output = stack(frames, lengths)
        looks = output.gates[0].sum(-1)[:, :28]
        error = (read(output.frames)[..., 0] - wanted)[:, :28].square().mean()
    marked = marked[:, :28]
    assert error < 0.15
    assert looks[marked].mean() > 2.7
    assert looks[~marked].mean() < 0.3


def _marked_task(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames with a sign and perhaps a mark; wanted is the sign, where marked that of three frames later."""
    values = torch.randn(batch, 32, generator=generator).sign()
    marked = torch.rand(batch, 32, generator=generator) < 0.2
    frames = torch.zeros(batch, 32, WIDTH)
    frames[..., 0], frames[..., 1] = values, marked.float()
    wanted = torch.where(marked, values.roll(-3, dims=1), values)
    return frames, wanted, marked


@pytest.mark.parametrize(("n_head", "left_context"), [(3, 20), (2, 8)])
def test_impossible_sizes_are_refused(n_head: int, left_context: int) -> None:
    """The message says which value was expected."""
    with pytest.raises(ValueError, match="must be"):
        Lookahead(width=WIDTH, n_blocks=3, n_head=n_head, max_look=MAX_LOOK, left_context=left_context)
