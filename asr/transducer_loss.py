"""The transducer's loss over the part of the lattice that word times allow.

Cell (t, u) of a stream's lattice is: frame t, u tokens said. Two probabilities belong to it, of blank and of
token u + 1; all others only matter through the softmax. So the softmax is computed in the allowed cells, and
torchaudio sums over the paths through a lattice of two symbols. Axis letters: B streams, T frames, U tokens,
N allowed cells, J joint width, V tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchaudio.functional import rnnt_loss

from asr.reach import inside
from asr.transducer import Transducer

CELLS_PER_PIECE = 16_384  # softmaxes that are in memory at once
FORBIDDEN = -1e9  # log-probability outside the allowed cells; infinities would make the gradient NaN
_LABEL, _BLANK = 0, 1  # symbols of the small lattice


@dataclass(frozen=True)
class Texts:
    """What was said in B streams, and when it may come out."""

    tokens: Tensor  # [B, U] int64, anything in the padding
    lengths: Tensor  # [B] int64
    first_frames: Tensor  # [B, U] int64, token u may not come before this frame; never decreasing
    last_frames: Tensor  # [B, U] int64, nor after this one, which is at least the first; never decreasing


def anywhere(tokens: Tensor, lengths: Tensor, *, n_frames: int) -> Texts:
    """Texts whose tokens may come at any frame.

    Args:
        tokens: ``[B, U]`` int64.
        lengths: ``[B]``.
        n_frames: T.

    Returns:
        The texts, with the whole lattice allowed.
    """
    return Texts(tokens, lengths, torch.zeros_like(tokens), torch.full_like(tokens, n_frames - 1))


def transducer_loss(
    transducer: Transducer, frames: Tensor, n_frames: Tensor, texts: Texts, *, fast_emit: float = 0.0
) -> Tensor:
    """Negative log-likelihood of each stream's text over the allowed alignments.

    Restricting alignments to a window around each word's end (Mahadeokar et al., arXiv 2011.03072) keeps
    tokens from drifting late and makes the loss affordable; FastEmit (Yu et al., arXiv 2010.11148) prefers
    early alignments among those that are left.

    Args:
        transducer: Predictor and joiner.
        frames: ``[B, T, D]`` encoder frames.
        n_frames: ``[B]`` frames of each stream, at least 1.
        texts: What was said and when.
        fast_emit: FastEmit's lambda: gradients of tokens' probabilities are scaled by 1 + lambda.

    Returns:
        ``[B]`` float32, whose value does not depend on lambda.
    """
    n_tokens, max_frames = int(texts.lengths.max()), int(n_frames.max())
    texts = Texts(*(x[:, :n_tokens] if x.dim() == 2 else x for x in vars(texts).values()))
    tokens = torch.where(inside(texts.lengths, n_tokens), texts.tokens, 0)
    allowed = allowed_cells(texts, n_frames, max_frames)
    stream, frame, said = allowed.nonzero(as_tuple=True)
    log_probs = _cell_log_probs(
        transducer,
        transducer.transcribe(frames)[stream, frame],
        transducer.predict(tokens)[stream, said],
        F.pad(tokens, (0, 1))[stream, said],
    )
    label = log_probs[:, _LABEL]
    label = label + fast_emit * (label - label.detach())
    lattice = log_probs.new_full((*allowed.shape, 2), FORBIDDEN)
    lattice[stream, frame, said] = torch.stack([label, log_probs[:, _BLANK]], dim=-1)
    if n_tokens == 0:
        return -torch.where(allowed[..., 0], lattice[:, :, 0, _BLANK], 0.0).sum(dim=1)
    return rnnt_loss(
        lattice,
        torch.full(tokens.shape, _LABEL, dtype=torch.int32, device=tokens.device),
        n_frames.int(),
        texts.lengths.int(),
        blank=_BLANK,
        reduction="none",
        fused_log_softmax=False,
    )


def allowed_cells(texts: Texts, n_frames: Tensor, max_frames: int) -> Tensor:
    """The lattice's cells on some allowed path, or nearly so.

    Args:
        texts: What was said and when.
        n_frames: ``[B]``.
        max_frames: T.

    Returns:
        Boolean ``[B, T, U + 1]``: the u-th token may have come by frame t, and the next need not have.
    """
    t = torch.arange(max_frames, device=texts.tokens.device)[:, None]
    is_text = inside(texts.lengths, texts.tokens.shape[1])
    # After the last token nothing is overdue, and padding begins behind the last frame.
    first = torch.where(is_text, texts.first_frames, max_frames)
    last = torch.where(is_text, texts.last_frames, max_frames)
    has_come = t >= F.pad(first, (1, 0))[:, None]
    not_overdue = t <= F.pad(last, (0, 1), value=max_frames)[:, None]
    return has_come & not_overdue & inside(n_frames, max_frames)[..., None]


def _cell_log_probs(transducer: Transducer, frames: Tensor, said: Tensor, following: Tensor) -> Tensor:
    """Log-probabilities of the following token and of blank in N cells.

    Args:
        transducer: The joiner.
        frames: ``[N, J]``.
        said: ``[N, J]``.
        following: ``[N]`` token ids.

    Returns:
        ``[N, 2]`` float32.
    """

    def piece(frames: Tensor, said: Tensor, following: Tensor) -> Tensor:
        log_probs = transducer.join(frames, said).log_softmax(dim=-1)
        return torch.cat([log_probs.gather(1, following[:, None]), log_probs[:, -1:]], dim=1)

    if len(following) <= CELLS_PER_PIECE:
        return piece(frames, said, following)
    columns = (x.split(CELLS_PER_PIECE) for x in (frames, said, following))
    return torch.cat([checkpoint(piece, *rows, use_reentrant=False) for rows in zip(*columns, strict=True)])
