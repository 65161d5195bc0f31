"""Whisper's encoder made chunk-causal (CarelessWhisper / WhisperRT, arXiv 2508.12301).

A frame attends to its own chunk, to the right context after the chunk, and within the left context to earlier
chunks. Without right context frames are final once computed. With it, the newest ones are provisional: they
stand in until the audio after them has been heard, and the next step computes them again (Emformer's
hard-copied right context, arXiv 2010.10759, but readers see the copies, too). :meth:`CausalEncoder.forward`
encodes whole signals under a mask (training); :meth:`CausalEncoder.step` goes on with many streams, each
from its own state, and gives the same final frames. Axis letters: B batch, T encoder frames of a stream, N
those of all streams of a step, C frames with copies, M mel bins, D width, L layers, R ring slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.model import AudioEncoder

from asr.attention import attend
from asr.blocks import Block, encoder_blocks
from asr.chunking import Chunking

FRAME_SAMPLES = 320
MEL_PER_FRAME = 2
MEL_CONTEXT = 2  # mel frames of past that a block of new frames needs: the two convolutions' reach
MEL_LOOKAHEAD = 1  # mel frames of future, likewise


def step_bounds(chunking: Chunking, position: Tensor) -> tuple[Tensor, Tensor]:
    """Find the step that makes each position final.

    Args:
        chunking: How frames are grouped.
        position: Integers of any shape.

    Returns:
        That step's first frame and one past its last, of the same shape.
    """
    ahead = position + chunking.right_context
    first_size, size = chunking.first_size, chunking.size
    later = (ahead - first_size).div(size, rounding_mode="floor") * size
    is_first = ahead < first_size
    end = torch.where(is_first, first_size, later + first_size + size)
    start = torch.where(is_first, 0, end - size - chunking.right_context)
    return start.clamp(min=0), end


@dataclass
class EncoderState:
    """What one stream carries from chunk to chunk. Empty slots are never read, so they may hold anything."""

    keys: Tensor  # [L, R, D] ring of self-attention keys: absolute frame p lies in slot p % R
    values: Tensor  # [L, R, D] ring of values
    position: int = 0  # absolute frame that comes next: those before it are final

    def narrow(self, ring_slots: int) -> EncoderState:
        """A state in the first slots of the same memory."""
        return EncoderState(self.keys[:, :ring_slots], self.values[:, :ring_slots], self.position)

    def copy(self) -> EncoderState:
        """A state that goes its own way."""
        return EncoderState(self.keys.clone(), self.values.clone(), self.position)

    def assign(self, other: EncoderState) -> None:
        """Take over the values of another state of the same size."""
        self.keys.copy_(other.keys)
        self.values.copy_(other.values)
        self.position = other.position


@dataclass(frozen=True)
class EncoderJob:
    """One stream's next step: frames that see one another and the left context.

    Attributes:
        mel: ``[1, M, 2 + 2 T + 1]`` scaled mel frames: two of past (zeros before a stream's first), the new
            ones, and one of future.
        state: The stream's state; the step advances it.
        left_context: Frames before these that they see.
        n_final: How many of the T frames, from the first on, are final. The others are forgotten after the
            step.
    """

    mel: Tensor
    state: EncoderState
    left_context: int
    n_final: int


class CausalEncoder:
    """Stateless functions over the weights of a Whisper audio encoder.

    Attributes:
        block_size: Mel frames per encoder frame.
        latency: Mel frames of future that an encoder frame needs beyond its chunk.
    """

    block_size = MEL_PER_FRAME
    latency = MEL_LOOKAHEAD

    def __init__(
        self,
        weights: AudioEncoder,
        *,
        blocks: Sequence[Block] | None = None,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        """Wrap an encoder.

        Args:
            weights: Whisper's encoder, with or without LoRA layers in it; not modified.
            blocks: Its blocks in another format; None is the modules themselves.
            cache_dtype: Type of the ring; None is that of the weights.
        """
        self.weights = weights
        self._blocks = encoder_blocks(weights) if blocks is None else list(blocks)
        self.n_head: int = weights.blocks[0].attn.n_head
        self.n_ctx, self.width = weights.positional_embedding.shape
        self._cache_dtype = cache_dtype or weights.positional_embedding.dtype

    def init_state(self, *, ring_slots: int) -> EncoderState:
        """A fresh state.

        Args:
            ring_slots: Room for the left context and the frames of one step together, and no more: in
                mid-window everything in the ring is visible.
        """
        like = self.weights.positional_embedding.to(self._cache_dtype)
        shape = (len(self.weights.blocks), ring_slots, self.width)
        return EncoderState(like.new_empty(shape), like.new_empty(shape))

    def forward(self, mel: Tensor, chunking: Chunking) -> Tensor:
        """Encode whole signals from position 0.

        Args:
            mel: ``[B, M, 2 T + 1]`` scaled mel frames; the last one only serves as future.
            chunking: Chunk sizes and left context.

        Returns:
            ``[B, T, D]``.
        """
        x = self._convolve(F.pad(mel, (MEL_CONTEXT, 0)), is_first=[True] * len(mel))
        n_frames = x.shape[1]
        positions, mask = _with_copies(n_frames, chunking, device=x.device)

        def mix(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(query, key, value, n_head=self.n_head, mask=mask)

        x = x + self.weights.positional_embedding[:n_frames]
        return self._transform(x[:, positions], mix)[:, :n_frames]

    def step(self, jobs: Sequence[EncoderJob]) -> list[Tensor]:
        """Encode the next frames of many streams, wherever each of them is.

        All frames go through the weights together; only attention is a stream's own affair.

        Args:
            jobs: At least one, of different streams.

        Returns:
            ``[1, T, D]`` for each job.
        """
        # Stream by stream: with others a convolution rounds otherwise, and 8-bit weights make more of that.
        parts = [self._convolve(job.mel, is_first=[job.state.position == 0]) for job in jobs]
        lengths = [part.shape[1] for part in parts]
        memories = [_Memory(job, n_new) for job, n_new in zip(jobs, lengths, strict=True)]
        ends = [job.state.position + n_new for job, n_new in zip(jobs, lengths, strict=True)]
        assert max(ends) <= self.n_ctx, "a stream was not re-anchored in time"

        def mix(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            rows = (x.split(lengths, dim=1) for x in (query, key, value))
            mixed = [
                attend(q, *memory.extend(layer, k, v), n_head=self.n_head, mask=None)
                for memory, q, k, v in zip(memories, *rows, strict=True)
            ]
            return torch.cat(mixed, dim=1) if len(mixed) > 1 else mixed[0]

        embedding = self.weights.positional_embedding
        places = [embedding[job.state.position : end] for job, end in zip(jobs, ends, strict=True)]
        x = torch.cat(parts, dim=1) + torch.cat(places)  # [1, N, D]
        frames = self._transform(x, mix).split(lengths, dim=1)
        for job in jobs:
            job.state.position += job.n_final
        return list(frames)

    def _transform(self, x: Tensor, mix: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """The transformer blocks; ``mix`` attends with a layer's queries, keys and values."""
        for layer, block in enumerate(self._blocks):
            x = x + block.out(mix(layer, *block.qkv(block.attn_ln(x))))
            x = x + block.mlp(block.mlp_ln(x))
        return self.weights.ln_post(x)

    def _convolve(self, window: Tensor, *, is_first: Sequence[bool]) -> Tensor:
        conv1, conv2 = self.weights.conv1, self.weights.conv2
        x = F.gelu(F.conv1d(window, conv1.weight.to(window.dtype), conv1.bias.to(window.dtype)))
        # Whisper pads conv2's input with zeros: before a stream there is nothing, not conv1's bias.
        first = torch.tensor(is_first, device=x.device)
        edge = torch.where(first[:, None], 0.0, x[..., 0])
        x = torch.cat([edge[..., None], x[..., 1:]], dim=-1)
        x = F.gelu(F.conv1d(x, conv2.weight.to(x.dtype), conv2.bias.to(x.dtype), stride=2))
        return x.transpose(1, 2)


class _Memory:
    """The keys and values that the new frames of one stream see in a step: all of the ring."""

    def __init__(self, job: EncoderJob, n_new: int) -> None:
        """Find the slots of the new frames."""
        n_slots, start = job.state.keys.shape[1], job.state.position
        end = start + n_new
        fits = start == 0 or n_slots == job.left_context + n_new
        assert fits, f"a ring of {n_slots} slots is not {job.left_context} and a step of {n_new} frames"
        self._state = job.state
        self._n_used = min(end, n_slots)
        # A window's first frames see only one another, and the ring need not hold them all.
        self._n_kept = min(n_new, n_slots)
        self._first_slot = (end - self._n_kept) % n_slots

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values ``[1, T, D]`` into the ring; return all that are seen, ``[1, K, D]``."""
        keys, values = self._state.keys[layer], self._state.values[layer]
        n_straight = min(self._n_kept, len(keys) - self._first_slot)  # before the ring's end
        for ring, new in ((keys, key[0, -self._n_kept :]), (values, value[0, -self._n_kept :])):
            ring[self._first_slot : self._first_slot + n_straight] = new[:n_straight]
            ring[: self._n_kept - n_straight] = new[n_straight:]
        if self._state.position == 0:
            return key.to(keys.dtype).to(key.dtype), value.to(keys.dtype).to(key.dtype)
        return keys[None, : self._n_used].to(key.dtype), values[None, : self._n_used].to(key.dtype)


def _with_copies(n_frames: int, chunking: Chunking, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """The frames of all steps over a signal: each once where it is final, then copies of those ahead.

    Returns:
        The frame at each place, ``[C]``, and what each place sees, ``[C, C]``, True = attend.
    """
    positions = torch.arange(n_frames, device=device)
    start, end = step_bounds(chunking, positions)
    ends = end.unique()
    ahead = [positions[max(0, e - chunking.right_context) : e] for e in ends.tolist()]
    lengths = torch.tensor([len(part) for part in ahead], device=device)
    places = torch.cat([positions, *ahead])
    step_end = torch.cat([end, ends.repeat_interleave(lengths)])
    step_start = start[torch.searchsorted(end, step_end)]
    is_copy = torch.arange(len(places), device=device) >= n_frames
    oldest = step_start[:, None] - chunking.left_context
    is_past = ~is_copy & (places >= oldest) & (places < step_start[:, None])
    return places, is_past | (step_end[:, None] == step_end)
