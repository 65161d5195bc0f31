"""Part of the way from the adapter that training began with to the trained one.

Weights between the two keep much of what was learned and forget less (M. Wortsman et al., "Robust fine-tuning
of zero-shot models", 2022). The factors of LoRA are averaged, not their products; the products differ from
the averaged ones by the product of the factors' changes, which is small next to them.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from asr.adapters import AdapterCard
from asr.errors import OptionError

_WEIGHTS_FILE = "adapter_model.safetensors"


def blend_adapters(start: Path, trained: Path, *, share: float, output: Path) -> Path:
    """Write an adapter between two of the same shape.

    Args:
        start: Folder of the adapter that training began with.
        trained: Folder of the trained one.
        share: How far to go, from 0 (start) to 1 (trained).
        output: Folder that is written.

    Returns:
        ``output``.

    Raises:
        OptionError: The adapters have other layers.
    """
    first, last = (load_file(folder / _WEIGHTS_FILE) for folder in (start, trained))
    if {name: value.shape for name, value in first.items()} != {n: v.shape for n, v in last.items()}:
        raise OptionError(f"{start} and {trained} have other ranks or modules; set blend to 1")
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(trained, output)
    blended = {
        name: ((1 - share) * first[name].float() + share * last[name].float()).to(value.dtype)
        for name, value in last.items()
    }
    save_file(blended, output / _WEIGHTS_FILE)
    card = AdapterCard.read(trained)
    # What was measured was measured of the trained one.
    replace(card, training={**card.training, "blend": share}, results={}).write(output)
    return output
