"""A stream's frontier in a stack of adaptive blocks: what has been heard, what still waits, what is done.

A block computes a frame as soon as everything that the frame chose to look at is there, in order, once.
Rings are allocated when a stream begins and addressed by absolute frame, so a stream may go on for ever.
Axis letters: B streams, T frames, D width, K the farthest that one block looks, R ring slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WaitPolicy:
    """What decides when a frame is read that the encoder would still improve (:mod:`asr.waiting`).

    Attributes:
        bias: The dial: added to the wait scheduler's logits, so more waits longer.
        future: Head frames of future that a frame always waits for, whatever the scheduler says; for
            references.
    """

    bias: float = 0.0
    future: int | None = None


@dataclass(frozen=True)
class LookPolicy:
    """What decides how far frames look.

    Attributes:
        bias: The dial: added to every scheduler's logits, so more looks further.
        fixed: Frames that each block always looks ahead, whatever its scheduler says; for references, and
            nothing where frames wait in the encoder.
        wait: When frames are read that are provisional; None is when they are final.
    """

    bias: float = 0.0
    fixed: tuple[int, ...] | None = None
    wait: WaitPolicy | None = None


ADAPTIVE = LookPolicy()  # as the schedulers learned it


@dataclass(frozen=True)
class Projection:
    """What a block makes of its input frames before they attend to one another."""

    inputs: Tensor  # [B, T, D] the frames themselves
    query: Tensor  # [B, T, D] rotated to the frames' positions
    key: Tensor  # [B, T, D] likewise
    value: Tensor  # [B, T, D]
    logits: Tensor  # [B, T, K] the scheduler's s_k, without the dial

    def split(self, lengths: list[int]) -> list[Projection]:
        """Frames of several streams that lie one after the other, as one projection each."""
        columns = (x.split(lengths, dim=1) for x in vars(self).values())
        return [Projection(*rows) for rows in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Ready:
    """Frames of one stream that a block can compute now, and the past and future that they see."""

    inputs: Tensor  # [1, T, D]
    query: Tensor  # [1, T, D]
    key: Tensor  # [1, R', D], the slots written so far
    value: Tensor  # [1, R', D]
    mask: Tensor  # [T, R'] bool, True = attend
    offset: Tensor  # [T, R'] int64, frames by which what a slot holds lies after each of the T
    reach: tuple[int, ...]  # T newest frames of the whole stack's input that these depend on


@dataclass(frozen=True)
class BlockMark:
    """A place in a block's memory to which it can go back."""

    n_heard: int
    n_done: int
    looks: tuple[int, ...]
    newest: tuple[int, ...]
    latest: int


