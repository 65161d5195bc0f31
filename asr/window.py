"""The encoder's view of one stream: the features heard, and the window since its last anchor.

Whisper has 1500 positions, a stream has no end. So the encoder works in windows: position 0 lies at an
anchor, and before the positions run out the window restarts at a later anchor, re-encoding the last seconds.
Times are samples of the stream; mel frames are counted from the stream's start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asr.decoder import FrameCache
from asr.encoder import MEL_CONTEXT, MEL_PER_FRAME, Chunking, EncoderJob, EncoderState
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
    n_next: int
    n_drafted: int
    n_mel: int
    mel_state: LogMelState
    encoder: EncoderState
    peak: Tensor
    scaled: Tensor


class Window:
    """Everything between a stream's samples and its decoder.

    Attributes:
        anchor: Mel frame at position 0.
        position: Encoder frames encoded since the anchor.
        cross: The window's frames as the decoder sees them.
    """

    def __init__(
        self,
        log_mel: LogMel,
        chunking: Chunking,
        slot: Slot,
        *,
        fills_cross: bool = True,
        draft_size: int | None = None,
    ) -> None:
        """Start at the stream's first sample.

        Args:
            log_mel: The features.
            chunking: The encoder's chunks.
            slot: Fresh, and from now on the window's alone.
            fills_cross: Whisper's decoder reads the window, from ``cross``.
            draft_size: Encoder frames after which the beginning of a chunk is encoded as a draft; None is
                never.
        """
        self.chunking = chunking
        self._draft_size = draft_size
        self.cross = slot.cross
        self._fills_cross = fills_cross
        self._log_mel = log_mel
        self._norm = RunningNorm()
        self._device = slot.mel.device
        self._mel_state = log_mel.init_state(torch.zeros(1, 0, device=self._device))
        self._history = MelHistory(slot.mel)
        self._encoder_state = slot.encoder.narrow(chunking.left_context + chunking.size)
        self.restart(0, n_frames=chunking.first_size)

    @property
    def is_full(self) -> bool:
        """Whether the next step would go beyond the positions that a window uses."""
        return self.position + self.n_next > self.cross.frames.shape[1]

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
        return self._due(self.n_next)

    @property
    def draft_due(self) -> int | None:
        """Samples that must have been heard for the next draft; None if the whole chunk comes first."""
        n_frames = self._n_drafted + (self._draft_size or self.n_next)
        return self._due(n_frames) if n_frames < self.n_next else None

    def _due(self, n_frames: int) -> int:
        end = self.anchor + MEL_PER_FRAME * (self.position + n_frames)
        return end * LogMel.block_size + LogMel.latency

    def restart(self, anchor: int, *, n_frames: int) -> None:
        """Begin a new window at mel frame ``anchor`` whose first step has ``n_frames`` encoder frames."""
        self.anchor = anchor
        self.position = 0
        self.n_next = n_frames
        self._n_drafted = 0
        self.cross.n_frames = 0
        self._encoder_state.position = 0
        self._peak = torch.full((1,), PEAK_FLOOR, device=self._device)
        # Two frames of past and the one frame of future that the last step has already scaled.
        self._scaled = torch.zeros(1, self._log_mel.n_mels, MEL_CONTEXT, device=self._device)

    def mark(self) -> WindowMark:
        """Remember this place."""
        return WindowMark(
            self.position,
            self.n_next,
            self._n_drafted,
            self._history.n_frames,
            self._mel_state,
            self._encoder_state.copy(),
            self._peak,
            self._scaled,
        )

    def go_back(self, mark: WindowMark) -> None:
        """Forget everything heard and encoded since ``mark``, if the window has not restarted since."""
        self.position, self.n_next, self._n_drafted = mark.position, mark.n_next, mark.n_drafted
        self.cross.n_frames = mark.position
        self._history.n_frames, self._mel_state = mark.n_mel, mark.mel_state
        self._encoder_state.assign(mark.encoder)
        self._peak, self._scaled = mark.peak, mark.scaled

    def hear(self, samples: Tensor) -> None:
        """Add samples ``[1, S]``."""
        mel, self._mel_state = self._log_mel.step(samples.to(self._device), self._mel_state)
        self._history.append(mel)

    def next_job(self) -> WindowJob:
        """The next step; :attr:`due` samples must have been heard."""
        mel, self._peak = self._scale(self.n_next)
        self._scaled = mel[..., -MEL_CONTEXT - 1 :]
        return self._job(mel)

    def accept(self) -> None:
        """Go on after the step."""
        self.position += self.n_next
        self.n_next = self.chunking.next_size(self.position)
        self._n_drafted = 0

    def draft_job(self) -> WindowJob:
        """The beginning of the next chunk, up to :attr:`draft_due`; :meth:`drop_draft` takes it back."""
        self.skip_draft()
        return self._job(self._scale(self._n_drafted)[0])

    def skip_draft(self) -> None:
        """Pass over the next draft."""
        assert self._draft_size, "this window makes no drafts"
        self._n_drafted += self._draft_size

    def drop_draft(self) -> None:
        """Forget the frames of a draft.

        What they took the place of in the encoder's ring is older than what the chunk looks back on.
        """
        self._encoder_state.position = self.position
        self.cross.n_frames = self.position

    def _scale(self, n_frames: int) -> tuple[Tensor, Tensor]:
        """Scaled mel frames of the next ``n_frames`` encoder frames with their context, and the new peak."""
        start = self.anchor + MEL_PER_FRAME * self.position + (1 if self.position else 0)
        end = self.anchor + MEL_PER_FRAME * (self.position + n_frames) + 1
        new, peak = self._norm.step(self._history.read(start, end), self._peak)
        return torch.cat([self._scaled, new], dim=-1), peak

    def _job(self, mel: Tensor) -> WindowJob:
        cross = self.cross if self._fills_cross else None
        return WindowJob(EncoderJob(mel, self._encoder_state, self.chunking), cross)
