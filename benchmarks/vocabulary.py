"""A few positions against the vocabulary: as columns, as streaming computes them, beside as rows.

Run as ``python -m benchmarks.vocabulary``. The last line of the output is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from asr.checkpoint import load_checkpoint
from asr.decoder import FEW_ROWS, Decoder
from benchmarks.machine import machine

N_RUNS = 20


def measure_ms(run: Callable[[], Tensor]) -> float:
    """Median milliseconds of ``N_RUNS`` runs, after one that is not counted."""
    times = []
    for _ in range(N_RUNS + 1):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])


@torch.inference_mode()
def main() -> None:
    """Print a table of milliseconds and ratios on one core."""
    torch.set_num_threads(1)
    model = load_checkpoint("tiny.en").model
    decoder = Decoder(model.decoder, model.alignment_heads)
    table = model.decoder.token_embedding.weight
    ratios = {}
    print(f"{'positions':>9} {'rows, ms':>9} {'ours, ms':>9} {'ratio':>6}")
    for n_rows in (1, 2, 3, 4, FEW_ROWS):
        hidden = torch.randn(n_rows, table.shape[1])
        assert torch.allclose(decoder.logits(hidden), hidden @ table.T, atol=1e-2)
        rows_ms = measure_ms(lambda hidden=hidden: torch.nn.functional.linear(hidden, table))  # type: ignore[misc]
        ours_ms = measure_ms(lambda hidden=hidden: decoder.logits(hidden))  # type: ignore[misc]
        ratios[n_rows] = round(rows_ms / ours_ms, 2)
        print(f"{n_rows:>9} {rows_ms:>9.2f} {ours_ms:>9.2f} {ratios[n_rows]:>6.2f}")
    print(json.dumps({**machine(), "rows_over_ours": ratios}))


if __name__ == "__main__":
    main()
