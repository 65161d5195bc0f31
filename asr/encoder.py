"""Whisper's encoder made chunk-causal (CarelessWhisper / WhisperRT, arXiv 2508.12301).

Encoder frames are 20 ms. A frame attends to its own chunk and, within the left context, to earlier chunks; it
never sees a later one, so frames are final once computed. :meth:`CausalEncoder.forward` is
:meth:`CausalEncoder.step` from a fresh state. Axis letters: B batch, T encoder frames, M mel bins, D width,
L layers, C frames per chunk, R ring slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.model import AudioEncoder

from asr.attention import attend
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
    """What streams carry from chunk to chunk; row b belongs to one stream."""

    keys: Tensor  # [L, B, R, D] ring of self-attention keys
    values: Tensor  # [L, B, R, D] ring of values
    ring_positions: Tensor  # [B, R] int64, absolute frame in each slot, -1 = empty
    position: Tensor  # [B] int64, absolute frame that comes next

    @staticmethod
    def stack(states: list[EncoderState]) -> EncoderState:
        """One state with the rows of all ``states``."""
        return EncoderState(
            torch.cat([s.keys for s in states], dim=1),
            torch.cat([s.values for s in states], dim=1),
            torch.cat([s.ring_positions for s in states]),
            torch.cat([s.position for s in states]),
        )

    def unstack(self) -> list[EncoderState]:
        """The rows as states of their own."""
        return [
            replace(
                self,
                keys=self.keys[:, b : b + 1],
                values=self.values[:, b : b + 1],
                ring_positions=self.ring_positions[b : b + 1],
                position=self.position[b : b + 1],
            )
            for b in range(len(self.position))
        ]


class CausalEncoder:
    """Stateless functions over the weights of a Whisper audio encoder.

    Attributes:
        block_size: Mel frames per encoder frame.
        latency: Mel frames of future that an encoder frame needs beyond its chunk.
    """

    block_size = MEL_PER_FRAME
    latency = MEL_LOOKAHEAD

    def __init__(self, weights: AudioEncoder) -> None:
        """Wrap an encoder, with or without LoRA layers in it; ``weights`` is not modified."""
        self.weights = weights
        self.n_head: int = weights.blocks[0].attn.n_head
        self.n_ctx, self.width = weights.positional_embedding.shape

    def init_state(self, batch: int, *, ring_slots: int) -> EncoderState:
        """A fresh state for ``batch`` streams whose left context is ``ring_slots`` frames."""
        like = self.weights.positional_embedding
        shape = (len(self.weights.blocks), batch, ring_slots, self.width)
        return EncoderState(
            like.new_zeros(shape),
            like.new_zeros(shape),
            torch.full((batch, ring_slots), -1, dtype=torch.int64, device=like.device),
            torch.zeros(batch, dtype=torch.int64, device=like.device),
        )

    def forward(self, mel: Tensor, chunking: Chunking) -> Tensor:
        """Encode whole signals from position 0.

        Args:
            mel: ``[B, M, 2 T + 1]`` scaled mel frames; the last one only serves as future.
            chunking: Chunk sizes and left context.

        Returns:
            ``[B, T, D]``.
        """
        window = F.pad(mel, (MEL_CONTEXT, 0))
        return self.step(window, self.init_state(mel.shape[0], ring_slots=0), chunking)[0]

    def step(self, window: Tensor, state: EncoderState, chunking: Chunking) -> tuple[Tensor, EncoderState]:
        """Encode the next T frames of B streams; T must end at a chunk's end in every stream.

        Args:
            window: ``[B, M, 2 + 2 T + 1]``: two mel frames of past (zeros before a stream's first),
                the new ones, and one frame of future.
            state: The streams' state; its rings are written in place.
            chunking: Chunk sizes and left context.

        Returns:
            ``[B, T, D]`` and the next state.
        """
        x = self._convolve(window, first=state.position == 0)
        n_new = x.shape[1]
        positions = state.position[:, None] + torch.arange(n_new, device=x.device)  # [B, T]
        assert int(positions.max()) < self.n_ctx, "the stream was not re-anchored in time"
        x = x + self.weights.positional_embedding[positions]
        key_positions = torch.cat([state.ring_positions, positions], dim=1)[:, None]  # [B, 1, R + T]
        start, end = (bound[..., None] for bound in chunking.bounds(positions))  # [B, T, 1]
        mask = (key_positions >= 0) & (key_positions >= start - chunking.left_context) & (key_positions < end)
        new_keys, new_values = [], []
        for layer, block in enumerate(self.weights.blocks):
            y = block.attn_ln(x)
            new_keys.append(block.attn.key(y))
            new_values.append(block.attn.value(y))
            keys = torch.cat([state.keys[layer].to(y.dtype), new_keys[-1]], dim=1)
            values = torch.cat([state.values[layer].to(y.dtype), new_values[-1]], dim=1)
            x = x + block.attn.out(attend(block.attn.query(y), keys, values, n_head=self.n_head, mask=mask))
            x = x + block.mlp(block.mlp_ln(x))
        return self.weights.ln_post(x), _advance(state, new_keys, new_values, positions)

    def _convolve(self, window: Tensor, *, first: Tensor) -> Tensor:
        conv1, conv2 = self.weights.conv1, self.weights.conv2
        x = F.gelu(F.conv1d(window, conv1.weight.to(window.dtype), conv1.bias.to(window.dtype)))
        # Whisper pads conv2's input with zeros: before a stream there is nothing, not conv1's bias.
        edge = torch.where(first[:, None], 0.0, x[..., 0])
        x = torch.cat([edge[..., None], x[..., 1:]], dim=-1)
        x = F.gelu(F.conv1d(x, conv2.weight.to(x.dtype), conv2.bias.to(x.dtype), stride=2))
        return x.transpose(1, 2)


def _advance(
    state: EncoderState, new_keys: list[Tensor], new_values: list[Tensor], positions: Tensor
) -> EncoderState:
    """Write the newest frames into the rings, in place."""
    n_slots = state.keys.shape[2]
    if n_slots:
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        newest = positions[:, -n_slots:]
        slots = newest % n_slots
        state.ring_positions[rows, slots] = newest
        for layer, (keys, values) in enumerate(zip(new_keys, new_values, strict=True)):
            state.keys[layer][rows, slots] = keys[:, -n_slots:].to(state.keys.dtype)
            state.values[layer][rows, slots] = values[:, -n_slots:].to(state.values.dtype)
    return replace(state, position=positions[:, -1] + 1)
