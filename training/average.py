"""Average adapters of one training run: ``python -m training.average EARLIER LATER -o AVERAGE``.

Weights along one run lie in one basin, and the mean of two of them often makes fewer errors than either
(Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018). The mean of
the adapter that a run began with and the trained one forgets less (Wortsman et al., "Robust fine-tuning of
zero-shot models", 2022). Adapters of different runs have nothing in common that could be averaged. The
factors of LoRA are averaged, not their products, which differ by the product of the factors' changes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asr.adapters import CONFIG_FILE, WEIGHTS_FILE, AdapterCard
from asr.errors import AdapterError, OptionError
from training.runs import exit_code


def average(folders: Sequence[Path], output: Path, *, weights: Sequence[float] = ()) -> None:
    """Write the weighted mean of adapters' tensors as an adapter of its own.

    Args:
        folders: Adapters of one run; the last one's card is kept, without results.
        output: Folder to write.
        weights: One per adapter, adding up to 1; all alike if not given.

    Raises:
        OptionError: Fewer than two adapters, or weights that do not fit.
        AdapterError: A folder cannot be read, or the adapters differ in base weights, layers or ranks.
    """
    shares = list(weights) or [1 / len(folders)] * len(folders)
    if len(folders) < 2 or len(shares) != len(folders) or abs(sum(shares) - 1) > 1e-6:
        raise OptionError(
            f"an average needs two or more adapters and a weight for each, which add up to 1; got "
            f"{len(folders)} adapters and the weights {shares}"
        )
    cards = [AdapterCard.read(folder) for folder in folders]
    tensors = [_tensors(folder) for folder in folders]
    shapes = [{name: tensor.shape for name, tensor in one.items()} for one in tensors]
    for folder, card, shape in zip(folders, cards, shapes, strict=True):
        if card.base_weights_hash != cards[-1].base_weights_hash or shape != shapes[-1]:
            raise AdapterError(
                f"{folder}: other base weights, layers or ranks than {folders[-1]}; "
                "average adapters of one run"
            )
    output.mkdir(parents=True, exist_ok=True)
    mean = {
        name: torch.stack([share * one[name].float() for share, one in zip(shares, tensors, strict=True)])
        .sum(dim=0)
        .half()
        for name in tensors[-1]
    }
    save_file(mean, output / WEIGHTS_FILE)
    shutil.copy(folders[-1] / CONFIG_FILE, output / CONFIG_FILE)
    steps = [card.training.get("steps") for card in cards]
    averaged = {"of_steps": steps, "weights": [round(share, 4) for share in shares]}
    replace(cards[-1], training={**cards[-1].training, "averaged": averaged}, results={}).write(output)


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{folder}: not a readable peft adapter ({error})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        Exit code: 0, or 1 if the adapters cannot be averaged.
    """
    parser = argparse.ArgumentParser(
        prog="python -m training.average", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("adapters", nargs="+", type=Path, help="adapter folders of one run, the oldest first")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder for the average")
    parser.add_argument(
        "--weights", default="", help="comma-separated, adding up to 1 (default: all the same)"
    )
    options = parser.parse_args(arguments)
    try:
        weights = [float(weight) for weight in options.weights.split(",") if weight]
    except ValueError:
        parser.error(f"--weights must be numbers with commas between them, not {options.weights!r}")
    return exit_code(lambda: average(options.adapters, options.output, weights=weights))


if __name__ == "__main__":
    sys.exit(main())
