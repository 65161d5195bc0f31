"""Minutes of audio across many anchors: every window is exactly one pass over its own stretch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from asr.chunking import Chunking
from asr.decoder import Decoder
from asr.encoder import FRAME_SAMPLES, CausalEncoder
from asr.features import LogMel, RunningNorm
from asr.slots import HISTORY_FRAMES, HISTORY_ROOM, new_slot
from asr.window import Window
from tests.tiny import tiny_whisper

N_SAMPLES = 3 * 60 * 16_000


@pytest.fixture(scope="module")
def signal() -> torch.Tensor:
    """Three minutes of noise whose level changes, so that the running maximum matters."""
    rng = np.random.default_rng(0)
    level = np.interp(np.arange(N_SAMPLES), np.arange(0, N_SAMPLES, 16_000), rng.uniform(0, 0.4, 180))
    return torch.from_numpy((rng.standard_normal(N_SAMPLES) * level).astype(np.float32))[None]


@torch.no_grad()
@pytest.mark.parametrize(
    ("chunk_ms", "right_context_ms"), [(40, 0), (300, 0), (1000, 0), (80, 300), (300, 300)]
)
def test_every_window_is_one_pass(signal: torch.Tensor, chunk_ms: int, right_context_ms: int) -> None:
    """Over random blocks and random anchors, streamed frames equal the masked forward from the anchor."""
    model = tiny_whisper()
    encoder, mel = CausalEncoder(model.encoder), LogMel(80)
    chunking = Chunking.from_ms(chunk_ms, right_context_ms=right_context_ms)
    decoder = Decoder(model.decoder, model.alignment_heads)
    slot = new_slot(encoder, decoder, mel, left_context=chunking.left_context)
    for tensor in (slot.encoder.keys, slot.encoder.values, slot.cross.frames, slot.mel):
        tensor.fill_(torch.nan)  # whatever was not written must never be read
    window = Window(mel, chunking, slot)
    rng = np.random.default_rng(chunk_ms)
    windows: list[tuple[int, int, list[torch.Tensor]]] = [(0, chunking.first_size, [])]
    heard, limit = 0, 1400
    while heard < N_SAMPLES:
        block = int(rng.integers(0, 8000))
        block = min(block, window.due - heard, N_SAMPLES - heard)
        window.hear(signal[:, heard : heard + block])
        heard += block
        if heard < window.due:
            continue
        if window.n_next > limit:
            n_back = chunking.first_size + int(rng.integers(0, 250 // chunking.size)) * chunking.size
            anchor = window.next_end // mel.block_size - 2 * n_back
            window.restart(anchor, n_frames=n_back)
            windows.append((anchor, n_back, []))
            limit = int(rng.integers(500, 1450))
        job = window.next_job()
        frames = encoder.step([job.encoder])[0]
        decoder.append_frames([(frames, job.cross)])
        windows[-1][2].append(frames[:, : job.encoder.n_final])
        window.accept()
        assert window.cross.n_frames == window.n_heard
    assert len(windows) >= 6
    raw = mel.forward(signal)
    for anchor, n_first, parts in windows:
        streamed = torch.cat(parts, dim=1)
        stretch = raw[..., anchor : anchor + 2 * streamed.shape[1] + 1]
        from_anchor = replace(chunking, initial=n_first // chunking.size - 1)
        whole = encoder.forward(RunningNorm().forward(stretch)[0], from_anchor)
        # The stretch ends where frames are final, and one pass over it lacks what came after.
        n_known = streamed.shape[1] - (chunking.right_context and chunking.right_context + chunking.size)
        torch.testing.assert_close(streamed[:, :n_known], whole[:, :n_known], atol=2e-4, rtol=0)
    assert window.final_end == anchor * mel.block_size + streamed.shape[1] * FRAME_SAMPLES


def test_history_is_bounded_and_addressed_absolutely(signal: torch.Tensor) -> None:
    """The newest frames can be read by their index in the stream, older ones are refused."""
    from asr.window import MelHistory

    frames = torch.arange(5000.0).expand(1, 80, -1)
    history = MelHistory(torch.zeros(1, 80, HISTORY_ROOM))
    for start in range(0, 5000, 37):
        history.append(frames[..., start : start + 37])
        newest = max(0, history.n_frames - HISTORY_FRAMES)
        assert torch.equal(history.read(newest, history.n_frames), frames[..., newest : history.n_frames])
    with pytest.raises(AssertionError, match="gone"):
        history.read(10, 20)
