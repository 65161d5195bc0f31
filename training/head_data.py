"""Batches for a transducer head: features of the frozen causal encoder, and texts with their time windows.

Axis letters: B streams, F encoder frames, E their width, T head frames, U tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from asr.chunking import Chunking
from asr.encoder import (
    FRAME_SAMPLES,
    MEL_CONTEXT,
    MEL_LOOKAHEAD,
    MEL_PER_FRAME,
    CausalEncoder,
    EncoderJob,
    step_bounds,
)
from asr.events import SAMPLE_RATE
from asr.features import LogMel, RunningNorm
from asr.head import HEAD_FRAME_MS, STACK
from asr.transducer_loss import Texts
from training.alignment import autocast
from training.config import DataConfig, HeadLossConfig
from training.dataset import Example, Item
from training.runs import Position

TAIL_S = 0.6  # silence after a stream, in which its last tokens may come out


@dataclass(frozen=True)
class HeadBatch:
    """Features and texts of B streams."""

    frames: Tensor  # [B, F, E] float16 encoder frames, anything in the padding
    lengths: Tensor  # [B] int64 head frames of each stream
    tokens: Tensor  # [B, U] int64, 0 in the padding
    n_tokens: Tensor  # [B] int64
    due_s: Tensor  # [B, U] float32, NaN where unknown
    chunk_frames: Tensor  # [2] int64, encoder frames of the first chunk and of the others

    def to(self, device: torch.device) -> HeadBatch:
        """The same on ``device``."""
        return HeadBatch(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def seconds(self) -> float:
        """Seconds of audio in all streams together."""
        return float(self.lengths.sum()) * HEAD_FRAME_MS / 1000


@dataclass(frozen=True)
class Stepped:
    """Encoder frames of B streams as their steps bring them."""

    ends: tuple[int, ...]  # frames encoded after each step
    final: Tensor  # [B, F, E] float16
    ahead: tuple[Tensor, ...]  # for each step [B, R, E] float16: the provisional frames after the final ones
    lengths: Tensor  # [B] int64 head frames of each stream


class FeatureMaker:
    """Encodes examples with a frozen causal encoder."""

    def __init__(
        self, encoder: CausalEncoder, *, n_mels: int, chunkings: Sequence[Chunking], seed: int
    ) -> None:
        """Wrap an encoder.

        Args:
            encoder: With the adapter merged in.
            n_mels: Its mel bins.
            chunkings: One is drawn for each batch.
            seed: Of the draws.
        """
        self._encoder = encoder
        self._device = encoder.weights.positional_embedding.device
        self._mel = LogMel(n_mels, device=self._device)
        self._chunkings = chunkings
        self._seed = seed

    @torch.no_grad()
    def encode(self, signals: Sequence[np.ndarray], chunking: Chunking) -> tuple[Tensor, Tensor]:
        """Encoder frames of whole signals, each followed by silence.

        Args:
            signals: Float32 audio, ``[S]`` each.
            chunking: The encoder's chunks.

        Returns:
            ``[B, F, E]`` frames and ``[B]`` head frames of each signal with its silence.
        """
        lengths = _head_lengths(signals)
        mel = self._scaled_mel(signals, STACK * int(lengths.max()))
        with autocast(self._device):
            return self._encoder.forward(mel, chunking).float(), lengths

    @torch.no_grad()
    def encode_steps(self, signals: Sequence[np.ndarray], chunking: Chunking) -> Stepped:
        """What each step of a stream makes of whole signals, each followed by silence.

        Args:
            signals: As in :meth:`encode`.
            chunking: The encoder's chunks, with right context.

        Returns:
            Final frames and, after each step, the provisional ones.
        """
        lengths = _head_lengths(signals)
        n_frames, ends = STACK * int(lengths.max()), [chunking.next_end(0)]
        while chunking.n_final(ends[-1]) < n_frames:
            ends.append(chunking.next_end(ends[-1]))
        mel = F.pad(self._scaled_mel(signals, ends[-1]), (MEL_CONTEXT, 0))
        states = [self._encoder.init_state(ring_slots=chunking.ring_slots) for _ in signals]
        final, ahead, start = [], [], 0
        for end in ends:
            span = slice(MEL_PER_FRAME * start, MEL_PER_FRAME * end + MEL_CONTEXT + MEL_LOOKAHEAD)
            n_final = chunking.n_final(end) - start
            rows = zip(mel.split(1), states, strict=True)
            steps = self._encoder.step(
                [EncoderJob(row[..., span], state, chunking.left_context, n_final) for row, state in rows]
            )
            frames = torch.cat(steps).half().cpu()
            final.append(frames[:, :n_final])
            ahead.append(frames[:, n_final:])
            start += n_final
        return Stepped(tuple(ends), torch.cat(final, dim=1)[:, :n_frames], tuple(ahead), lengths)

    def _scaled_mel(self, signals: Sequence[np.ndarray], n_frames: int) -> Tensor:
        """Scaled mel frames ``[B, M, 2 F + 1]`` of signals that silence makes as long as one another."""
        padded = np.zeros((len(signals), (n_frames * MEL_PER_FRAME + 1) * self._mel.block_size), np.float32)
        for row, signal in zip(padded, signals, strict=True):
            row[: len(signal)] = signal
        raw = self._mel.forward(torch.from_numpy(padded).to(self._device))
        return RunningNorm().forward(raw)[0]

    def batch(self, examples: Sequence[Example], position: Position) -> HeadBatch:
        """Features and texts of examples, in chunks drawn for their place in the data."""
        rng = np.random.default_rng([self._seed, position.epoch, position.batch])
        chunking = self._chunkings[int(rng.integers(len(self._chunkings)))]
        known = [example for example in examples if example.tokens is not None]
        assert known, "utterances without text are left out before"
        frames, lengths = self.encode([example.noisy for example in known], chunking)
        n_tokens = [len(example.tokens or ()) for example in known]
        tokens = torch.zeros(len(known), max(n_tokens), dtype=torch.int64)
        due_s = torch.full(tokens.shape, torch.nan)
        for row, example in enumerate(known):
            tokens[row, : n_tokens[row]] = torch.tensor(example.tokens, dtype=torch.int64)
            due_s[row, : n_tokens[row]] = torch.from_numpy(example.due_s)
        chunk_frames = torch.tensor([chunking.first_size, chunking.size])
        return HeadBatch(frames.half().cpu(), lengths, tokens, torch.tensor(n_tokens), due_s, chunk_frames)


def _head_lengths(signals: Sequence[np.ndarray]) -> Tensor:
    """Head frames ``[B]`` of signals with the silence after them."""
    tail = round(TAIL_S * SAMPLE_RATE)
    return torch.tensor([-(-(len(signal) + tail) // (STACK * FRAME_SAMPLES)) for signal in signals])


class FeatureStore:
    """Keeps batches on disk, so that runs which differ in the head only need not encode them again."""

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        """Use a folder.

        Args:
            folder: None keeps nothing.
            fingerprint: Of everything that decides what is in a batch.
        """
        self._folder = None if folder is None else folder / fingerprint
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, position: Position, make: Callable[[], HeadBatch]) -> HeadBatch:
        """The batch at a place in the data, made if it is not kept yet."""
        if self._folder is None:
            return make()
        path = self._folder / f"{position.epoch:04}-{position.batch:05}.safetensors"
        if path.exists():
            return HeadBatch(**load_file(path))
        batch = make()
        temporary = path.with_suffix(f".{os.getpid()}")
        save_file({field.name: getattr(batch, field.name).contiguous() for field in fields(batch)}, temporary)
        os.replace(temporary, path)
        return batch


def fingerprint(data: DataConfig, **others: Any) -> str:
    """A short hash of what decides the batches of a run.

    Args:
        data: Its files count by content.
        **others: More of it, as plain values.

    Returns:
        Sixteen hexadecimal digits.
    """
    settings = {**asdict(data), **others}
    for name, value in settings.items():
        if isinstance(value, Path):
            settings[name] = hashlib.sha256(value.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def load_batch(
    maker: FeatureMaker, store: FeatureStore, load: Callable[[Item], Example]
) -> Callable[[Sequence[Item], Position], HeadBatch]:
    """What :func:`training.runs.load_batches` needs to make batches for a head."""

    def batch(items: Sequence[Item], position: Position) -> HeadBatch:
        return store.get(position, lambda: maker.batch([load(item) for item in items], position))

    return batch


def texts(batch: HeadBatch, config: HeadLossConfig) -> Texts:
    """When each token of a batch may come out.

    Args:
        batch: Times NaN take the bounds of their neighbours.
        config: How early and how late.

    Returns:
        Tokens with their windows, in head frames.
    """
    due = batch.due_s * 1000 / HEAD_FRAME_MS
    first = (due - config.early_s * 1000 / HEAD_FRAME_MS).floor().nan_to_num(-torch.inf)
    last = (due + config.late_s * 1000 / HEAD_FRAME_MS).floor().nan_to_num(torch.inf)
    limit = (batch.lengths - 1)[:, None].to(due)
    first = first.cummax(dim=1).values if first.shape[1] else first
    last = last.flip(1).cummin(dim=1).values.flip(1) if last.shape[1] else last
    return Texts(
        batch.tokens,
        batch.n_tokens,
        first.clamp(min=0).minimum(limit).long(),
        last.clamp(min=0).minimum(limit).long(),
    )


def chunk_arrival(batch: HeadBatch) -> Tensor:
    """When each head frame is there, in head frames, if the encoder gives whole chunks: ``[B, T]``."""
    first, size = batch.chunk_frames.tolist()
    chunking = Chunking(size, initial=first // size - 1)
    last_needed = torch.arange(int(batch.lengths.max())) * STACK + STACK - 1
    ends = step_bounds(chunking, last_needed)[1] / STACK - 1
    return ends.to(batch.lengths.device).expand(len(batch.lengths), -1)
