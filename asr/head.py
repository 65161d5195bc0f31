"""The transducer head: adaptive blocks and a transducer on a causal encoder's frames.

A head's frame is ``STACK`` encoder frames. Axis letters: B streams, F encoder frames, E their width, T head
frames, D head width, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asr.chunking import FRAME_MS
from asr.encoder import FRAME_SAMPLES
from asr.frontier import ADAPTIVE, LookaheadMark, LookaheadState, LookPolicy
from asr.lookahead import Lookahead, LookaheadJob, LookaheadOutput, Released
from asr.transducer import Transducer
from asr.waiting import WaitScheduler

STACK = 2
HEAD_FRAME_MS = STACK * FRAME_MS
HEAD_FRAME_SAMPLES = STACK * FRAME_SAMPLES


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of a head.

    Attributes:
        encoder_width: E.
        n_tokens: V.
        width: D.
        n_blocks: Adaptive blocks.
        n_head: Attention heads per block.
        max_look: Head frames that one block looks ahead at most.
        left_context: Head frames of past that a frame sees.
        embedding_width: Of the predictor.
        joint_width: Of the joiner.
        max_future: Head frames of future that the wait scheduler tells apart; 0 is a head without one.
    """

    encoder_width: int
    n_tokens: int = 1024
    width: int = 256
    n_blocks: int = 3
    n_head: int = 4
    max_look: int = 6
    left_context: int = 125
    embedding_width: int = 256
    joint_width: int = 320
    max_future: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class HeadMark:
    """A place in a stream to which a head's state can go back."""

    left_over: Tensor
    lookahead: LookaheadMark


@dataclass
class HeadState:
    """What one stream carries through a head."""

    left_over: Tensor  # [1, F', E] encoder frames that do not fill a head frame yet
    lookahead: LookaheadState

    @property
    def n_bytes(self) -> int:
        """Memory of the rings."""
        return sum(ring.nbytes for block in self.lookahead.blocks for ring in block.tensors)

    @property
    def n_heard(self) -> int:
        """Head frames heard."""
        return self.lookahead.blocks[0].n_heard

    def mark(self) -> HeadMark:
        """Remember this place."""
        return HeadMark(self.left_over, self.lookahead.mark())

    def go_back(self, mark: HeadMark) -> None:
        """Forget what came since ``mark``, at most ``MAX_STEP_FRAMES`` head frames."""
        self.left_over = mark.left_over
        self.lookahead.go_back(mark.lookahead)

    def restart(self, policy: LookPolicy) -> None:
        """Begin another stream in the same memory."""
        self.left_over = self.left_over[:, :0]
        self.lookahead.restart(policy)


@dataclass(frozen=True)
class HeadJob:
    """One stream's next step.

    Attributes:
        frames: ``[1, F, E]`` its next encoder frames, F may be 0.
        state: The stream's state; the step advances it.
        ends: The stream ends with these frames: what still waits is released.
    """

    frames: Tensor
    state: HeadState
    ends: bool = False


class TransducerHead(nn.Module):
    """Encoder frames in, head frames and a transducer over them out.

    Attributes:
        config: Its sizes.
        block_size: Encoder frames per head frame.
        latency: Encoder frames of future that a head frame needs at most.
        waiting: Says which provisional frames had better wait, if the head has learned it.
    """

    block_size = STACK

    def __init__(self, config: HeadConfig, *, dropout: float = 0.0) -> None:
        """Make fresh weights.

        Args:
            config: Sizes.
            dropout: Share of each branch's outputs that training drops.

        Raises:
            ValueError: The sizes do not fit together.
        """
        super().__init__()
        self.config = config
        self.stack = nn.Linear(STACK * config.encoder_width, config.width)
        self.lookahead = Lookahead(
            width=config.width,
            n_blocks=config.n_blocks,
            n_head=config.n_head,
            max_look=config.max_look,
            left_context=config.left_context,
            dropout=dropout,
        )
        self.ln_post = nn.LayerNorm(config.width)
        self.transducer = Transducer(
            config.n_tokens,
            frame_width=config.width,
            embedding_width=config.embedding_width,
            joint_width=config.joint_width,
        )
        self.waiting = (
            WaitScheduler(config.width, max_future=config.max_future) if config.max_future else None
        )
        self.latency = STACK * self.lookahead.latency

    def gather(self, frames: Tensor) -> Tensor:
        """Head frames ``[B, F // 2, D]`` of encoder frames ``[B, F, E]``, before the blocks."""
        n_frames = frames.shape[1] // STACK
        stacked = frames[:, : n_frames * STACK].reshape(len(frames), n_frames, STACK * frames.shape[-1])
        output: Tensor = self.stack(stacked).to(
            frames.dtype
        )  # keeps the residual stream exact under autocast
        return output

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
            frames: ``[B, F, E]`` encoder frames.
            lengths: ``[B]`` head frames of each stream, at most F // 2.
            temperature: Of soft gates; None is hard gates.
            policy: The dial, or a fixed look.

        Returns:
            Head frames ``[B, F // 2, D]`` for the transducer, and gates.
        """
        output: LookaheadOutput = self.lookahead(
            self.gather(frames), lengths, temperature=temperature, policy=policy
        )
        return LookaheadOutput(self.ln_post(output.frames), output.gates)

    def init_state(self, policy: LookPolicy = ADAPTIVE) -> HeadState:
        """A fresh state of one stream."""
        left_over = self.stack.weight.new_empty(1, 0, self.config.encoder_width)
        return HeadState(left_over, self.lookahead.init_state(policy))

    def step(self, jobs: Sequence[HeadJob]) -> list[Released]:
        """Go on with many streams, wherever each of them is.

        Args:
            jobs: At least one, of different streams that have not ended.

        Returns:
            The head frames of each job's stream that can be computed now, in order; each comes once.
        """
        waiting = [torch.cat([job.state.left_over, job.frames], dim=1) for job in jobs]
        sizes = [frames.shape[1] // STACK for frames in waiting]
        for job, frames, size in zip(jobs, waiting, sizes, strict=True):
            job.state.left_over = frames[:, size * STACK :]
        whole = [frames[:, : size * STACK] for frames, size in zip(waiting, sizes, strict=True)]
        gathered = self.gather(torch.cat(whole, dim=1)).split(sizes, dim=1)
        released = self.lookahead.step(
            [
                LookaheadJob(frames, job.state.lookahead, job.ends)
                for frames, job in zip(gathered, jobs, strict=True)
            ]
        )
        return [Released(self.ln_post(each.frames), each.reach) for each in released]
