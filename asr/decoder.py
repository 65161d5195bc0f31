"""Whisper's text decoder over encoder frames that keep arriving.

The weights are those of :class:`whisper.model.TextDecoder`; only the data flow is ours.
:meth:`Decoder.forward` decodes whole sequences under masks (training), :meth:`Decoder.step` goes on with many
streams at once, whose cross-attention needs no keys and values of frames. Axis letters: B batch or beams, U
text tokens, N those of all streams of a step, T encoder frames, L layers, D width, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from whisper.model import MultiHeadAttention, TextDecoder

from asr.attention import attend, attention_weights
from asr.blocks import CrossBlock, Function, decoder_blocks

FEW_ROWS = 8  # positions up to which the vocabulary is multiplied by columns
TEXT_STEP = 32  # tokens by which a text cache grows


@dataclass
class FrameCache:
    """The encoder frames of one window, as :meth:`Decoder.step` attends to them."""

    frames: Tensor  # [1, T_max, D] valid up to n_frames; B rows where every row has audio of its own
    n_frames: int = 0

    @property
    def n_bytes(self) -> int:
        """Memory of its tensor."""
        return self.frames.nbytes


@dataclass(frozen=True)
class ProjectedFrames:
    """Whole sequences of frames, as :meth:`Decoder.forward` attends to them."""

    keys: Tensor  # [L, B, T, D] cross-attention keys
    values: Tensor  # [L, B, T, D] cross-attention values


@dataclass
class SelfCache:
    """Self-attention keys and values of the tokens decoded so far. It grows as the text does."""

    keys: Tensor  # [L, B, U_room, D], valid up to n_tokens
    values: Tensor  # [L, B, U_room, D]
    n_tokens: int = 0

    @property
    def n_bytes(self) -> int:
        """Memory of its tensors."""
        return self.keys.nbytes + self.values.nbytes

    def reserve(self, n_tokens: int) -> None:
        """Make room for ``n_tokens`` in all."""
        n_missing = n_tokens - self.keys.shape[2]
        if n_missing > 0:
            n_more = -(-n_missing // TEXT_STEP) * TEXT_STEP
            self.keys, self.values = (_longer(x, n_more, self.n_tokens) for x in (self.keys, self.values))

    def reset(self) -> None:
        """Forget every token and give back the room beyond the first step's."""
        self.n_tokens = 0
        if self.keys.shape[2] > TEXT_STEP:
            self.keys, self.values = (_longer(x[:, :, :TEXT_STEP], 0, 0) for x in (self.keys, self.values))

    def truncate(self, n_tokens: int) -> None:
        """Forget every token from ``n_tokens`` on."""
        assert 0 <= n_tokens <= self.n_tokens
        self.n_tokens = n_tokens

    def reorder(self, rows: Tensor) -> None:
        """Make row b a copy of row ``rows[b]`` (beam search)."""
        used = slice(0, self.n_tokens)
        self.keys[:, :, used] = self.keys[:, rows, used]
        self.values[:, :, used] = self.values[:, rows, used]


def _longer(cache: Tensor, n_more: int, n_used: int) -> Tensor:
    """``[L, B, U, D]`` with more room, and what is used of it copied."""
    n_layer, n_rows, n_tokens, width = cache.shape
    longer = cache.new_empty(n_layer, n_rows, n_tokens + n_more, width)
    longer[:, :, :n_used] = cache[:, :, :n_used]
    return longer


@dataclass(frozen=True)
class DecoderOutput:
    """What one pass over some tokens yields."""

    hidden: Tensor  # [B, U, D] after the last layer norm
    attention: Tensor | None  # [B, A, U, T] cross-attention of the A alignment heads, float32


@dataclass(frozen=True)
class DecoderJob:
    """One stream's next step: B hypotheses go on by the same number of tokens each.

    Attributes:
        tokens: ``[B, U]`` next token ids.
        text: The hypotheses' cache; the step lets it grow by U.
        cross: The frames heard so far: one row for every hypothesis, or one for each.
        n_logits: Of how many of the last positions the next token is asked for.
    """

    tokens: Tensor
    text: SelfCache
    cross: FrameCache
    n_logits: int = 1


