"""Whisper's encoder made chunk-causal (CarelessWhisper / WhisperRT, arXiv 2508.12301).

Encoder frames are 20 ms. A frame attends to its own chunk and, within the left context, to earlier chunks; it
never sees a later one, so frames are final once computed. :meth:`CausalEncoder.forward` encodes whole signals
under a mask (training); :meth:`CausalEncoder.step` goes on with many streams, each from its own state, and
gives the same frames. Axis letters: B batch, T encoder frames of a stream, N those of all streams of a step,
M mel bins, D width, L layers, R ring slots.
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
from asr.errors import OptionError

FRAME_MS = 20
FRAME_SAMPLES = 320
MEL_PER_FRAME = 2
MEL_CONTEXT = 2  # mel frames of past that a block of new frames needs: the two convolutions' reach
MEL_LOOKAHEAD = 1  # mel frames of future, likewise
MIN_CHUNK_MS, MAX_CHUNK_MS = 40, 1000


@dataclass(frozen=True)
class Chunking:
    """How frames are grouped; all lengths in encoder frames of 20 ms.

    Attributes:
        size: Frames per chunk.
        initial: Extra chunks that the first one is extended by (the paper uses one).
        left_context: Frames before a chunk's start that its frames may attend to.
    """

    size: int
    initial: int = 1
    left_context: int = 500

    @classmethod
    def from_ms(cls, chunk_ms: int, *, initial: int = 1, left_context_s: float = 10.0) -> Chunking:
        """Build from milliseconds.

        Args:
            chunk_ms: 40 to 1000, a multiple of 20.
            initial: Extra chunks in the first one.
            left_context_s: Seconds of visible past, more than 0 and at most 30.

        Returns:
            The chunking.

        Raises:
            OptionError: A value is outside its range.
        """
        if not (MIN_CHUNK_MS <= chunk_ms <= MAX_CHUNK_MS and chunk_ms % FRAME_MS == 0):
            raise OptionError(
                f"chunk_ms must be a multiple of {FRAME_MS} from {MIN_CHUNK_MS} to {MAX_CHUNK_MS}, "
                f"not {chunk_ms}"
            )
        if not 0 < left_context_s <= 30:
            raise OptionError(f"left_context_s must be above 0 and at most 30, not {left_context_s}")
        return cls(chunk_ms // FRAME_MS, initial, round(left_context_s * 1000 / FRAME_MS))

    @property
    def first_size(self) -> int:
        """Frames of the first chunk."""
        return self.size * (1 + self.initial)

    def bounds(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """First frame and one past the last frame of the chunk that holds each position."""
        later = (position - self.first_size).div(self.size, rounding_mode="floor") * self.size
        start = torch.where(position < self.first_size, 0, later + self.first_size)
        end = torch.where(position < self.first_size, self.first_size, start + self.size)
        return start, end

    def next_size(self, position: int) -> int:
        """Frames of the chunk that starts at ``position``, which must be a chunk's start."""
        return self.first_size if position == 0 else self.size


@dataclass
class EncoderState:
    """What one stream carries from chunk to chunk. Empty slots are never read, so they may hold anything."""

    keys: Tensor  # [L, R, D] ring of self-attention keys: absolute frame p lies in slot p % R
    values: Tensor  # [L, R, D] ring of values
    position: int = 0  # absolute frame that comes next

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
    """One stream's next step.

    Attributes:
        mel: ``[1, M, 2 + 2 T + 1]`` scaled mel frames: two of past (zeros before a stream's first), the new
            ones, and one of future.
        state: The stream's state; the step advances it.
        chunking: The stream's chunks; a step that does not end with one is a draft, to be taken back.
    """

    mel: Tensor
    state: EncoderState
    chunking: Chunking


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
            ring_slots: Room for the left context and the frames of one step together. A ring of exactly that
                many is the fastest: in mid-window everything in it is visible.
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
        positions = torch.arange(x.shape[1], device=x.device)
        mask = _visible(positions, positions, chunking)

        def mix(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(query, key, value, n_head=self.n_head, mask=mask)

        return self._transform(x + self.weights.positional_embedding[: x.shape[1]], mix)

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
                attend(q, *memory.extend(layer, k, v), n_head=self.n_head, mask=memory.mask)
                for memory, q, k, v in zip(memories, *rows, strict=True)
            ]
            return torch.cat(mixed, dim=1) if len(mixed) > 1 else mixed[0]

        embedding = self.weights.positional_embedding
        places = [embedding[job.state.position : end] for job, end in zip(jobs, ends, strict=True)]
        x = torch.cat(parts, dim=1) + torch.cat(places)  # [1, N, D]
        frames = self._transform(x, mix).split(lengths, dim=1)
        for job, n_new in zip(jobs, lengths, strict=True):
            job.state.position += n_new
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
    """The keys and values that the new frames of one stream see in a step."""

    def __init__(self, job: EncoderJob, n_new: int) -> None:
        """Find the slots of the new frames and what they may attend to."""
        state, chunking = job.state, job.chunking
        n_slots, start, end = state.keys.shape[1], state.position, state.position + n_new
        room = min(start, chunking.left_context) + n_new
        assert start == 0 or room <= n_slots, f"a ring of {n_slots} slots cannot hold {room} frames"
        self._state = state
        self._n_used = min(end, n_slots)
        # A window's first frames see only one another, and the ring need not hold them all.
        self._n_kept = min(n_new, n_slots)
        self._first_slot = (end - self._n_kept) % n_slots
        is_one_chunk = n_new == chunking.next_size(start)
        sees_all = is_one_chunk and (start == 0 or max(0, end - n_slots) >= start - chunking.left_context)
        self.mask = None if sees_all else self._mask(start, end, chunking)

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

    def _mask(self, start: int, end: int, chunking: Chunking) -> Tensor:
        device = self._state.keys.device
        positions = torch.arange(start, end, device=device)
        if start == 0:
            return _visible(positions, positions, chunking)
        n_slots = self._state.keys.shape[1]
        slots = torch.arange(self._n_used, device=device)
        newest = slots + (end - 1 - slots).div(n_slots, rounding_mode="floor") * n_slots  # frame in each slot
        return _visible(positions, newest, chunking)


def _visible(queries: Tensor, keys: Tensor, chunking: Chunking) -> Tensor:
    """Which frames of ``keys`` ``[K]`` each of ``queries`` ``[T]`` may see: ``[T, K]``, True = attend."""
    start, end = (bound[:, None] for bound in chunking.bounds(queries))
    return (keys >= start - chunking.left_context) & (keys < end)
