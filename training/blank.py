"""Make a head drop fewer words: ``python -m training.blank HEAD -o LOUDER --penalty 0.7``.

The loss lets tokens come out only near their words' ends. Whoever was not sure enough there says nothing ever
after, so a trained head leaves out more words than it makes up. A penalty is taken from blank's logit at
every frame; the dev set says how large it should be.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from asr.errors import OptionError
from asr.head_files import HeadCard, load_head, save_head
from training.runs import exit_code


@torch.no_grad()
def penalize_blank(folder: Path, output: Path, *, penalty: float) -> None:
    """Write a head whose blank is less likely; its card says by how much and keeps no results.

    Args:
        folder: A head's folder.
        output: Folder to write.
        penalty: In nats.

    Raises:
        AdapterError: The folder cannot be read.
        OptionError: The penalty is not finite.
    """
    if not math.isfinite(penalty):
        raise OptionError(f"the penalty must be a finite number of nats, not {penalty}")
    card = HeadCard.read(folder)
    head, card = load_head(folder, weights_hash=card.base_weights_hash, adapter_hash=card.adapter_hash)
    head.transducer.out.bias[head.transducer.blank] -= penalty
    total = round(card.training.get("blank_penalty", 0.0) + penalty, 4)
    save_head(head, output, replace(card, training={**card.training, "blank_penalty": total}, results={}))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        Exit code: 0, or 1 if the head cannot be changed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m training.blank", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("head", type=Path, help="a head's folder")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder for the changed head")
    parser.add_argument("--penalty", required=True, type=float, help="nats taken from blank's logit")
    options = parser.parse_args(arguments)
    return exit_code(lambda: penalize_blank(options.head, options.output, penalty=options.penalty))


if __name__ == "__main__":
    sys.exit(main())
