"""The encoder's view of one stream: the features heard, and the window since its last anchor.

Whisper has 1500 positions, a stream has no end. So the encoder works in windows: position 0 lies at an
anchor, and before the positions run out the window restarts at a later anchor, re-encoding the last seconds.
Times are samples of the stream; mel frames are counted from the stream's start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asr.decoder import Decoder
from asr.encoder import MEL_CONTEXT, MEL_PER_FRAME, CausalEncoder, Chunking, EncoderState
from asr.features import PEAK_FLOOR, LogMel, RunningNorm

HISTORY_FRAMES = 1000  # mel frames that can be encoded again


class MelHistory:
    """The newest raw mel frames of a stream, addressed by their absolute index."""

    def __init__(self, n_mels: int, *, device: torch.device | str) -> None:
        """Allocate room for twice the history, so that moving it to the front is rare."""
        self._frames = torch.zeros(1, n_mels, 2 * HISTORY_FRAMES, device=device)
        self._first = 0  # absolute index of the frame in slot 0
        self.n_frames = 0

    def append(self, mel: Tensor) -> None:
        """Add frames ``[1, M, T]``."""
        n_slots = self._frames.shape[-1]
        used = self.n_frames - self._first
        if used + mel.shape[-1] > n_slots:
            kept = self._frames[..., used - HISTORY_FRAMES : used].clone()
            self._frames[..., :HISTORY_FRAMES] = kept
            self._first = self.n_frames - HISTORY_FRAMES
            used = HISTORY_FRAMES
        self._frames[..., used : used + mel.shape[-1]] = mel
        self.n_frames += mel.shape[-1]

    def read(self, start: int, end: int) -> Tensor:
        """Frames ``start`` to ``end``, ``[1, M, end - start]``."""
        assert self._first <= start <= end <= self.n_frames, "these frames are gone or not there yet"
        return self._frames[..., start - self._first : end - self._first]


@dataclass(frozen=True)
class EncoderJob:
    """One stream's next encoder step."""

    mel: Tensor  # [1, M, 2 + 2 T + 1] scaled frames with their context
    state: EncoderState
    chunking: Chunking


class Window:
    """Everything between a stream's samples and its decoder.

    Attributes:
        anchor: Mel frame at position 0.
        position: Encoder frames encoded since the anchor.
        cross: The window's frames as the decoder sees them.
    """

    def __init__(self, encoder: CausalEncoder, decoder: Decoder, log_mel: LogMel, chunking: Chunking) -> None:
        """Start at the stream's first sample."""
        self.chunking = chunking
        self._encoder = encoder
        self._decoder = decoder
        self._log_mel = log_mel
        self._norm = RunningNorm()
        device = encoder.weights.positional_embedding.device
        self._mel_state = log_mel.init_state(torch.zeros(1, 0, device=device))
        self._history = MelHistory(log_mel.n_mels, device=device)
        self.cross = decoder.new_cross_cache(max_frames=encoder.n_ctx)
        self.restart(0, n_frames=chunking.first_size)

    @property
    def n_ctx(self) -> int:
        """Positions that the encoder has."""
        return self._encoder.n_ctx

    @property
    def origin(self) -> int:
        """Sample of position 0."""
        return self.anchor * LogMel.block_size

    @property
    def end(self) -> int:
        """Sample up to which the window has been encoded."""
        return (self.anchor + MEL_PER_FRAME * self.position) * LogMel.block_size

    @property
    def next_end(self) -> int:
        """Sample up to which it will have been after the next step."""
        return (self.anchor + MEL_PER_FRAME * (self.position + self.n_next)) * LogMel.block_size

    @property
    def due(self) -> int:
        """Samples that must have been heard for the next step."""
        return self.next_end + LogMel.latency

    def restart(self, anchor: int, *, n_frames: int) -> None:
        """Begin a new window at mel frame ``anchor`` whose first step has ``n_frames`` encoder frames."""
        self.anchor = anchor
        self.position = 0
        self.n_next = n_frames
        self.cross.n_frames = 0
        self._state = self._encoder.init_state(1, ring_slots=self.chunking.left_context)
        self._peak = torch.full((1,), PEAK_FLOOR, device=self.cross.keys.device)
        # Two frames of past and the one frame of future that the last step has already scaled.
        self._scaled = torch.zeros(1, self._log_mel.n_mels, MEL_CONTEXT, device=self.cross.keys.device)

    def hear(self, samples: Tensor) -> None:
        """Add samples ``[1, S]``."""
        mel, self._mel_state = self._log_mel.step(samples, self._mel_state)
        self._history.append(mel)

    def next_job(self) -> EncoderJob:
        """The next encoder step; :attr:`due` samples must have been heard."""
        start = self.anchor + MEL_PER_FRAME * self.position + (1 if self.position else 0)
        end = self.anchor + MEL_PER_FRAME * (self.position + self.n_next) + 1
        new, self._peak = self._norm.step(self._history.read(start, end), self._peak)
        mel = torch.cat([self._scaled, new], dim=-1)
        self._scaled = mel[..., -MEL_CONTEXT - 1 :]
        return EncoderJob(mel, self._state, self.chunking)

    def accept(self, frames: Tensor, state: EncoderState) -> None:
        """Take the result ``[1, T, D]`` of the job."""
        self._state = state
        self._decoder.append_frames(frames, self.cross)
        self.position += frames.shape[1]
        self.n_next = self.chunking.next_size(self.position)


def run_jobs(encoder: CausalEncoder, jobs: Sequence[EncoderJob]) -> list[tuple[Tensor, EncoderState]]:
    """Encode the next step of many streams, with one call for all of the same shape."""
    groups: dict[tuple[Chunking, int], list[int]] = {}
    for index, job in enumerate(jobs):
        groups.setdefault((job.chunking, job.mel.shape[-1]), []).append(index)
    results: dict[int, tuple[Tensor, EncoderState]] = {}
    for (chunking, _), members in groups.items():
        if len(members) == 1:
            job = jobs[members[0]]
            results[members[0]] = encoder.step(job.mel, job.state, chunking)
            continue
        state = EncoderState.stack([jobs[i].state for i in members])
        frames, state = encoder.step(torch.cat([jobs[i].mel for i in members]), state, chunking)
        for i, row, row_state in zip(members, frames.split(1), state.unstack(), strict=True):
            results[i] = (row, row_state)
    return [results[i] for i in range(len(jobs))]
