"""Transformer blocks that learn when to wait for the future, and how long (ANCAT, arXiv 2305.04159).

In every block a scheduler looks at a frame and decides how many frames after it the frame attends to. In
training the decision is soft and carries a gradient; in streaming it is hard, and a frame is computed as soon
as what it asked for is there. :meth:`Lookahead.forward` computes whole streams under masks;
:meth:`Lookahead.step` goes on with many streams at once, each from its own frontier, and gives the same
frames as the hard forward. Axis letters: B streams, T frames, D width, N blocks, K the farthest that one
block looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asr.attention import attend, distance_bias, gated_attend, rotate
from asr.frontier import ADAPTIVE, BlockMemory, LookaheadState, LookPolicy, Projection, Ready
from asr.reach import fixed_gates, hard_gates, inside, log_soft_gates

SCHEDULER_WIDTH = 64
INITIAL_LOGIT = 1.0  # of every gate before training: a frame looks about two frames ahead
MLP_RATIO = 4
MAX_STEP_FRAMES = 64  # longer pieces are stepped in several


class Scheduler(nn.Module):
    """From a block's input frame to the logits of its gates."""

    def __init__(self, width: int, max_look: int) -> None:
        """Begin almost undecided and the same for every frame."""
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, SCHEDULER_WIDTH)
        self.gates = nn.Linear(SCHEDULER_WIDTH, max_look)
        nn.init.normal_(self.gates.weight, std=0.01)
        nn.init.constant_(self.gates.bias, INITIAL_LOGIT)

    def forward(self, frames: Tensor) -> Tensor:
        """Map ``[B, T, D]`` to s_k, ``[B, T, K]``."""
        with torch.autocast(frames.device.type, enabled=False):  # products of many gates need the digits
            logits: Tensor = self.gates(nn.functional.silu(self.hidden(self.ln(frames))))
        return logits


class AdaptiveBlock(nn.Module):
    """A pre-norm transformer block whose frames see the past and as much future as they choose."""

    def __init__(self, width: int, *, n_head: int, max_look: int, dropout: float) -> None:
        """Make fresh weights.

        Args:
            width: D.
            n_head: Attention heads.
            max_look: K.
            dropout: Share of each branch's outputs that training drops.
        """
        super().__init__()
        self.n_head = n_head
        self.scheduler = Scheduler(width, max_look)
        self.attn_ln = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def project(self, frames: Tensor, positions: Tensor) -> Projection:
        """All that depends on a single frame: queries, keys, values, gates.

        Args:
            frames: ``[B, T, D]``.
            positions: ``[T]`` int64, absolute.

        Returns:
            The projection.
        """
        query, key, value = self.qkv(self.attn_ln(frames)).chunk(3, dim=-1)
        query, key = (rotate(x, positions, n_head=self.n_head) for x in (query, key))
        return Projection(frames, query, key, value, self.scheduler(frames))

    def finish(self, inputs: Tensor, mixed: Tensor) -> Tensor:
        """Everything after attention.

        Args:
            inputs: ``[B, T, D]`` the block's input frames.
            mixed: ``[B, T, D]`` what they attended to.

        Returns:
            ``[B, T, D]`` the block's output.
        """
        x = inputs + self.dropout(self.out(mixed))
        output: Tensor = x + self.dropout(self.mlp(self.mlp_ln(x)))
        return output


@dataclass(frozen=True)
class LookaheadOutput:
    """What whole streams become."""

    frames: Tensor  # [B, T, D]
    gates: Tensor  # [N, B, T, K] p_k of every block: from 0 to 1 if soft, 0 or 1 if hard


@dataclass(frozen=True)
class LookaheadJob:
    """One stream's next step.

    Attributes:
        frames: ``[1, T, D]`` its next input frames, T may be 0.
        state: The stream's state; the step advances it.
        ends: The stream ends with these frames: what still waits is released.
    """

    frames: Tensor
    state: LookaheadState
    ends: bool = False


@dataclass(frozen=True)
class Released:
    """Output frames of one stream that a step computed, and how far they looked."""

    frames: Tensor  # [1, T', D]
    reach: tuple[int, ...]  # T' newest input frames that each depends on


