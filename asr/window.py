"""The encoder's view of one stream: the features heard, and the window since its last anchor.

Whisper has 1500 positions, a stream has no end. So the encoder works in windows: position 0 lies at an
anchor, and before the positions run out the window restarts at a later anchor, re-encoding the last seconds.
Times are samples of the stream; mel frames are counted from the stream's start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asr.chunking import Chunking
from asr.decoder import FrameCache
from asr.encoder import MEL_CONTEXT, MEL_PER_FRAME, EncoderJob, EncoderState
from asr.features import PEAK_FLOOR, LogMel, LogMelState, RunningNorm
from asr.slots import HISTORY_FRAMES, Slot


class MelHistory:
    """The newest raw mel frames of a stream, addressed by their absolute index."""

    def __init__(self, frames: Tensor) -> None:
        """Use ``[1, M, HISTORY_ROOM]``."""
        self._frames = frames
        self._first = 0  # absolute index of the frame in slot 0
        self.n_frames = 0

    def append(self, mel: Tensor) -> None:
        """Add frames ``[1, M, T]``."""
        n_slots = self._frames.shape[-1]
        for part in mel.split(n_slots - HISTORY_FRAMES, dim=-1):
            self._append(part, n_slots)

    def _append(self, mel: Tensor, n_slots: int) -> None:
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
class WindowJob:
    """A window's next step."""

    encoder: EncoderJob
    cross: FrameCache | None  # gets the new frames, where Whisper's decoder reads them


@dataclass(frozen=True)
class WindowMark:
    """A place in a window to which it can go back."""

    position: int
    n_heard: int
    n_next: int
    n_mel: int
    mel_state: LogMelState
    encoder: EncoderState
    peak: Tensor
    scaled: Tensor


class Window:
    """Everything between a stream's samples and its decoder.

    Attributes:
        anchor: Mel frame at position 0.
        position: Encoder frames since the anchor that are final.
        n_heard: Encoder frames since the anchor, with the provisional ones.
        n_next: The same after the next step.
        cross: The window's frames as the decoder sees them, with the provisional ones.
    """

    def __init__(
        self,
        log_mel: LogMel,
        chunking: Chunking,
        slot: Slot,
        *,
        fills_cross: bool = True,
    ) -> None:
        """Start at the stream's first sample.

        Args:
            log_mel: The features.
            chunking: The encoder's chunks.
            slot: Fresh, and from now on the window's alone.
            fills_cross: Whisper's decoder reads the window, from ``cross``.
        """
        self.chunking = chunking
        self.cross = slot.cross
        self._fills_cross = fills_cross
        self._log_mel = log_mel
        self._norm = RunningNorm()
        self._device = slot.mel.device
        self._mel_state = log_mel.init_state(torch.zeros(1, 0, device=self._device))
        self._history = MelHistory(slot.mel)
        self._encoder_state = slot.encoder.narrow(chunking.ring_slots)
        self.restart(0, n_frames=chunking.first_size)

    @property
    def is_full(self) -> bool:
        """Whether the next step would go beyond the positions that a window uses."""
        return self.n_next > self.cross.frames.shape[1]

    @property
    def n_next_final(self) -> int:
        """How many frames the next step makes final, the first of those that it computes."""
        return self.chunking.n_final(self.n_next) - self.position

    @property
    def origin(self) -> int:
        """Sample of position 0."""
        return self._sample(0)

    @property
    def final_end(self) -> int:
        """Sample up to which the window's frames are final."""
        return self._sample(self.position)

    @property
    def end(self) -> int:
        """Sample up to which the window has been encoded."""
        return self._sample(self.n_heard)

    @property
    def next_end(self) -> int:
        """Sample up to which it will have been after the next step."""
        return self._sample(self.n_next)

    @property
    def due(self) -> int:
        """Samples that must have been heard for the next step."""
        return self.next_end + LogMel.latency

    def _sample(self, n_frames: int) -> int:
        return (self.anchor + MEL_PER_FRAME * n_frames) * LogMel.block_size

    def restart(self, anchor: int, *, n_frames: int) -> None:
        """Begin a new window at mel frame ``anchor`` whose first step has ``n_frames`` encoder frames."""
        self.anchor = anchor
        self.position = self.n_heard = 0
        self.n_next = n_frames
        self.cross.n_frames = 0
        self._encoder_state.position = 0
        self._peak = torch.full((1,), PEAK_FLOOR, device=self._device)
        # Two frames of past and the one frame of future that the last step has already scaled.
        self._scaled = torch.zeros(1, self._log_mel.n_mels, MEL_CONTEXT, device=self._device)

    def mark(self) -> WindowMark:
        """Remember this place."""
        return WindowMark(
            self.position,
            self.n_heard,
            self.n_next,
            self._history.n_frames,
            self._mel_state,
            self._encoder_state.copy(),
            self._peak,
            self._scaled,
        )

    def go_back(self, mark: WindowMark) -> None:
        """Forget everything heard and encoded since ``mark``, if the window has not restarted since."""
        self.position, self.n_heard, self.n_next = mark.position, mark.n_heard, mark.n_next
        self.cross.n_frames = mark.position  # the next step computes the provisional ones anew
        self._history.n_frames, self._mel_state = mark.n_mel, mark.mel_state
        self._encoder_state.assign(mark.encoder)
        self._peak, self._scaled = mark.peak, mark.scaled

    def hear(self, samples: Tensor) -> None:
        """Add samples ``[1, S]``."""
        mel, self._mel_state = self._log_mel.step(samples.to(self._device), self._mel_state)
        self._history.append(mel)

    def next_job(self) -> WindowJob:
        """The next step; :attr:`due` samples must have been heard. It replaces the provisional frames."""
        self.cross.n_frames = self.position
        n_final = self.n_next_final
        mel = self._scale(n_final)
        job = EncoderJob(mel, self._encoder_state, self.chunking.left_context, n_final)
        return WindowJob(job, self.cross if self._fills_cross else None)

    def accept(self) -> None:
        """Go on after the step."""
        self.n_heard = self.n_next
        self.position = self.chunking.n_final(self.n_heard)
        self.n_next = self.chunking.next_end(self.n_heard)

    def _scale(self, n_final: int) -> Tensor:
        """Scaled mel frames of the next step with their context; goes on by the first ``n_final`` frames."""
        start = self.anchor + MEL_PER_FRAME * self.position + (1 if self.position else 0)
        middle = self.anchor + MEL_PER_FRAME * (self.position + n_final) + 1
        end = self.anchor + MEL_PER_FRAME * self.n_next + 1
        new, peak = self._norm.step(self._history.read(start, middle), self._peak)
        ahead, _ = self._norm.step(self._history.read(middle, end), peak)
        known = torch.cat([self._scaled, new], dim=-1)
        if n_final:
            self._peak, self._scaled = peak, known[..., -MEL_CONTEXT - 1 :]
        return torch.cat([known, ahead], dim=-1) if ahead.shape[-1] else known
