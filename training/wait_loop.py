"""Teach a trained transducer head which frames had better wait for the encoder's next step.

    python -m training.wait_loop --head HEAD --manifest train.jsonl --dev-manifest dev.jsonl --output LEARNED

Nothing but the wait scheduler (:mod:`asr.waiting`) is trained. A frame's version costs how far the head's
next-token probabilities with it are from those with the final version (Kullback-Leibler divergence, at the
text that the head reads there), and waiting for another version costs time. The scheduler learns the cheapest
way, in expectation over soft gates. The dial is turned at random in training, and waiting gets cheaper as it
is turned up, so that one scheduler is good at every position. Axis letters: V versions, T head frames, D
their width, E width of an encoder frame, V' tokens.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from asr.dial import LATENCY_MS, Dial, DialPoint, find_positions
from asr.errors import OptionError
from asr.frontier import LookPolicy
from asr.head import HEAD_FRAME_MS, STACK, TransducerHead
from asr.head_files import save_head
from asr.transducer_search import GreedySearch, SearchJob
from asr.waiting import WaitScheduler, expected_cost, hard_stays, soft_stays, waiting_delays
from training.config import WaitTrainConfig
from training.head_data import FeatureMaker, Stepped
from training.head_setup import MAX_DEV_S, Frozen
from training.manifest import load_audio, read_manifest
from training.runs import every_nth, exit_code, parse_settings

_TARGETS_MS = sorted({0, *LATENCY_MS.values(), 10, 40, 60, 120, 240})


@dataclass(frozen=True)
class Versions:
    """One stream's head frames, version by version; a frame with fewer versions repeats its last."""

    frames: Tensor  # [V, T, 2 E] pairs of encoder frames
    heard: Tensor  # [V, T] int64 head frames that had been encoded with each version


@dataclass(frozen=True)
class Lesson:
    """What a scheduler learns from one stream."""

    frames: Tensor  # [V, T, D] the head's frames
    heard: Tensor  # [V, T] int64
    costs: Tensor  # [V, T] nats

    def future(self) -> Tensor:
        """Head frames after each that had been encoded with each version, ``[V, T]``."""
        return self.heard - 1 - torch.arange(self.heard.shape[1])


def split_versions(stepped: Stepped, row: int) -> Versions:
    """The versions of one stream's head frames.

    Args:
        stepped: Some streams.
        row: Which of them.

    Returns:
        Its versions: as many as the frame with most has.
    """
    n_frames = int(stepped.lengths[row])
    ends = torch.tensor(stepped.ends)
    n_final = [end - part.shape[1] for end, part in zip(stepped.ends, stepped.ahead, strict=True)]
    needed = STACK * torch.arange(1, n_frames + 1)
    first = torch.searchsorted(ends, needed)
    last = torch.searchsorted(torch.tensor(n_final), needed)
    n_versions = int((last - first).max()) + 1
    frames = stepped.final.new_zeros(n_versions, n_frames, STACK * stepped.final.shape[-1])
    heard = torch.zeros(n_versions, n_frames, dtype=torch.int64)
    for step, end in enumerate(stepped.ends):
        at = ((first <= step) & (step <= last)).nonzero()[:, 0]
        view = torch.cat([stepped.final[row, : n_final[step]], stepped.ahead[step][row]])
        pairs = view[: len(view) // STACK * STACK].reshape(-1, frames.shape[-1])
        frames[step - first[at], at] = pairs[at]
        heard[step - first[at], at] = end // STACK
    for version in range(1, n_versions):
        is_over = version > last - first
        frames[version, is_over] = frames[version - 1, is_over]
        heard[version, is_over] = heard[version - 1, is_over]
    return Versions(frames, heard)


@torch.no_grad()
def make_lesson(head: TransducerHead, versions: Versions) -> Lesson:
    """What reading each version of a stream's frames costs.

    Args:
        head: In eval mode; its blocks do not look ahead.
        versions: The stream's.

    Returns:
        Head frames and costs.
    """
    n_versions, n_frames, _ = versions.frames.shape
    policy = LookPolicy(fixed=(0,) * head.config.n_blocks)
    rows = versions.frames.float().reshape(n_versions, n_frames * STACK, -1)
    frames = head(rows, torch.full((n_versions,), n_frames), policy=policy).frames
    transducer, search = head.transducer, GreedySearch(head.transducer)
    state = search.init_state()
    search.advance([SearchJob(frames[-1:], state)])
    said = [(emission.frame, emission.token) for emission in state.draft]
    texts = transducer.predict(torch.tensor([[token for _, token in said]], dtype=torch.int64))[0]
    n_before = torch.searchsorted(
        torch.tensor([frame for frame, _ in said], dtype=torch.int64), torch.arange(n_frames)
    )
    views = transducer.transcribe(frames)
    log_probs = [transducer.join(view, texts[n_before]).log_softmax(dim=-1) for view in views]  # [T, V'] each
    final = log_probs[-1]
    costs = torch.stack([(final.exp() * (final - each)).sum(dim=-1) for each in log_probs])
    return Lesson(frames, versions.heard, costs.clamp(min=0))


def learn(scheduler: WaitScheduler, lessons: Sequence[Lesson], config: WaitTrainConfig) -> None:
    """Train a scheduler.

    Args:
        scheduler: Changed in place.
        lessons: At least one.
        config: Steps, prices, rates.
    """
    rng = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(scheduler.parameters(), lr=config.learning_rate, weight_decay=0.01)
    cooling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, config.steps)
    with tqdm(total=config.steps, unit="step", disable=None) as bar:
        for _ in range(config.steps):
            chosen = rng.choice(len(lessons), min(config.batch_streams, len(lessons)), replace=False)
            turned = float(rng.uniform(-1, 1)) * config.dial_spread
            price = config.latency_price * math.exp(-turned) * HEAD_FRAME_MS / 1000
            costs = []
            for lesson in (lessons[int(i)] for i in chosen):
                stays = soft_stays(scheduler(lesson.frames, lesson.future())[:-1] + turned)
                delays = waiting_delays(stays, lesson.heard)
                costs.append(expected_cost(stays, lesson.costs) + price * delays)
            # Where waiting is dear every frame costs more; each position of the dial is to count alike.
            loss = torch.cat(costs).mean() / price**0.5
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cooling.step()
            bar.update()


