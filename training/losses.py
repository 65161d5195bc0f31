"""The loss of a batch of streams: every point in time from one encoder pass and one decoder pass.

A chunk-causal frame never depends on later frames, so frames computed once serve every point. The decoder
sees each text token twice. The *main* copy sees the frames up to the end of the chunk in which the next token
is due, and must predict that token: this is how streaming decodes, token by token, with frames that keep
coming. A *probe* copy sees only the frames of an earlier chunk in which nothing new was heard, and must
predict end-of-text; it attends to the main copies before it and nobody attends to it. Axis letters:
B streams, U main tokens, P probes, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from whisper.model import Whisper

from asr.chunking import FRAME_MS, Chunking
from asr.decoder import Decoder
from asr.encoder import FRAME_SAMPLES, MEL_PER_FRAME, CausalEncoder, step_bounds
from asr.features import LogMel, RunningNorm
from training.alignment import autocast, encode_padded
from training.config import LossConfig
from training.dataset import Example

PROBE_SLACK_S = 0.12  # end-of-text is asked for at least this long before the next token is due
IGNORE = -100

T = TypeVar("T")


@dataclass(frozen=True)
class Targets:
    """Decoder inputs, masks and targets of a batch; M = U + P positions."""

    tokens: Tensor  # [B, M] int64 input tokens, probes last
    positions: Tensor  # [B, M] int64 text positions
    labels: Tensor  # [B, M] int64 target of each position, IGNORE where there is none
    self_mask: Tensor  # [B, M, M] bool, True = attend
    visible: Tensor  # [B, M] int64, frames below this are seen
    weights: Tensor  # [B, M] float32, how much each position counts
    n_main: int  # U

    def to(self, device: torch.device) -> Targets:
        """The same on ``device``."""
        return Targets(
            self.tokens.to(device),
            self.positions.to(device),
            self.labels.to(device),
            self.self_mask.to(device),
            self.visible.to(device),
            self.weights.to(device),
            self.n_main,
        )


@dataclass(frozen=True)
class LossParts:
    """The loss and what it is made of."""

    total: Tensor  # [] to be minimised
    token: Tensor  # [] cross-entropy of main copies and probes
    teacher: Tensor  # [] KL divergence from the full-context model's next-token distribution
    feature: Tensor  # [] squared error to the full-context features over their variance
    probabilities: tuple[np.ndarray, ...] = ()  # [n_tokens] of each stream's text; NaN where not asked for


def build_targets(
    examples: Sequence[Example],
    *,
    chunking: Chunking,
    n_frames: int,
    eot: int,
    full_share: float,
    rng: np.random.Generator,
    weights: Sequence[np.ndarray] | None = None,
) -> Targets:
    """Lay out the decoder's side of a batch.

    Args:
        examples: The streams, all padded with silence to ``n_frames``.
        chunking: The encoder's chunks.
        n_frames: T.
        eot: Id of end-of-text.
        full_share: Share of streams whose tokens see every frame.
        rng: For probes and the choice of those streams.
        weights: How much each text token and the end of each stream count, ``[n_tokens + 1]``; None is fully.

    Returns:
        Inputs, masks and targets.
    """
    rows = [
        _row_targets(example, chunking, n_frames, eot, rng.random() < full_share, rng) for example in examples
    ]
    n_main = max(len(row.tokens) for row in rows)
    n_probes = max(len(row.probe_at) for row in rows)
    shape = (len(rows), n_main + n_probes)
    tokens, labels = np.full(shape, eot), np.full(shape, IGNORE)
    positions, visible = np.zeros(shape, np.int64), np.full(shape, n_frames)
    positions[:, :n_main] = np.arange(n_main)
    mask = np.zeros((*shape, shape[1]), dtype=bool)
    mask[:, np.arange(shape[1]), np.arange(shape[1])] = True
    mask[:, :n_main, :n_main] |= np.tri(n_main, dtype=bool)
    for b, row in enumerate(rows):
        main, probes = slice(0, len(row.tokens)), slice(n_main, n_main + len(row.probe_at))
        tokens[b, main], labels[b, main], visible[b, main] = row.tokens, row.labels, row.visible
        tokens[b, probes], labels[b, probes] = row.tokens[row.probe_at], eot
        positions[b, probes], visible[b, probes] = row.probe_at, row.probe_visible
        mask[b, probes, :n_main] = np.arange(n_main) < row.probe_at[:, None]
    as_tensor = torch.from_numpy
    return Targets(
        as_tensor(tokens),
        as_tensor(positions),
        as_tensor(labels),
        as_tensor(mask),
        as_tensor(visible),
        as_tensor(_counts(examples, rows, shape, n_main, weights)),
        n_main,
    )


def _counts(
    examples: Sequence[Example],
    rows: Sequence[_Row],
    shape: tuple[int, int],
    n_main: int,
    weights: Sequence[np.ndarray] | None,
) -> np.ndarray:
    """How much each position counts, ``[B, M]``; a probe as the token that it must wait for."""
    counts = np.ones(shape, np.float32)
    for b, (example, row) in enumerate(zip(examples, rows, strict=True)):
        if weights is not None and example.tokens is not None:
            first = len(example.prefix) - 1  # the position that predicts the first text token
            counts[b, first : len(row.tokens)] = weights[b]
            counts[b, n_main : n_main + len(row.probe_at)] = weights[b][row.probe_at - first]
    return counts


@dataclass(frozen=True)
class _Row:
    tokens: np.ndarray  # [U]
    labels: np.ndarray  # [U]
    visible: np.ndarray  # [U]
    probe_at: np.ndarray  # [P] main position that the probe copies
    probe_visible: np.ndarray  # [P]


def _row_targets(
    example: Example, chunking: Chunking, n_frames: int, eot: int, full: bool, rng: np.random.Generator
) -> _Row:
    n_prefix = len(example.prefix)
    text = np.array(example.tokens or (), dtype=np.int64)
    tokens = np.concatenate([np.array(example.prefix, dtype=np.int64), text])
    labels = np.full(len(tokens), IGNORE, dtype=np.int64)
    if example.tokens is None:
        return _Row(
            tokens, labels, np.full(len(tokens), n_frames), np.zeros(0, np.int64), np.zeros(0, np.int64)
        )
    known = ~np.isnan(example.due_s)
    labels[n_prefix - 1 : -1] = np.where(known, text, IGNORE)
    labels[-1] = eot
    ready = _ready_frames(example.due_s, chunking, n_frames)
    first = min(chunking.first_size, n_frames)
    visible = np.concatenate([np.full(n_prefix - 1, first), ready, [n_frames]])
    if full:
        return _Row(
            tokens, labels, np.full(len(tokens), n_frames), np.zeros(0, np.int64), np.zeros(0, np.int64)
        )
    heard_before = np.concatenate([[first], ready])  # frames seen when the previous token came out
    silent_until = np.concatenate([(example.due_s - PROBE_SLACK_S) * 1000 / FRAME_MS, [n_frames]])
    at, seen = [], []
    for j, (low, high) in enumerate(zip(heard_before, silent_until, strict=True)):
        last = np.nan if np.isnan(high) else min(high, n_frames)
        if not last >= low:  # also False for NaN
            continue
        n_choices = int((last - low) // chunking.size) + 1
        choice = n_choices - 1 if rng.random() < 0.5 else int(rng.integers(n_choices))
        at.append(n_prefix - 1 + j)
        seen.append(min(low + choice * chunking.size, n_frames))
    return _Row(tokens, labels, visible, np.array(at, np.int64), np.array(seen, np.int64))


def _ready_frames(due_s: np.ndarray, chunking: Chunking, n_frames: int) -> np.ndarray:
    """End of the chunk that completes what each token needs; unknown tokens come with the one before."""
    filled = np.nan_to_num(due_s, nan=0.0)
    needed = np.maximum(np.ceil(np.maximum.accumulate(filled) * 1000 / FRAME_MS).astype(np.int64), 1)
    ends = step_bounds(chunking, torch.from_numpy(needed - 1))[1].numpy()
    return np.minimum(ends, n_frames)


class StreamLoss:
    """Computes the loss of a batch with a student that is being trained and a frozen teacher."""

    def __init__(
        self,
        student: Whisper,
        teacher: Whisper,
        *,
        eot: int,
        config: LossConfig,
        precision: str = "bf16",
        gradient_checkpointing: bool = False,
    ) -> None:
        """Wrap both models.

        Args:
            student: Whisper with LoRA layers.
            teacher: The original Whisper, in eval mode.
            eot: Id of end-of-text.
            config: Weights of the parts.
            precision: Mixed precision: ``bf16``, ``fp16`` or ``no``.
            gradient_checkpointing: Compute encoder and decoder once more in the backward pass instead of
                keeping what is inside them.
        """
        self._precision = precision
        self._checkpointing = gradient_checkpointing
        self._encoder = CausalEncoder(student.encoder)
        self._decoder = Decoder(student.decoder, student.alignment_heads)
        self._teacher = teacher
        self._teacher_decoder = Decoder(teacher.decoder, teacher.alignment_heads)
        self._mel = LogMel(teacher.dims.n_mels, device=teacher.device)
        self._eot = eot
        self._config = config

    def __call__(
        self,
        examples: Sequence[Example],
        *,
        chunking: Chunking,
        rng: np.random.Generator,
        weights: Sequence[np.ndarray] | None = None,
    ) -> LossParts:
        """The loss of a batch.

        Args:
            examples: The streams.
            chunking: Chunks of this batch.
            rng: For probes.
            weights: As in :func:`build_targets`.

        Returns:
            The loss and its parts.
        """
        device = self._teacher.device
        n_frames = -(-max(len(e.noisy) for e in examples) // FRAME_SAMPLES)
        targets = build_targets(
            examples,
            chunking=chunking,
            n_frames=n_frames,
            eot=self._eot,
            full_share=self._config.full_share,
            rng=rng,
            weights=weights,
        )
        n_taught = max(1, round(self._config.teacher_share * len(examples)))
        taught = sorted(rng.choice(len(examples), n_taught, replace=False).tolist())
        with autocast(device, self._precision):
            frames = self._run(self._encoder.forward, self._features(examples, n_frames), chunking)
            clean = [examples[b].clean for b in taught]
            reference = encode_padded(self._teacher, clean, precision=self._precision)
            feature = _feature_loss(frames[taught], reference[:, :n_frames], [examples[b] for b in taught])
            token, teacher, chosen = self._token_losses(frames, reference, taught, targets.to(device))
        total = token + self._config.teacher_weight * teacher + self._config.feature_weight * feature
        probabilities = _of_text_tokens(examples, chosen)
        return LossParts(total, token.detach(), teacher.detach(), feature.detach(), probabilities)

    def _run(self, part: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a part of the student, keeping its insides for the backward pass or not."""
        if not self._checkpointing:
            return part(*args, **kwargs)
        result: T = checkpoint(part, *args, use_reentrant=False, **kwargs)
        return result

    def _features(self, examples: Sequence[Example], n_frames: int) -> Tensor:
        """Scaled mel ``[B, M, 2 T + 1]`` of the streams, silence at their ends."""
        n_samples = (n_frames * MEL_PER_FRAME + 1) * self._mel.block_size
        signal = np.zeros((len(examples), n_samples), np.float32)
        for row, example in zip(signal, examples, strict=True):
            row[: len(example.noisy)] = example.noisy
        with torch.no_grad():
            raw = self._mel.forward(torch.from_numpy(signal).to(self._teacher.device))
            return RunningNorm().forward(raw)[0]

    def _token_losses(
        self, frames: Tensor, reference: Tensor, taught: list[int], targets: Targets
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy of all streams, KL of the taught ones' main copies, and ``[B, U]`` probabilities."""

        def decode(frames: Tensor) -> Tensor:
            seen = torch.arange(frames.shape[1], device=frames.device) < targets.visible[..., None]
            return self._decoder.forward(
                targets.tokens,
                self._decoder.project_frames(frames),
                positions=targets.positions,
                self_mask=targets.self_mask,
                cross_mask=seen,
            ).hidden

        hidden = self._run(decode, frames)
        scored = targets.labels != IGNORE
        chosen = frames.new_full(scored.shape, torch.nan, dtype=torch.float32)
        if not scored.any():
            return frames.new_zeros(()), frames.new_zeros(()), chosen[:, : targets.n_main]
        log_p = self._decoder.logits(hidden[scored]).log_softmax(-1)
        nll = F.nll_loss(log_p, targets.labels[scored], reduction="none")
        token = (nll * targets.weights[scored]).mean()
        chosen[scored] = (-nll.detach()).exp()
        chosen = chosen[:, : targets.n_main]
        compared = torch.zeros_like(scored)
        compared[taught, : targets.n_main] = scored[taught, : targets.n_main]
        if self._config.teacher_weight == 0 or not compared.any():
            return token, frames.new_zeros(()), chosen
        expected = self._teacher_log_p(reference, taught, targets, compared)
        teacher = F.kl_div(log_p[compared[scored]], expected, log_target=True, reduction="batchmean")
        return token, teacher, chosen

    @torch.no_grad()
    def _teacher_log_p(
        self, reference: Tensor, taught: list[int], targets: Targets, compared: Tensor
    ) -> Tensor:
        """``[N, V]``: the original model, with the whole recording, at the N compared positions."""
        n_main, decoder = targets.n_main, self._teacher_decoder
        output = decoder.forward(
            targets.tokens[taught, :n_main],
            decoder.project_frames(reference),
            positions=targets.positions[taught, :n_main],
            self_mask=targets.self_mask[taught, :n_main, :n_main],
        )
        return decoder.logits(output.hidden[compared[taught, :n_main]]).log_softmax(-1)


def _of_text_tokens(examples: Sequence[Example], chosen: Tensor) -> tuple[np.ndarray, ...]:
    """The probabilities ``[B, U]`` of main copies' labels, cut to each stream's text tokens."""
    rows = chosen.cpu().numpy()
    firsts = [len(example.prefix) - 1 for example in examples]
    lengths = [len(example.tokens or ()) for example in examples]
    return tuple(row[a : a + n] for row, a, n in zip(rows, firsts, lengths, strict=True))


def _feature_loss(frames: Tensor, reference: Tensor, examples: Sequence[Example]) -> Tensor:
    """Squared error over the variance of each feature, on frames before the padding."""
    lengths = torch.tensor([len(e.clean) // FRAME_SAMPLES for e in examples], device=frames.device)
    inside = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
    wanted = reference[inside]
    return ((frames[inside].float() - wanted).square().mean(0) / wanted.var(0)).mean()
