"""In which format the weights that stream are multiplied."""

from __future__ import annotations

import torch

from asr import int8
from asr.errors import OptionError

WEIGHT_FORMATS = ("auto", "int8", "fp32")


def choose_format(wanted: str, *, device: torch.device) -> str:
    """The format that a choice means here.

    Args:
        wanted: One of ``WEIGHT_FORMATS``.
        device: Where the weights are.

    Returns:
        ``int8`` or ``fp32``.

    Raises:
        OptionError: There is no such format, or this processor has no use for it.
    """
    if wanted not in WEIGHT_FORMATS:
        raise OptionError(f"weights must be one of {', '.join(WEIGHT_FORMATS)}, not {wanted!r}")
    if wanted == "fp32":
        return "fp32"
    levels = int8.weight_levels() if device.type == "cpu" else 0
    if wanted == "int8" and not levels:
        raise OptionError(
            f"weights 'int8' need a CPU that adds up products of bytes exactly, "
            f"which this {device.type} does not; choose 'fp32' or 'auto'"
        )
    # With fewer levels unclear speech is heard worse now and then: that is for who asks for it.
    return "int8" if wanted == "int8" or levels == int8.LEVELS else "fp32"
