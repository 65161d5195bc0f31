"""What a tick costs, counted in operations and bytes: a guard that does not depend on the machine's speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from asr.batch import Step
from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer

CHUNK = 3 * SAMPLE_RATE // 10
N_CHUNKS = 5  # counted, after as many that are not

# Of tests/tiny.py's random weights in fp32, a tenth above what was counted; lower them when they are beaten.
MAX_OPS = 1860  # of one stream, in a chunk
MAX_OPS_RATIO = 9.5  # of 16 streams to one
MAX_NEW_BYTES = 6.4e6  # of tensors made for one stream in a chunk


@dataclass
class Cost(TorchDispatchMode):
    """Counts what torch is asked to do while it is active."""

    ops: Counter[str] = field(default_factory=Counter)
    new_bytes: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation and the bytes of tensors that it makes."""
        result = func(*args, **(kwargs or {}))
        self.ops[func.overloadpacket.__name__] += 1
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        for made in tree_leaves(result):
            if torch.is_tensor(made) and made.untyped_storage().data_ptr() not in known:
                self.new_bytes += made.untyped_storage().nbytes()
        return result

    @property
    def n_ops(self) -> int:
        return sum(self.ops.values())


def listen(recognizer: Recognizer, clips: Sequence[np.ndarray], mode: Any) -> None:
    """Stream clips together; ``mode`` counts the second half of their chunks."""
    streams = [recognizer.stream() for _ in clips]

    def tick(chunk: int) -> None:
        samples = [clip[chunk * CHUNK : (chunk + 1) * CHUNK] for clip in clips]
        outcomes = recognizer.advance([Step(s, x) for s, x in zip(streams, samples, strict=True)])
        assert all(isinstance(outcome, list) for outcome in outcomes)

    for chunk in range(N_CHUNKS):
        tick(chunk)
    with mode:
        for chunk in range(N_CHUNKS, 2 * N_CHUNKS):
            tick(chunk)


@pytest.fixture(scope="module")
def costs(tiny_recognizer: Recognizer, jfk: np.ndarray) -> dict[int, Cost]:
    """Of one stream, and of 16 with the same audio, which therefore take the same steps."""
    found = {n: Cost() for n in (1, 16)}
    for n, cost in found.items():
        listen(tiny_recognizer, [jfk[: 2 * N_CHUNKS * CHUNK]] * n, cost)
    return found


def test_operations_per_chunk(costs: dict[int, Cost]) -> None:
    """One stream's chunk takes no more operations than it did when this was written."""
    assert costs[1].n_ops / N_CHUNKS < MAX_OPS


def test_weights_are_read_once_for_all(costs: dict[int, Cost]) -> None:
    """16 streams that take the same steps need no more products with weights than one."""
    n_steps = costs[16].ops["embedding"]
    assert costs[1].ops["embedding"] == n_steps > 0
    # The vocabulary is multiplied by few rows as columns, which is not a linear layer, and by many as rows.
    assert costs[16].ops["linear"] - n_steps == costs[1].ops["linear"] > 0


def test_sixteen_streams_to_one(costs: dict[int, Cost]) -> None:
    """What is done stream by stream is about half of what one stream does."""
    assert costs[16].n_ops / costs[1].n_ops < MAX_OPS_RATIO


def test_allocations_per_tick(costs: dict[int, Cost]) -> None:
    """The bytes of new tensors in a tick stay what they were, for one stream and for each of 16."""
    for n, cost in costs.items():
        assert cost.new_bytes / N_CHUNKS / n < MAX_NEW_BYTES


def test_nothing_is_multiplied_twice(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """16 streams multiply 8 times as much as two: nothing is padded."""
    flops = []
    for n in (2, 16):
        counter = FlopCounterMode(display=False)
        listen(tiny_recognizer, [jfk[: 2 * N_CHUNKS * CHUNK]] * n, counter)
        flops.append(counter.get_total_flops())
    assert flops[1] == pytest.approx(8 * flops[0], rel=0.02)


def test_state_of_a_stream(recognizer: Recognizer) -> None:
    """A fresh stream of tiny.en holds at most 4 MB, twice that where caches are exact."""
    slot = recognizer.slots(1).take()
    assert slot is not None
    assert slot.n_bytes < (4e6 if recognizer.weights == "int8" else 8e6)
