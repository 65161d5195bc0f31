"""Silero's voice activity detector with its state as an argument, so that streams can share the weights.

The scripted model in the ``silero-vad`` package keeps one state on the module; here the same weights run as a
plain function (checked against the package's model in the tests). Axis letters: B batch, W windows of 32 ms.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW_SAMPLES = 512
_CONTEXT_SAMPLES = 64  # of the window before, put in front of each window
_WIDTH = 128
_STRIDES = (1, 2, 2, 1)


@dataclass(frozen=True)
class VadState:
    """What the detector remembers of B streams."""

    hidden: Tensor  # [B, 128] LSTM output
    cell: Tensor  # [B, 128] LSTM cell
    context: Tensor  # [B, 64] the last samples of the window before


@dataclass(frozen=True)
class VadJob:
    """One stream's next step.

    Attributes:
        samples: ``[1, 512 W]`` float32 in [-1, 1].
        state: What came before.
    """

    samples: Tensor
    state: VadState


@dataclass(frozen=True)
class VadResult:
    """What a job yields."""

    probabilities: Tensor  # [1, W]
    state: VadState


class SileroVad:
    """Stateless functions over Silero's weights for 16 kHz.

    Attributes:
        block_size: Samples per window.
        latency: Samples of future that a window needs beyond its end.
    """

    block_size = WINDOW_SAMPLES
    latency = 0

    def __init__(self) -> None:
        """Read the weights from the installed package, without importing it (that sets torch's threads)."""
        spec = importlib.util.find_spec("silero_vad")
        assert spec is not None and spec.submodule_search_locations, "silero-vad is a dependency"
        path = Path(spec.submodule_search_locations[0], "data", "silero_vad.jit")
        weights = torch.jit.load(str(path), map_location="cpu").state_dict()
        self._weights = {
            name.removeprefix("_model."): tensor.detach().clone()
            for name, tensor in weights.items()
            if name.startswith("_model.")
        }

    def init_state(self, batch: int = 1) -> VadState:
        """State of streams that have heard nothing."""
        return VadState(
            torch.zeros(batch, _WIDTH), torch.zeros(batch, _WIDTH), torch.zeros(batch, _CONTEXT_SAMPLES)
        )

    def step(self, samples: Tensor, state: VadState) -> tuple[Tensor, VadState]:
        """Speech probabilities of the next whole windows.

        Args:
            samples: ``[B, 512 W]`` float32 in [-1, 1].
            state: What came before.

        Returns:
            ``[B, W]`` probabilities and the next state.
        """
        signal = torch.cat([state.context, samples], dim=-1)
        windows = signal.unfold(-1, _CONTEXT_SAMPLES + WINDOW_SAMPLES, WINDOW_SAMPLES)  # [B, W, 576]
        features = self._extract(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])  # [B, W, 128]
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        recurrent = [self._weights[f"decoder.rnn.{name}"] for name in names]
        hidden, cell = state.hidden, state.cell
        outputs = []
        for w in range(features.shape[1]):
            hidden, cell = torch.lstm_cell(features[:, w], (hidden, cell), *recurrent)
            outputs.append(hidden)
        if not outputs:
            return samples.new_zeros(samples.shape[0], 0), state
        last = F.relu(torch.stack(outputs, dim=-1))
        score = F.conv1d(
            last, self._weights["decoder.decoder.2.weight"], self._weights["decoder.decoder.2.bias"]
        )
        return score.sigmoid().squeeze(1), VadState(hidden, cell, signal[:, -_CONTEXT_SAMPLES:])

    def step_jobs(self, jobs: Sequence[VadJob]) -> list[VadResult]:
        """Go on with many streams; those with equally many windows are computed together.

        Args:
            jobs: At least one, of different streams.

        Returns:
            One result for each job.
        """
        groups: dict[int, list[int]] = {}
        for index, job in enumerate(jobs):
            groups.setdefault(job.samples.shape[-1], []).append(index)
        results: dict[int, VadResult] = {}
        for members in groups.values():
            states = [jobs[i].state for i in members]
            together = VadState(
                torch.cat([state.hidden for state in states]),
                torch.cat([state.cell for state in states]),
                torch.cat([state.context for state in states]),
            )
            probabilities, after = self.step(torch.cat([jobs[i].samples for i in members]), together)
            rows = zip(
                probabilities.split(1),
                after.hidden.split(1),
                after.cell.split(1),
                after.context.split(1),
                strict=True,
            )
            for i, (probability, *state) in zip(members, rows, strict=True):
                results[i] = VadResult(probability, VadState(*state))
        return [results[index] for index in range(len(jobs))]

    def _extract(self, windows: Tensor) -> Tensor:
        """Features ``[N, 128]`` of windows ``[N, 576]``."""
        padded = F.pad(windows, (0, _CONTEXT_SAMPLES), mode="reflect")
        spectrum = F.conv1d(padded[:, None], self._weights["stft.forward_basis_buffer"], stride=128)
        real, imaginary = spectrum.chunk(2, dim=1)
        x = (real.square() + imaginary.square()).sqrt()
        for layer, stride in enumerate(_STRIDES):
            name = f"encoder.{layer}.reparam_conv"
            x = F.relu(
                F.conv1d(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], stride, padding=1)
            )
        return x.squeeze(-1)