class Lookahead(nn.Module):
    """A stack of adaptive blocks.

    Attributes:
        block_size: Input frames per output frame.
        max_look: K.
        latency: Frames of future that an output frame needs at most, through all blocks.
    """

    block_size = 1

    def __init__(
        self,
        *,
        width: int,
        n_blocks: int,
        n_head: int,
        max_look: int,
        left_context: int,
        dropout: float = 0.0,
    ) -> None:
        """Make fresh weights.

        Args:
            width: D, a multiple of twice the heads.
            n_blocks: N.
            n_head: Attention heads per block.
            max_look: K.
            left_context: Frames of past that a frame sees, at least N K.
            dropout: As in :class:`AdaptiveBlock`.

        Raises:
            ValueError: The heads do not fit the width, or the left context is too short.
        """
        super().__init__()
        if width % (2 * n_head):
            raise ValueError(f"width must be a multiple of {2 * n_head} for {n_head} heads, not {width}")
        if left_context < n_blocks * max_look:
            raise ValueError(
                f"left_context must be at least {n_blocks * max_look} for {n_blocks} blocks that look "
                f"{max_look} frames ahead, not {left_context}"
            )
        self.max_look = max_look
        self.latency = n_blocks * max_look
        self.left_context = left_context
        self.blocks = nn.ModuleList(
            AdaptiveBlock(width, n_head=n_head, max_look=max_look, dropout=dropout) for _ in range(n_blocks)
        )

    def forward(
        self,
        frames: Tensor,
        lengths: Tensor,
        *,
        temperature: float | None = None,
        policy: LookPolicy = ADAPTIVE,
    ) -> LookaheadOutput:
        """Compute whole streams.

        Args:
            frames: ``[B, T, D]``.
            lengths: ``[B]`` frames of each stream; what comes after is padding, which no frame sees.
            temperature: Of soft gates; None is hard gates, through which schedulers get no gradient.
            policy: The dial, or a fixed look.

        Returns:
            Outputs (meaningless in the padding) and gates.
        """
        positions = torch.arange(frames.shape[1], device=frames.device)
        is_inside = inside(lengths, frames.shape[1])
        _, offset = self._offsets(frames.shape[1], device=frames.device)
        bias = distance_bias(offset, n_head=self._block(0).n_head)
        gates = []
        for index in range(len(self.blocks)):
            block = self._block(index)
            new = block.project(frames, positions)
            if temperature is None or policy.fixed is not None:
                gates.append(self._hard_gates(new.logits, policy, index).to(frames.dtype))
                mask = self._visible(gates[-1].bool(), is_inside)
                mixed = attend(new.query, new.key, new.value, n_head=block.n_head, mask=mask, bias=bias)
            else:
                log_gates = log_soft_gates(new.logits + policy.bias, temperature)
                gates.append(log_gates.exp())
                log_gate = self._spread(log_gates, is_inside)
                mixed = gated_attend(
                    new.query, new.key, new.value, n_head=block.n_head, log_gate=log_gate, bias=bias
                )
            frames = block.finish(frames, mixed)
        return LookaheadOutput(frames, torch.stack(gates))

    def init_state(self, policy: LookPolicy = ADAPTIVE) -> LookaheadState:
        """A fresh state of one stream."""
        like = self._block(0).out.bias.detach()
        # A block may get a whole step and all that the blocks before it had held back.
        n_slots = self.left_context + MAX_STEP_FRAMES + self.latency + self.max_look
        return LookaheadState(
            tuple(BlockMemory(n_slots, left_context=self.left_context, like=like) for _ in self.blocks),
            policy,
        )

    @torch.no_grad()
    def step(self, jobs: Sequence[LookaheadJob]) -> list[Released]:
        """Go on with many streams, wherever each of them is.

        All frames go through the weights together; only attention is a stream's own affair.

        Args:
            jobs: At least one, of different streams that have not ended.

        Returns:
            The frames of each job's stream that can be computed now, in order; each comes once.
        """
        n_pieces = max(1, *(-(-job.frames.shape[1] // MAX_STEP_FRAMES) for job in jobs))
        parts: list[list[Released]] = [[] for _ in jobs]
        for piece in range(n_pieces):
            cut = slice(piece * MAX_STEP_FRAMES, (piece + 1) * MAX_STEP_FRAMES)
            is_last = piece + 1 == n_pieces
            pieces = [LookaheadJob(job.frames[:, cut], job.state, job.ends and is_last) for job in jobs]
            for part, released in zip(parts, self._step(pieces), strict=True):
                part.append(released)
        return [
            Released(torch.cat([r.frames for r in part], dim=1), tuple(i for r in part for i in r.reach))
            for part in parts
        ]

    def _step(self, jobs: Sequence[LookaheadJob]) -> list[Released]:
        """One step of at most ``MAX_STEP_FRAMES`` frames per stream."""
        released = []
        for job in jobs:
            assert not job.state.has_ended, "the stream has ended; its state must be restarted"
            job.state.has_ended = job.ends
            start = job.state.blocks[0].n_heard
            released.append(Released(job.frames, tuple(range(start, start + job.frames.shape[1]))))
        states = [job.state for job in jobs]
        for index in range(len(self.blocks)):
            self._hear(index, states, released)
            ready = [state.blocks[index].take_ready(has_ended=state.has_ended) for state in states]
            released = self._compute(index, ready, like=released[0].frames)
        return released

    def _hear(self, index: int, states: Sequence[LookaheadState], new: Sequence[Released]) -> None:
        """Give a block its next input frames of all streams."""
        block = self._block(index)
        lengths = [part.frames.shape[1] for part in new]
        if not any(lengths):
            return
        memories = [state.blocks[index] for state in states]
        positions = torch.cat(
            [
                torch.arange(memory.n_heard, memory.n_heard + length, device=part.frames.device)
                for memory, length, part in zip(memories, lengths, new, strict=True)
            ]
        )
        packed = block.project(torch.cat([part.frames for part in new], dim=1), positions)
        rows = packed.split(lengths)
        looks = torch.cat(
            [
                self._hard_gates(row.logits, state.policy, index).sum(dim=-1)
                for row, state in zip(rows, states, strict=True)
            ],
            dim=1,
        )[0].tolist()  # one wait for the device
        for memory, row, part in zip(memories, rows, new, strict=True):
            memory.hear(row, [looks.pop(0) for _ in part.reach], part.reach)

    def _compute(self, index: int, ready: Sequence[Ready | None], *, like: Tensor) -> list[Released]:
        """Let a block compute what is ready in all streams."""
        block = self._block(index)
        nothing = Released(like[:, :0], ())
        going = [each for each in ready if each]
        if not going:
            return [nothing] * len(ready)
        mixed = [
            attend(
                r.query,
                r.key,
                r.value,
                n_head=block.n_head,
                mask=r.mask,
                bias=distance_bias(r.offset, n_head=block.n_head),
            )
            for r in going
        ]
        frames = block.finish(torch.cat([r.inputs for r in going], dim=1), torch.cat(mixed, dim=1))
        outputs = iter(frames.split([len(r.reach) for r in going], dim=1))
        return [Released(next(outputs), each.reach) if each else nothing for each in ready]

    def _block(self, index: int) -> AdaptiveBlock:
        block = self.blocks[index]
        assert isinstance(block, AdaptiveBlock)
        return block

    def _hard_gates(self, logits: Tensor, policy: LookPolicy, index: int) -> Tensor:
        """Open gates ``[B, T, K]`` of a block under a policy."""
        if policy.fixed is None:
            return hard_gates(logits + policy.bias)
        return fixed_gates(policy.fixed[index], self.max_look, like=logits).bool().expand_as(logits)

    def _spread(self, log_gates: Tensor, is_inside: Tensor) -> Tensor:
        """Lay ``[B, T, K]`` gates out as ``[B, T, T]``: 0 for the visible past, -inf for what nobody sees."""
        batch, n_frames, max_look = log_gates.shape
        past, _ = self._offsets(n_frames, device=log_gates.device)
        # Rows one column longer than they are read back shift each row by one more: gate k of frame i gets
        # to column i + k. Padding and views have cheap gradients, indices have not.
        width = n_frames + max_look
        rows = torch.nn.functional.pad(log_gates, (1, width - max_look), value=-torch.inf)
        skewed = rows.flatten(1)[:, : n_frames * width].view(batch, n_frames, width)[..., :n_frames]
        return torch.where(past, 0.0, skewed.masked_fill(~is_inside[:, None], -torch.inf))

    def _visible(self, gates: Tensor, is_inside: Tensor) -> Tensor:
        """What ``[B, T, T]`` each frame sees under hard gates ``[B, T, K]``; True = attend."""
        past, offset = self._offsets(gates.shape[1], device=gates.device)
        looks = gates.sum(dim=-1)[..., None]
        return past | ((offset > 0) & (offset <= looks) & is_inside[:, None])

    def _offsets(self, n_frames: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which frames are the visible past of which, and how far after each other: both ``[T, T]``."""
        frames = torch.arange(n_frames, device=device)
        offset = frames - frames[:, None]
        return (offset <= 0) & (offset >= -self.left_context), offset
