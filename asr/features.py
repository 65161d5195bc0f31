"""Streaming log-mel features: Whisper's own spectrogram, computed as the audio arrives.

Two parts, each with ``forward`` for a whole signal and ``step`` for its next piece, which agree for any
split: :class:`LogMel` makes raw log10 mel frames, :class:`RunningNorm` scales them the way Whisper does but
with the loudest frame *so far* where Whisper takes the loudest of the whole signal. The raw frames are what a
stream keeps for re-anchoring. Axis letters: B batch, S samples, T mel frames (10 ms), M mel bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, mel_filters

DYNAMIC_RANGE = 8.0  # log10 units kept below the loudest frame, as in Whisper
PEAK_FLOOR = 0.5  # log10 mel power; a stream is taken to be at least this loud, so silence is not amplified


@dataclass
class LogMelState:
    """Samples that later frames still need, and how much has been heard."""

    tail: Tensor  # [B, < N_FFT + HOP_LENGTH] float32, audio from the start of the next frame's window
    n_frames: int = 0  # frames produced so far


class LogMel:
    """Raw log10 mel power. Frame t is centred on sample ``160 t``, exactly as in Whisper.

    Attributes:
        block_size: Samples per frame.
        latency: Samples of future that a frame needs beyond its centre: ``forward(x)[t]`` depends on
            samples below ``block_size * t + latency`` only.
    """

    block_size = HOP_LENGTH
    latency = N_FFT // 2

    def __init__(self, n_mels: int, *, device: torch.device | str = "cpu") -> None:
        """Prepare window and filters.

        Args:
            n_mels: 80 or 128, as the checkpoint says.
            device: Where the signals will be.
        """
        self._window = torch.hann_window(N_FFT, device=device)
        self._filters = mel_filters(torch.device(device), n_mels)
        self.n_mels = n_mels

    def forward(self, signal: Tensor) -> Tensor:
        """Frames of a whole signal, followed by silence as in Whisper's padded window.

        Args:
            signal: ``[B, S]`` float32 in [-1, 1].

        Returns:
            ``[B, M, S // 160]``.
        """
        frames, state = self.step(signal, self.init_state(signal))
        rest, _ = self.step(signal.new_zeros(signal.shape[0], self.latency), state)
        return torch.cat([frames, rest], dim=-1)[..., : signal.shape[-1] // HOP_LENGTH]

    def init_state(self, signal: Tensor) -> LogMelState:
        """State of streams that have heard nothing; ``signal`` gives batch size and device."""
        return LogMelState(signal.new_zeros(signal.shape[0], 0))

    def step(self, samples: Tensor, state: LogMelState) -> tuple[Tensor, LogMelState]:
        """The frames that the next samples complete.

        Args:
            samples: ``[B, S]``, S may be 0.
            state: What came before.

        Returns:
            ``[B, M, T]`` with ``T >= 0``, and the next state.
        """
        audio = torch.cat([state.tail, samples], dim=-1)
        if state.n_frames == 0:
            if audio.shape[-1] < self.latency + 1:
                return audio.new_zeros(audio.shape[0], self.n_mels, 0), LogMelState(audio, 0)
            audio = torch.cat([audio[:, 1 : self.latency + 1].flip(-1), audio], dim=-1)
        n_new = max(0, (audio.shape[-1] - N_FFT) // HOP_LENGTH + 1)
        if n_new == 0:
            return audio.new_zeros(audio.shape[0], self.n_mels, 0), LogMelState(audio, state.n_frames)
        windows = audio[:, : N_FFT + (n_new - 1) * HOP_LENGTH].unfold(-1, N_FFT, HOP_LENGTH)
        power = torch.fft.rfft(windows * self._window).abs().square()
        mel = (power @ self._filters.T).clamp(min=1e-10).log10().transpose(1, 2)
        return mel, LogMelState(audio[:, n_new * HOP_LENGTH :], state.n_frames + n_new)


class RunningNorm:
    """Whisper's dynamic-range clamp and scaling, with the running instead of the global maximum.

    It is causal and has no latency. ``forward`` starts a stream, ``step`` continues it from ``peak``.
    """

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Scale a stream's frames from its start on; see :meth:`step`."""
        return self.step(mel, mel.new_full((mel.shape[0],), PEAK_FLOOR))

    def step(self, mel: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
        """Scale the next frames.

        Args:
            mel: ``[B, M, T]`` raw log10 mel power.
            peak: ``[B]`` maximum of everything before, at least ``PEAK_FLOOR``.

        Returns:
            ``[B, M, T]`` scaled frames and the new ``[B]`` peak.
        """
        if mel.shape[-1] == 0:
            return mel, peak
        loudest = torch.maximum(mel.amax(dim=1).cummax(dim=-1).values, peak[:, None])
        scaled = (torch.maximum(mel, loudest[:, None] - DYNAMIC_RANGE) + 4.0) / 4.0
        return scaled, loudest[:, -1]


def silence_mel(like: Tensor, n_frames: int) -> Tensor:
    """Raw frames of digital silence ``[B, M, n_frames]`` for the batch of ``like`` ``[B, M, T]``."""
    return F.pad(like[..., :0], (0, n_frames), value=-10.0)
