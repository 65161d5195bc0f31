"""The processes of a run, by accelerate: one alone, or several on CPUs, GPUs and machines.

Every process holds all weights and takes its own batches; gradients are averaged before each step. What
trains is small, so one reduction of all gradients joined does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from asr.errors import OptionError

PRECISIONS = ("bf16", "fp16", "no")


class Workers:
    """This process among the others.

    Attributes:
        rank: Number of this process, from 0.
        n_ranks: Processes.
        device: Where this process computes.
    """

    def __init__(self, *, device: str, precision: str) -> None:
        """Find the others, as ``accelerate launch`` or ``torchrun`` has set them up.

        Args:
            device: ``cpu``, or a GPU's; with several processes each takes its own GPU.
            precision: ``bf16``, ``fp16`` or ``no``.

        Raises:
            OptionError: The precision or the device is not there.
        """
        if precision not in PRECISIONS:
            raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        is_cpu = torch.device(device).type == "cpu"
        if not is_cpu and not torch.cuda.is_available():
            raise OptionError(f"device {device!r} cannot be used: torch sees no GPU; choose cpu")
        if is_cpu and precision == "fp16":
            raise OptionError("precision fp16 needs a GPU; choose bf16 or no")
        self._accelerator = Accelerator(mixed_precision=precision, cpu=is_cpu)
        self.rank: int = self._accelerator.process_index
        self.n_ranks: int = self._accelerator.num_processes
        alone = self.n_ranks == 1
        self.device = torch.device(device) if alone else torch.device(self._accelerator.device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        """Wrap an optimiser so that it knows about scaled gradients."""
        return self._accelerator.prepare_optimizer(optimizer)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients, scaled where the precision needs it."""
        self._accelerator.backward(loss)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes; one that is missing counts as zero."""
        if self.n_ranks == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        joined = self._accelerator.reduce(joined, reduction="mean")
        for parameter, part in zip(parameters, joined.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Clip gradients to a norm; returns what it was."""
        norm = self._accelerator.clip_grad_norm_(list(parameters), max_norm)
        return torch.as_tensor(norm)

    def step(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Make a step unless gradients are not finite."""
        if self._accelerator.scaler is not None or torch.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over all processes."""
        if self.n_ranks == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        return [float(value) for value in self._accelerator.reduce(tensor, reduction="sum").tolist()]

    def gather(self, items: list[Any]) -> list[Any]:
        """All processes' items, in the order of processes."""
        return items if self.n_ranks == 1 else list(gather_object(items))

    def wait(self) -> None:
        """Wait for the others."""
        self._accelerator.wait_for_everyone()
