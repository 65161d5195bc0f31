"""The loss of a transducer head on one batch, and what its frames would look at if gates were hard.

Axis letters: B streams, F encoder frames, E their width, T head frames, U tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr.errors import OptionError
from asr.frontier import LookPolicy
from asr.head import HEAD_FRAME_MS, TransducerHead
from asr.reach import delays, expected_reach, frame_arrival, inside, latency_penalty, plain_penalty
from asr.transducer_loss import Texts, transducer_loss
from training.alignment import autocast
from training.config import HeadLossConfig
from training.head_data import HeadBatch, chunk_arrival, texts

ARRIVALS = ("frame", "chunk")
MASK_FRAMES = 15  # longest span of encoder frames that is hidden at once


@dataclass(frozen=True)
class HeadLossParts:
    """The loss and what it is made of."""

    total: Tensor  # [] to be minimised
    transducer: Tensor  # [] nats per token
    ctc: Tensor  # [] nats per token
    delay_s: Tensor  # [] expected mean delay of soft gates, or that of hard ones
    look: Tensor  # [] mean gate


class HeadLoss(nn.Module):
    """Computes the loss of a head; holds the auxiliary CTC layer, which is not part of the head."""

    def __init__(self, head: TransducerHead, config: HeadLossConfig) -> None:
        """Make the auxiliary layer.

        Args:
            head: Decides sizes; not kept.
            config: Weights of the parts.

        Raises:
            OptionError: ``arrival`` is neither of its values.
        """
        super().__init__()
        if config.arrival not in ARRIVALS:
            raise OptionError(f"arrival must be one of {', '.join(ARRIVALS)}, not {config.arrival!r}")
        self.config = config
        self.ctc = nn.Linear(head.config.width, head.config.n_tokens + 1)

    def forward(
        self,
        head: TransducerHead,
        batch: HeadBatch,
        *,
        temperature: float | None,
        policy: LookPolicy,
        masked_share: float,
        penalty_share: float = 1.0,
    ) -> HeadLossParts:
        """The loss of a batch.

        Args:
            head: The head.
            batch: Features and texts on the head's device.
            temperature: Of soft gates; None is hard ones.
            policy: The dial, or a fixed look.
            masked_share: Share of encoder frames that are hidden.
            penalty_share: Of the regularisers' weights.

        Returns:
            The loss and its parts.
        """
        device = batch.frames.device
        with autocast(device):
            frames = hide_spans(batch.frames.float(), masked_share)
            output = head(frames, batch.lengths, temperature=temperature, policy=policy)
            said = texts(batch, self.config)
            transducer = transducer_loss(
                head.transducer, output.frames, batch.lengths, said, fast_emit=self.config.fast_emit
            )
            ctc = self._ctc(output.frames, batch.lengths, said)
        n_tokens = batch.n_tokens.sum().clamp(min=1)
        transducer, ctc = transducer.sum() / n_tokens, ctc.sum() / n_tokens
        arrival = self._arrival(batch)
        delay_s = latency_penalty(output.gates, arrival, batch.lengths) * HEAD_FRAME_MS / 1000
        look = plain_penalty(output.gates, batch.lengths)
        penalty = self.config.latency_weight * delay_s + self.config.plain_weight * look
        total = transducer + self.config.ctc_weight * ctc + penalty_share * penalty
        return HeadLossParts(total, transducer.detach(), ctc.detach(), delay_s.detach(), look.detach())

    def _arrival(self, batch: HeadBatch) -> Tensor:
        """When delays begin to count, ``[B, T]``."""
        if self.config.arrival == "chunk":
            return chunk_arrival(batch)
        return frame_arrival(batch.lengths, int(batch.lengths.max()))

    def _ctc(self, frames: Tensor, lengths: Tensor, said: Texts) -> Tensor:
        """Negative log-likelihood ``[B]`` of the texts under CTC."""
        log_probs = self.ctc(frames).float().log_softmax(dim=-1).transpose(0, 1)
        return F.ctc_loss(
            log_probs,
            said.tokens,
            lengths,
            said.lengths,
            blank=self.ctc.out_features - 1,
            reduction="none",
            zero_infinity=True,
        )


def hide_spans(frames: Tensor, share: float) -> Tensor:
    """Zero about a share of frames ``[B, F, E]`` in spans (after SpecAugment, arXiv 1904.08779)."""
    n_spans = round(2 * share * frames.shape[1] / MASK_FRAMES)
    if n_spans == 0:
        return frames
    starts = torch.randint(frames.shape[1], (len(frames), n_spans, 1), device=frames.device)
    ends = starts + torch.randint(1, MASK_FRAMES + 1, starts.shape, device=frames.device)
    at = torch.arange(frames.shape[1], device=frames.device)
    is_hidden = ((at >= starts) & (at < ends)).any(dim=1)
    return frames.masked_fill(is_hidden[..., None], 0.0)


@torch.no_grad()
def hard_delays(head: TransducerHead, batch: HeadBatch, policy: LookPolicy) -> tuple[Tensor, Tensor]:
    """How long frames would wait in streaming.

    Args:
        head: The head, in eval mode.
        batch: Features on the head's device.
        policy: The dial, or a fixed look.

    Returns:
        ``[N]`` head frames that each frame of all streams waits, frame by frame; ``[n_blocks]`` mean looks.
    """
    gates = head(batch.frames.float(), batch.lengths, policy=policy).gates
    arrival = frame_arrival(batch.lengths, gates.shape[2])
    waits = delays(expected_reach(gates, arrival, batch.lengths), arrival)
    is_inside = inside(batch.lengths, gates.shape[2])
    return waits[is_inside], gates.sum(dim=-1)[:, is_inside].mean(dim=1)
