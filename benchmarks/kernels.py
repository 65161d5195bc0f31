"""The small products and reductions behind docs/performance.md, each in the ways it could be done.

Processor microseconds, the least of a few rounds. The last line of the output is one JSON object.

Run as ``python -m benchmarks.kernels``; ``--compile`` adds torch.compile (a C++ compiler, and a minute).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asr import int8
from asr.rules import likeliest
from asr.vad import WINDOW_SAMPLES, SileroVad
from benchmarks.machine import machine

WIDTH, N_HEAD, N_VOCAB = 384, 6, 51864  # of tiny.en


def fastest_us(work: Callable[[], object]) -> float:
    """Processor microseconds of one call."""
    for _ in range(3):
        work()
    n_calls, took = 10, []
    for _ in range(5):
        started = time.process_time()
        for _ in range(n_calls):
            work()
        took.append((time.process_time() - started) / n_calls)
    return 1e6 * min(took)


def products(n_outputs: int, n_rows: int) -> dict[str, Callable[[], object]]:
    """A linear layer in each format of weights."""
    weight, x = torch.randn(n_outputs, WIDTH), torch.randn(n_rows, WIDTH)
    scale = weight.abs().amax(dim=1) / int8.LEVELS
    levels = (weight / scale[:, None]).round().to(torch.int8)
    half, weight_half, scale_half = x.bfloat16(), weight.bfloat16(), scale.bfloat16()
    ways: dict[str, Callable[[], object]] = {
        "fp32": lambda: F.linear(x, weight),
        "bf16": lambda: F.linear(half, weight_half),
        "8-bit weights, fp32 activations": lambda: torch._weight_int8pack_mm(x, levels, scale),
        "8-bit weights, bf16 activations": lambda: torch._weight_int8pack_mm(half, levels, scale_half),
    }
    if int8.weight_levels():
        layer = int8.Int8Linear(weight)
        ways["int8"] = lambda: layer(x)
    return ways


def columns() -> dict[str, Callable[[], object]]:
    """One row against the vocabulary as two columns, as the decoder multiplies a few rows in fp32."""
    table, row = torch.randn(N_VOCAB, WIDTH), torch.randn(1, WIDTH)
    return {
        "two real columns": lambda: table @ row.repeat(2, 1).T,
        "two in one place": lambda: table @ row.expand(2, -1).T,
    }


def attention(n_queries: int, n_keys: int) -> dict[str, Callable[[], object]]:
    """Attention of one stream."""
    query, key, value = (torch.randn(1, N_HEAD, n, WIDTH // N_HEAD) for n in (n_queries, n_keys, n_keys))
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool)
    halves = [x.bfloat16() for x in (query, key, value)]
    frames, wide = torch.randn(n_keys, WIDTH), torch.randn(N_HEAD * n_queries, WIDTH)
    return {
        "fp32": lambda: F.scaled_dot_product_attention(query, key, value),
        "fp32, mask": lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=mask),
        "bf16": lambda: F.scaled_dot_product_attention(*halves),
        "of frames": lambda: (wide @ frames.T).softmax(dim=-1) @ frames,
    }


def reductions() -> dict[str, Callable[[], object]]:
    """The likeliest of the vocabulary, and the largest value of each of 240 rows."""
    logits, rows = torch.randn(N_VOCAB), torch.randn(240, WIDTH)
    return {
        "argmax, torch": lambda: logits.argmax(),
        "argmax, asr.rules.likeliest": lambda: likeliest(logits),
        "abs().amax()": lambda: rows.abs().amax(dim=-1, keepdim=True),
        "vector_norm(inf)": lambda: torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True),
    }


def detector(n_streams: int) -> dict[str, Callable[[], object]]:
    """Voice activity of nine windows of each stream."""
    vad = SileroVad()
    samples: Tensor = 0.1 * torch.randn(n_streams, 9 * WINDOW_SAMPLES)
    state = vad.init_state(n_streams)
    return {"together": lambda: vad.step(samples, state)}


def perceptron(n_rows: int) -> dict[str, Callable[[], object]]:
    """A block's layer norm and multilayer perceptron, operation by operation and compiled."""
    norm, wide, narrow = (
        nn.LayerNorm(WIDTH),
        int8.Int8Linear(torch.randn(4 * WIDTH, WIDTH)),
        int8.Int8Linear(torch.randn(WIDTH, 4 * WIDTH)),
    )
    x = torch.randn(n_rows, WIDTH)

    def work(x: Tensor) -> Tensor:
        return x + narrow(F.gelu(wide(norm(x))))

    compiled = torch.compile(work, dynamic=True)
    return {"int8": lambda: work(x), "int8, torch.compile": lambda: compiled(x)}


def main() -> int:
    """Run the benchmark; see the module's text."""
    parser = argparse.ArgumentParser(description="Small products and reductions, each in the ways to do it.")
    parser.add_argument("--compile", action="store_true", help="compare with torch.compile, too")
    args = parser.parse_args()
    groups = {
        "vocabulary, 1 row": products(N_VOCAB, 1),
        "vocabulary, 16 rows": products(N_VOCAB, 16),
        "vocabulary, 1 row as columns": columns(),
        "queries, keys and values, 16 rows": products(3 * WIDTH, 16),
        "queries, keys and values, 240 rows": products(3 * WIDTH, 240),
        "perceptron's first layer, 16 rows": products(4 * WIDTH, 16),
        "perceptron's first layer, 240 rows": products(4 * WIDTH, 240),
        "encoder's attention, 15 of 265 frames": attention(15, 265),
        "encoder's attention, 15 of 515 frames": attention(15, 515),
        "cross-attention, 1 token, 400 frames": attention(1, 400),
        "cross-attention, 3 tokens, 400 frames": attention(3, 400),
        "reductions": reductions(),
        "voice activity, 1 stream": detector(1),
        "voice activity, 16 streams": detector(16),
    }
    if args.compile:
        groups |= {f"perceptron, {n_rows} rows": perceptron(n_rows) for n_rows in (1, 16, 240)}
    found: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for group, ways in groups.items():
            found[group] = {name: round(fastest_us(work), 1) for name, work in ways.items()}
            print(group)
            for name, us in found[group].items():
                print(f"    {name:34s} {us:10.1f} us")
    print(json.dumps({"benchmark": "kernels", "us": found, **machine()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