@torch.no_grad()
def measure_wait_dial(scheduler: WaitScheduler, lessons: Sequence[Lesson]) -> Dial:
    """The biases that give wanted mean delays over some streams, after :mod:`asr.dial`."""
    logits = [scheduler(lesson.frames, lesson.future())[:-1] for lesson in lessons]

    def measured_at(bias: float) -> DialPoint:
        delays = torch.cat(
            [
                waiting_delays(hard_stays(row, bias), lesson.heard)
                for row, lesson in zip(logits, lessons, strict=True)
            ]
        )
        waits_ms = delays.double() * HEAD_FRAME_MS
        return DialPoint(bias, float(waits_ms.mean()), float(waits_ms.quantile(0.95)))

    return find_positions(measured_at, _TARGETS_MS)


def make_lessons(
    head: TransducerHead,
    frozen: Frozen,
    manifest: Path,
    config: WaitTrainConfig,
    *,
    chunk_ms: int,
    limit: int,
) -> Iterator[Lesson]:
    """Encode and judge utterances of a manifest, evenly spread; an OptionError if none is short enough."""
    chunking = frozen.chunking(chunk_ms, right_context_ms=config.right_context_ms)
    maker = FeatureMaker(frozen.encoder, n_mels=frozen.model.dims.n_mels, chunkings=[chunking], seed=0)
    spoken = [each for each in read_manifest(manifest) if each.duration_s < MAX_DEV_S]
    if not spoken:
        raise OptionError(f"{manifest}: no utterance is shorter than {MAX_DEV_S:.0f} s")
    chosen = sorted(every_nth(spoken, limit), key=lambda each: each.duration_s)  # equals side by side
    for first in tqdm(range(0, len(chosen), 8), desc=f"{manifest.name}, {chunk_ms} ms", disable=None):
        stepped = maker.encode_steps([load_audio(each) for each in chosen[first : first + 8]], chunking)
        for row in range(len(stepped.lengths)):
            yield make_lesson(head, split_versions(stepped, row))


def train(config: WaitTrainConfig) -> None:
    """Train a head's wait scheduler, measure its dials and write it.

    Args:
        config: The run.

    Raises:
        AdapterError: The head cannot be read or belongs to other weights.
        OptionError: A value is outside its range.
    """
    if config.right_context_ms <= 0:
        raise OptionError("without right context there is nothing to wait for; give right_context_ms")
    if not math.isfinite(config.latency_price) or config.latency_price <= 0:
        raise OptionError(f"latency_price must be above 0, not {config.latency_price}")
    torch.manual_seed(config.seed)
    frozen = Frozen.load(config.model, config.adapter, torch.device("cpu"))
    old, card = frozen.read_head(config.head)
    sizes = replace(old.config, max_future=config.max_future)
    head = TransducerHead(sizes).eval()
    head.load_state_dict(old.state_dict(), strict=False)
    assert head.waiting
    n_each = -(-config.limit // len(config.chunk_ms))
    lessons = [
        lesson
        for chunk_ms in config.chunk_ms
        for lesson in make_lessons(head, frozen, config.manifest, config, chunk_ms=chunk_ms, limit=n_each)
    ]
    learn(head.waiting, lessons, config)
    dials = {}
    for chunk_ms in config.chunk_ms:
        heard = make_lessons(
            head, frozen, config.dev_manifest, config, chunk_ms=chunk_ms, limit=config.dev_limit
        )
        dials[str(chunk_ms)] = measure_wait_dial(head.waiting, list(heard)).to_json()
    learned = {
        "latency_price": config.latency_price,
        "right_context_ms": config.right_context_ms,
        "chunk_ms": list(config.chunk_ms),
        "utterances": len(lessons),
        "steps": config.steps,
    }
    save_head(
        head,
        config.output,
        replace(
            card,
            config=sizes.to_json(),
            dial=[],
            wait_dials=dials,
            training={**card.training, "waiting": learned},
            results={},
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        Exit code: 0, or 1 if the run cannot be made.
    """
    given = parse_settings(
        (WaitTrainConfig,),
        description=(__doc__ or "").split("\n")[0],
        required=("head", "output", "manifest", "dev_manifest"),
        arguments=arguments,
    )
    return exit_code(lambda: train(WaitTrainConfig(**given[WaitTrainConfig])))


if __name__ == "__main__":
    sys.exit(main())
