"""Whisper's text decoder over encoder frames that keep arriving.

The weights are those of :class:`whisper.model.TextDecoder`; only the data flow is ours. Cross-attention
keys and values of a frame are projected once, when the frame arrives, and never again. Axis letters:
B batch or beams, U text tokens, T encoder frames, L layers, D width, H heads, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from whisper.model import TextDecoder

from asr.attention import attend, attention_weights

FEW_ROWS = 8  # positions up to which the vocabulary is multiplied by columns


@dataclass
class CrossCache:
    """Projected encoder frames of one segment."""

    keys: Tensor  # [L, B, T_max, D] cross-attention keys, valid up to n_frames
    values: Tensor  # [L, B, T_max, D] cross-attention values
    n_frames: int = 0


@dataclass
class SelfCache:
    """Self-attention keys and values of the tokens decoded so far."""

    keys: Tensor  # [L, B, U_max, D], valid up to n_tokens
    values: Tensor  # [L, B, U_max, D]
    n_tokens: int = 0

    def truncate(self, n_tokens: int) -> None:
        """Forget every token from ``n_tokens`` on."""
        assert 0 <= n_tokens <= self.n_tokens
        self.n_tokens = n_tokens

    def reorder(self, rows: Tensor) -> None:
        """Make row b a copy of row ``rows[b]`` (beam search)."""
        used = slice(0, self.n_tokens)
        self.keys[:, :, used] = self.keys[:, rows, used]
        self.values[:, :, used] = self.values[:, rows, used]


@dataclass(frozen=True)
class DecoderOutput:
    """What one pass over some tokens yields."""

    hidden: Tensor  # [B, U, D] after the last layer norm
    attention: Tensor | None  # [B, A, U, T] cross-attention of the A alignment heads, float32


class Decoder:
    """Stateless functions over the weights of a Whisper text decoder."""

    def __init__(self, weights: TextDecoder, alignment_heads: Tensor) -> None:
        """Wrap a decoder.

        Args:
            weights: Whisper's decoder module; not modified.
            alignment_heads: Dense or sparse boolean ``[L, H]``, True where a head follows the audio.
        """
        self.weights = weights
        heads = alignment_heads.to_dense() if alignment_heads.is_sparse else alignment_heads
        self._heads = [layer.nonzero().flatten().tolist() for layer in heads.cpu()]
        self.n_head: int = weights.blocks[0].attn.n_head
        self.n_ctx, self.width = weights.positional_embedding.shape

    @property
    def n_layer(self) -> int:
        """Number of transformer blocks."""
        return len(self.weights.blocks)

    def new_cross_cache(self, *, max_frames: int) -> CrossCache:
        """Empty room for ``max_frames`` encoder frames of one stream."""
        shape = (self.n_layer, 1, max_frames, self.width)
        like = self.weights.positional_embedding
        return CrossCache(like.new_zeros(shape), like.new_zeros(shape))

    def new_self_cache(self, *, n_rows: int = 1) -> SelfCache:
        """Empty room for a full text context of ``n_rows`` hypotheses."""
        shape = (self.n_layer, n_rows, self.n_ctx, self.width)
        like = self.weights.positional_embedding
        return SelfCache(like.new_zeros(shape), like.new_zeros(shape))

    def project_frames(self, frames: Tensor) -> CrossCache:
        """Project whole sequences of frames ``[B, T, D]`` (training, alignment)."""
        keys = [block.cross_attn.key(frames) for block in self.weights.blocks]
        values = [block.cross_attn.value(frames) for block in self.weights.blocks]
        return CrossCache(torch.stack(keys), torch.stack(values), frames.shape[1])

    def append_frames(self, frames: Tensor, cache: CrossCache) -> None:
        """Project the new frames ``[B, N, D]`` and append them to ``cache``."""
        end = cache.n_frames + frames.shape[1]
        assert end <= cache.keys.shape[2], "the segment was not re-anchored in time"
        new = self.project_frames(frames)
        cache.keys[:, :, cache.n_frames : end] = new.keys
        cache.values[:, :, cache.n_frames : end] = new.values
        cache.n_frames = end

    def forward(
        self,
        tokens: Tensor,
        cross: CrossCache,
        *,
        positions: Tensor,
        self_mask: Tensor,
        cross_mask: Tensor | None = None,
        with_attention: bool = False,
    ) -> DecoderOutput:
        """Decode whole token sequences under explicit masks.

        Args:
            tokens: ``[B, U]`` token ids.
            cross: Frames of the same B sequences.
            positions: ``[B, U]`` text position of each token.
            self_mask: Boolean ``[B, U, U]`` or ``[U, U]``; True = attend.
            cross_mask: Boolean ``[B, U, T]``; True = attend. None: every frame.
            with_attention: Also return the alignment heads' cross-attention.

        Returns:
            Hidden states, and attention if asked for.
        """
        x = self.weights.token_embedding(tokens) + self.weights.positional_embedding[positions]
        attention: list[Tensor] = []
        for layer, block in enumerate(self.weights.blocks):
            y = block.attn_ln(x)
            keys, values = block.attn.key(y), block.attn.value(y)
            x = x + block.attn.out(
                attend(block.attn.query(y), keys, values, n_head=self.n_head, mask=self_mask)
            )
            x = self._cross_and_mlp(x, layer, cross, cross_mask, attention if with_attention else None)
        return self._output(x, attention if with_attention else None)

    def step(
        self, tokens: Tensor, state: SelfCache, cross: CrossCache, *, with_attention: bool = False
    ) -> DecoderOutput:
        """Continue B hypotheses by the same number of tokens each.

        Equals :meth:`forward` over everything decoded so far with a causal mask, as long as
        ``cross`` did not grow in between.

        Args:
            tokens: ``[B, U]`` next token ids.
            state: The hypotheses' cache; grows by U.
            cross: The frames heard so far; one row serves every hypothesis.
            with_attention: Also return the alignment heads' cross-attention.

        Returns:
            Hidden states of the U tokens, and attention if asked for.
        """
        start, n_new = state.n_tokens, tokens.shape[1]
        end = start + n_new
        assert end <= self.n_ctx, "the text context is full: the segment was not re-anchored in time"
        x = self.weights.token_embedding(tokens) + self.weights.positional_embedding[start:end]
        mask = None
        if n_new > 1:
            mask = torch.ones(n_new, end, dtype=torch.bool, device=x.device).tril(start)
        attention: list[Tensor] = []
        for layer, block in enumerate(self.weights.blocks):
            y = block.attn_ln(x)
            state.keys[layer, :, start:end] = block.attn.key(y)
            state.values[layer, :, start:end] = block.attn.value(y)
            keys, values = state.keys[layer, :, :end], state.values[layer, :, :end]
            x = x + block.attn.out(attend(block.attn.query(y), keys, values, n_head=self.n_head, mask=mask))
            x = self._cross_and_mlp(x, layer, cross, None, attention if with_attention else None)
        state.n_tokens = end
        return self._output(x, attention if with_attention else None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states ``[..., D]`` to float32 logits ``[..., V]``."""
        table = self.weights.token_embedding.weight.to(hidden.dtype)
        rows = hidden.flatten(end_dim=-2)
        if len(rows) > FEW_ROWS:
            return torch.nn.functional.linear(hidden, table).float()
        # As columns, a few rows read the table once; as rows they make the CPU's library copy it first, which
        # costs five times as much. A single column takes a slower path than two.
        columns = (rows if len(rows) > 1 else rows.expand(2, -1)).T
        logits = (table @ columns).T[: len(rows)]
        return logits.reshape(*hidden.shape[:-1], -1).float()

    def _cross_and_mlp(
        self, x: Tensor, layer: int, cross: CrossCache, mask: Tensor | None, attention: list[Tensor] | None
    ) -> Tensor:
        block = self.weights.blocks[layer]
        keys = cross.keys[layer, :, : cross.n_frames].expand(x.shape[0], -1, -1)
        values = cross.values[layer, :, : cross.n_frames].expand(x.shape[0], -1, -1)
        query = block.cross_attn.query(block.cross_attn_ln(x))
        x = x + block.cross_attn.out(attend(query, keys, values, n_head=self.n_head, mask=mask))
        if attention is not None and self._heads[layer]:
            weights = attention_weights(query, keys, n_head=self.n_head, mask=mask)
            attention.append(weights[:, self._heads[layer]])
        return x + block.mlp(block.mlp_ln(x))

    def _output(self, x: Tensor, attention: list[Tensor] | None) -> DecoderOutput:
        hidden = self.weights.ln(x)
        return DecoderOutput(hidden, torch.cat(attention, dim=1) if attention else None)
