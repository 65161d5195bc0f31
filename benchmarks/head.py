"""What a transducer head costs: processor time per second of audio, and per training step.

The weights are random; blank is made so likely that about as many tokens come out as in fast speech. Run as
``python -m benchmarks.head``. The last line of the output is one JSON object.
"""

from __future__ import annotations

import json
import time

import torch
from torch import Tensor
from whisper.tokenizer import get_tokenizer

from asr.chunking import FRAME_MS
from asr.dial import measure
from asr.frontier import ADAPTIVE
from asr.head import HEAD_FRAME_MS, STACK, HeadConfig, TransducerHead
from asr.transducer_reader import EmissionTiming, ReadJob, TransducerReader, read
from asr.words import Vocabulary
from benchmarks.machine import machine
from training.config import HeadLossConfig
from training.head_data import HeadBatch
from training.head_losses import HeadLoss

AUDIO_S = 30
CONFIG = HeadConfig(encoder_width=384)
TOKENS_PER_S = 7
N_ROWS, ROW_S = 6, 15  # of a training batch


def speaking_head(frames: Tensor) -> TransducerHead:
    """Random weights that say ``TOKENS_PER_S`` tokens, or a few more, of ``[1, F, E]`` frames."""
    torch.manual_seed(0)
    head = TransducerHead(CONFIG).eval().requires_grad_(False)
    transducer = head.transducer
    transducer.predictor.out.weight *= 0.1  # what was said hardly matters, or all frames or none would speak
    outputs = head(frames, torch.tensor([frames.shape[1] // STACK])).frames
    before = transducer.predict(torch.zeros(1, 0, dtype=torch.int64))
    logits = transducer.join(transducer.transcribe(outputs), before)[0]
    margin = logits[:, : transducer.blank].amax(dim=1) - logits[:, transducer.blank]
    share = TOKENS_PER_S * HEAD_FRAME_MS / 1000
    transducer.out.bias[transducer.blank] += margin.quantile(1 - share / 2)
    return head


@torch.inference_mode()
def streaming_cost(head: TransducerHead, frames: Tensor, *, chunk_ms: int, n_streams: int) -> float:
    """Seconds of processor time per second of audio and stream, greedy."""
    vocabulary = Vocabulary(get_tokenizer(multilingual=False))
    timing = EmissionTiming.from_ms(lead_ms=300, lag_ms=0)
    readers = [TransducerReader(head, vocabulary, policy=ADAPTIVE, timing=timing) for _ in range(n_streams)]
    n_chunk = chunk_ms // FRAME_MS
    started = time.process_time()
    for at in range(0, frames.shape[1], n_chunk):
        read(head, [ReadJob(reader, frames[:, at : at + n_chunk], at) for reader in readers])
    return (time.process_time() - started) / AUDIO_S / n_streams


def step_cost() -> float:
    """Seconds of processor time of one training step's forward and backward, without the encoder."""
    torch.manual_seed(0)
    n_tokens = TOKENS_PER_S * ROW_S
    batch = HeadBatch(
        torch.randn(N_ROWS, ROW_S * 1000 // FRAME_MS, CONFIG.encoder_width).half(),
        torch.full((N_ROWS,), ROW_S * 1000 // HEAD_FRAME_MS),
        torch.randint(CONFIG.n_tokens, (N_ROWS, n_tokens)),
        torch.full((N_ROWS,), n_tokens),
        torch.linspace(0.5, ROW_S - 0.5, n_tokens).expand(N_ROWS, -1),
        torch.tensor([30, 15]),
    )
    head = TransducerHead(CONFIG, dropout=0.1)
    loss_of = HeadLoss(head, HeadLossConfig())
    times = []
    for _ in range(4):
        started = time.process_time()
        loss_of(head, batch, temperature=0.5, policy=ADAPTIVE, masked_share=0.1).total.backward()
        times.append(time.process_time() - started)
    return min(times)


def main() -> None:
    """Print a table on one core."""
    torch.set_num_threads(1)
    frames = torch.randn(1, AUDIO_S * 1000 // FRAME_MS, CONFIG.encoder_width)
    head = speaking_head(frames)
    delay = measure(head.lookahead, [head.gather(frames)], ADAPTIVE, frame_ms=HEAD_FRAME_MS)
    costs = {}
    print(f"{'chunk ms':>9} {'streams':>8} {'cost per second of audio':>25}")
    for chunk_ms in (80, 300):
        for n_streams in (1, 8):
            cost = streaming_cost(head, frames, chunk_ms=chunk_ms, n_streams=n_streams)
            costs[f"{chunk_ms} ms, {n_streams}"] = round(cost, 4)
            print(f"{chunk_ms:>9} {n_streams:>8} {cost:>25.4f}")
    step_s = step_cost()
    print(f"training step over {N_ROWS * ROW_S} s of audio: {step_s:.2f} s")
    results = {"streaming": costs, "mean_delay_ms": round(delay.mean_ms), "training_step_s": round(step_s, 2)}
    print(json.dumps({**machine(), **results}))


if __name__ == "__main__":
    main()