@dataclass(frozen=True)
class DecoderResult:
    """What a job yields."""

    logits: Tensor  # [B, n_logits, V] float32
    attention: Tensor  # [B, A, U, T] cross-attention of the A alignment heads, float32


class Decoder:
    """Stateless functions over the weights of a Whisper text decoder."""

    def __init__(
        self,
        weights: TextDecoder,
        alignment_heads: Tensor,
        *,
        blocks: Sequence[CrossBlock] | None = None,
        vocabulary: Function | None = None,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        """Wrap a decoder.

        Args:
            weights: Whisper's decoder module; not modified.
            alignment_heads: Dense or sparse boolean ``[L, H]``, True where a head follows the audio.
            blocks: Its blocks in another format; None is the modules themselves.
            vocabulary: Multiplies ``[..., D]`` by the token embeddings, ``[..., V]``, where these are in
                another format too.
            cache_dtype: Type of the caches; None is that of the weights.
        """
        self.weights = weights
        self._blocks = decoder_blocks(weights) if blocks is None else list(blocks)
        self._vocabulary = vocabulary or self._multiply_vocabulary
        heads = alignment_heads.to_dense() if alignment_heads.is_sparse else alignment_heads
        self._heads = [layer.nonzero().flatten().tolist() for layer in heads.cpu()]
        device = weights.positional_embedding.device
        self._head_index = [torch.tensor(layer, dtype=torch.int64, device=device) for layer in self._heads]
        self.n_head: int = weights.blocks[0].attn.n_head
        self.n_ctx, self.width = weights.positional_embedding.shape
        self._dtype = weights.positional_embedding.dtype
        self._cache_dtype = cache_dtype or self._dtype

    @property
    def n_layer(self) -> int:
        """Number of transformer blocks."""
        return len(self.weights.blocks)

    def new_frame_cache(self, *, max_frames: int) -> FrameCache:
        """Empty room for ``max_frames`` encoder frames of one stream."""
        like = self.weights.positional_embedding
        return FrameCache(like.new_empty((1, max_frames, self.width), dtype=self._cache_dtype))

    def new_self_cache(self, *, n_rows: int = 1) -> SelfCache:
        """Empty room for the text of ``n_rows`` hypotheses."""
        shape = (self.n_layer, n_rows, TEXT_STEP, self.width)
        like = self.weights.positional_embedding.to(self._cache_dtype)
        return SelfCache(like.new_empty(shape), like.new_empty(shape))

    def project_frames(self, frames: Tensor) -> ProjectedFrames:
        """Project whole sequences of frames ``[B, T, D]`` for :meth:`forward`."""
        keys = [block.cross_attn.key(frames) for block in self.weights.blocks]
        values = [block.cross_attn.value(frames) for block in self.weights.blocks]
        return ProjectedFrames(torch.stack(keys), torch.stack(values))

    def append_frames(self, parts: Sequence[tuple[Tensor, FrameCache]]) -> list[None]:
        """Remember the new frames of streams.

        Args:
            parts: For each stream ``[1, T, D]`` frames and its cache of one row.

        Returns:
            None for each.
        """
        for frames, cache in parts:
            end = cache.n_frames + frames.shape[1]
            assert end <= cache.frames.shape[1], "a stream was not re-anchored in time"
            cache.frames[:, cache.n_frames : end] = frames
            cache.n_frames = end
        return [None] * len(parts)

    def forward(
        self,
        tokens: Tensor,
        cross: ProjectedFrames,
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

        def mix(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(query, key, value, n_head=self.n_head, mask=self_mask)

        def look(layer: int, query: Tensor) -> Tensor:
            keys, values = cross.keys[layer], cross.values[layer]
            if with_attention and self._heads[layer]:
                weights = attention_weights(query, keys, n_head=self.n_head, mask=cross_mask)
                attention.append(weights[:, self._heads[layer]])
            return attend(query, keys, values, n_head=self.n_head, mask=cross_mask)

        hidden = self._transform(x, mix, look)
        return DecoderOutput(hidden, torch.cat(attention, dim=1) if attention else None)

    def step(self, jobs: Sequence[DecoderJob]) -> list[DecoderResult]:
        """Go on with many streams, wherever each of them is.

        All tokens go through the weights together; only attention is a stream's own affair. Equals
        :meth:`forward` over everything decoded so far with a causal mask, as long as a stream's frames did
        not grow in between.

        Args:
            jobs: At least one, of different streams.

        Returns:
            One result for each job.
        """
        sizes = [job.tokens.numel() for job in jobs]
        texts = [_Text(job, n_ctx=self.n_ctx) for job in jobs]
        heard = [job.cross.frames[:, : job.cross.n_frames].to(self._dtype) for job in jobs]
        attention: list[list[Tensor]] = [[] for _ in jobs]

        def rows(x: Tensor) -> list[Tensor]:
            parts = zip(x.split(sizes), jobs, strict=True)
            return [part.view(*job.tokens.shape, -1) for part, job in parts]  # [B, U, D] each

        def packed(parts: list[Tensor]) -> Tensor:
            return torch.cat([part.flatten(0, 1) for part in parts])

        def mix(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            mixed = []
            for text, q, k, v in zip(texts, rows(query), rows(key), rows(value), strict=True):
                keys, values = text.extend(layer, k, v)
                mixed.append(attend(q, keys, values, n_head=self.n_head, mask=text.mask))
            return packed(mixed)

        def look(layer: int, query: Tensor) -> Tensor:
            return self._look(layer, query, jobs, heard, attention)

        tokens = torch.cat([job.tokens.flatten() for job in jobs])
        positions = torch.cat([text.positions for text in texts])
        x = self.weights.token_embedding(tokens) + self.weights.positional_embedding[positions]  # [N, D]
        hidden = rows(self._transform(x, mix, look))
        logits = self._last_logits(hidden, jobs)
        for job in jobs:  # last, so that a step that failed can be taken again
            job.text.n_tokens += job.tokens.shape[1]
        return [DecoderResult(x, torch.cat(seen, dim=1)) for x, seen in zip(logits, attention, strict=True)]

    def _last_logits(self, hidden: list[Tensor], jobs: Sequence[DecoderJob]) -> list[Tensor]:
        """Logits ``[B, n_logits, V]`` of the positions that each job asks for, by one product."""
        last = [x[:, x.shape[1] - job.n_logits :] for x, job in zip(hidden, jobs, strict=True)]
        logits = self.logits(torch.cat([x.flatten(0, 1) for x in last]))
        parts = logits.split([x.shape[0] * x.shape[1] for x in last])
        return [part.unflatten(0, x.shape[:2]) for part, x in zip(parts, last, strict=True)]

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states ``[..., D]`` to float32 logits ``[..., V]``."""
        return self._vocabulary(hidden)

    def _multiply_vocabulary(self, hidden: Tensor) -> Tensor:
        table = self.weights.token_embedding.weight.to(hidden.dtype)
        rows = hidden.flatten(end_dim=-2)
        if not 0 < len(rows) <= FEW_ROWS:
            return torch.nn.functional.linear(hidden, table).float()
        # As columns, a few rows read the table once; as rows they make the CPU's library copy it first, which
        # costs five times as much. A single column takes a slower path than two, and so do two in one place.
        columns = (rows if len(rows) > 1 else rows.repeat(2, 1)).T
        logits = (table @ columns).T[: len(rows)]
        return logits.reshape(*hidden.shape[:-1], -1).float()

    def _transform(
        self,
        x: Tensor,
        mix: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        look: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        """The transformer blocks.

        Args:
            x: ``[..., D]`` embedded tokens.
            mix: Self-attention with a layer's queries, keys and values.
            look: Cross-attention with a layer's queries.

        Returns:
            ``[..., D]`` after the last layer norm.
        """
        for layer, block in enumerate(self._blocks):
            x = x + block.out(mix(layer, *block.qkv(block.attn_ln(x))))
            x = x + block.cross_out(look(layer, block.cross_query(block.cross_ln(x))))
            x = x + block.mlp(block.mlp_ln(x))
        return self.weights.ln(x)

    def _look(
        self,
        layer: int,
        query: Tensor,
        jobs: Sequence[DecoderJob],
        heard: Sequence[Tensor],
        attention: Sequence[list[Tensor]],
    ) -> Tensor:
        """Cross-attention with the frames themselves.

        A key is a product of weights and a frame, so its product with a query is that of the frame and of
        ``weights.T @ query``; and a weighted sum of values is the value of the weighted sum of frames. So
        nothing is kept of a frame but itself, once for all layers, and nothing is computed when it arrives.

        Args:
            layer: Which.
            query: ``[N, D]`` of all jobs, one after the other.
            jobs: Whose they are.
            heard: Each job's frames ``[1 or B, T, D]``.
            attention: Gets the alignment heads' weights ``[B, A, U, T]`` of each job.

        Returns:
            ``[N, D]``.
        """
        lens, n_head = self._lenses[layer], self.n_head
        by_stream = query.view(len(query), n_head, -1).transpose(0, 1)  # [H, N, D / H]
        values = []
        sizes = [job.tokens.numel() for job in jobs]
        for part, job, frames, seen in zip(
            by_stream.split(sizes, dim=1), jobs, heard, attention, strict=True
        ):
            n_rows, n_new = job.tokens.shape
            n_sets, n_each = len(frames), n_rows * n_new // len(frames)
            # Stream by stream: a product rounds otherwise in company, and 8-bit weights make more of that.
            wide = part.contiguous() @ lens.keys  # [H, n, D]
            split = wide.reshape(n_head, n_sets, n_each, -1).transpose(0, 1)
            rows = split.reshape(n_sets, n_head * n_each, -1)
            weights = (rows @ frames.transpose(1, 2)).float().softmax(dim=-1)
            if self._heads[layer]:
                by_head = weights.view(n_sets, n_head, n_each, -1).index_select(1, self._head_index[layer])
                chosen = by_head.transpose(1, 2).reshape(n_rows, n_new, len(self._heads[layer]), -1)
                seen.append(chosen.transpose(1, 2))
            mixed = weights.to(frames.dtype) @ frames
            by_head = mixed.view(n_sets, n_head, n_each, -1).transpose(0, 1)
            values.append(by_head.reshape(n_head, n_rows * n_new, -1) @ lens.values)  # [H, n, D / H]
        return torch.cat(values, dim=1).transpose(0, 1).flatten(1) + lens.bias

    @cached_property
    def _lenses(self) -> list[_Lens]:
        """How each layer's queries see frames."""
        return [_Lens.of(block.cross_attn, n_head=self.n_head) for block in self.weights.blocks]


@dataclass(frozen=True)
class _Lens:
    """Key and value projection of one layer, to be applied to queries and to sums of frames; d = D / H."""

    keys: Tensor  # [H, d, D] with the scale of attention in them
    values: Tensor  # [H, D, d]
    bias: Tensor  # [D] of the values

    @classmethod
    def of(cls, attn: MultiHeadAttention, *, n_head: int) -> _Lens:
        """Ask the layers themselves, which may have adapters in them."""
        with torch.no_grad():
            unit = torch.eye(attn.key.in_features, device=attn.key.weight.device, dtype=attn.key.weight.dtype)
            keys, bias = attn.key(unit), attn.value(torch.zeros_like(unit[:1]))[0]
            values = attn.value(unit) - bias
        by_head = values.unflatten(1, (n_head, -1)).transpose(0, 1).contiguous()
        scale = (len(unit) // n_head) ** -0.5
        return cls(scale * keys.T.unflatten(0, (n_head, -1)), by_head, bias)


class _Text:
    """The tokens that the new ones of one job see."""

    def __init__(self, job: DecoderJob, *, n_ctx: int) -> None:
        n_rows, n_new = job.tokens.shape
        self._cache, self._start = job.text, job.text.n_tokens
        self._end = self._start + n_new
        assert self._end <= n_ctx, "the text context is full: a stream was not re-anchored in time"
        job.text.reserve(self._end)
        device = job.text.keys.device
        self.positions = torch.arange(self._start, self._end, device=device).repeat(n_rows)
        is_many = n_new > 1  # a single token sees everything
        self.mask = (
            torch.ones(n_new, self._end, dtype=torch.bool, device=device).tril(self._start)
            if is_many
            else None
        )

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values ``[B, U, D]``; return all that there are."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[:, self._start : self._end] = key
        values[:, self._start : self._end] = value
        return keys[:, : self._end].to(key.dtype), values[:, : self._end].to(key.dtype)