class BlockMemory:
    """One block's view of one stream. Slots that were not written are never read, so they may hold anything.

    Attributes:
        n_heard: Input frames heard.
        n_done: Of them, those whose output has been computed.
    """

    def __init__(self, n_slots: int, *, left_context: int, like: Tensor) -> None:
        """Allocate rings.

        Args:
            n_slots: R: room for the left context and all the frames that may wait or come in one step.
            left_context: Frames of past that a frame sees.
            like: ``[D]`` of the weights' type and device.
        """
        shape = (n_slots, like.shape[-1])
        self._inputs, self._queries = like.new_empty(shape), like.new_empty(shape)
        self._keys, self._values = like.new_empty(shape), like.new_empty(shape)
        self._n_slots = n_slots
        self._left_context = left_context
        self.clear()

    def clear(self) -> None:
        """Begin another stream in the same rings."""
        self.n_heard = self.n_done = 0
        self._looks: deque[int] = deque()  # of the frames that wait
        self._newest: deque[int] = deque()  # of the frames that wait: what they and all before depend on
        self._latest = -1

    def mark(self) -> BlockMark:
        """Remember this place."""
        return BlockMark(self.n_heard, self.n_done, tuple(self._looks), tuple(self._newest), self._latest)

    def go_back(self, mark: BlockMark) -> None:
        """Forget what came since ``mark``, at most one step: newer slots do not touch what is still seen."""
        self.n_heard, self.n_done, self._latest = mark.n_heard, mark.n_done, mark.latest
        self._looks, self._newest = deque(mark.looks), deque(mark.newest)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The rings ``[R, D]``: inputs, queries, keys, values."""
        return self._inputs, self._queries, self._keys, self._values

    def hear(self, new: Projection, looks: Sequence[int], reach: Sequence[int]) -> None:
        """Remember the stream's next input frames.

        Args:
            new: T frames, as ``[1, T, ...]``.
            looks: How far each of them chose to look.
            reach: Newest frame of the stack's input that each depends on.
        """
        n_kept = min(self.n_done, self._left_context) + self.n_heard - self.n_done + len(looks)
        assert n_kept <= self._n_slots, f"a ring of {self._n_slots} slots cannot hold {n_kept} frames"
        end = self.n_heard + len(looks)
        slots = torch.arange(self.n_heard, end, device=new.key.device) % self._n_slots
        for ring, rows in zip(self.tensors, (new.inputs, new.query, new.key, new.value), strict=True):
            ring[slots] = rows[0].to(ring.dtype)
        self.n_heard = end
        self._looks.extend(looks)
        for frame in reach:
            self._latest = max(self._latest, frame)
            self._newest.append(self._latest)

    def take_ready(self, *, has_ended: bool) -> Ready | None:
        """The waiting frames that can be computed now; they count as done.

        Args:
            has_ended: Nothing more will come, so nobody waits any longer.
        """
        n_ready = 0
        ends = []  # one past the last frame that each ready frame sees
        for look in self._looks:
            end = self.n_done + n_ready + look + 1
            if end > self.n_heard and not has_ended:
                break
            ends.append(min(end, self.n_heard))
            n_ready += 1
        if n_ready == 0:
            return None
        reach = tuple(self._newest[end - 1 - self.n_done] for end in ends)
        ready = self._read(n_ready, ends, reach)
        self._forget(n_ready)
        return ready

    def _read(self, n_ready: int, ends: list[int], reach: tuple[int, ...]) -> Ready:
        device = self._keys.device
        n_used = min(self.n_heard, self._n_slots)
        queries = torch.arange(self.n_done, self.n_done + n_ready, device=device)
        slots = torch.arange(n_used, device=device)
        turns = (self.n_heard - 1 - slots).div(self._n_slots, rounding_mode="floor")
        frames = slots + turns * self._n_slots  # newest frame in each slot
        offset = frames - queries[:, None]
        mask = (offset >= -self._left_context) & (frames < torch.tensor(ends, device=device)[:, None])
        rows = queries % self._n_slots
        return Ready(
            self._inputs[None, rows],
            self._queries[None, rows],
            self._keys[None, :n_used],
            self._values[None, :n_used],
            mask,
            offset,
            reach,
        )

    def _forget(self, n_ready: int) -> None:
        for _ in range(n_ready):
            self._looks.popleft()
            self._newest.popleft()
        self.n_done += n_ready


@dataclass(frozen=True)
class LookaheadMark:
    """A place in a stream to which its state can go back."""

    blocks: tuple[BlockMark, ...]
    has_ended: bool


@dataclass
class LookaheadState:
    """What one stream carries through a stack of adaptive blocks."""

    blocks: tuple[BlockMemory, ...]
    policy: LookPolicy
    has_ended: bool = False

    def mark(self) -> LookaheadMark:
        """Remember this place."""
        return LookaheadMark(tuple(block.mark() for block in self.blocks), self.has_ended)

    def go_back(self, mark: LookaheadMark) -> None:
        """Forget what came since ``mark``, at most one step."""
        self.has_ended = mark.has_ended
        for block, block_mark in zip(self.blocks, mark.blocks, strict=True):
            block.go_back(block_mark)

    def restart(self, policy: LookPolicy) -> None:
        """Begin another stream in the same memory."""
        self.policy = policy
        self.has_ended = False
        for block in self.blocks:
            block.clear()
