"""The streaming log-mel is Whisper's, whatever the split, and needs no more future than it declares."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.audio import log_mel_spectrogram

from asr.features import DYNAMIC_RANGE, PEAK_FLOOR, LogMel, RunningNorm


def _noise(n_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, n_samples, generator=torch.Generator().manual_seed(seed)) * 0.2


def _stream(mel: LogMel, signal: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    state, frames, start = mel.init_state(signal), [], 0
    for size in [*sizes, signal.shape[-1]]:
        out, state = mel.step(signal[:, start : start + size], state)
        frames.append(out)
        start += size
    return torch.cat(frames, dim=-1)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_equals_whispers_spectrogram(n_mels: int) -> None:
    """With the global maximum in place of the running one, the frames are Whisper's."""
    signal = _noise(16_000 * 3)
    raw = LogMel(n_mels).forward(signal)[0]
    scaled = (torch.maximum(raw, raw.max() - DYNAMIC_RANGE) + 4) / 4
    reference = log_mel_spectrogram(torch.nn.functional.pad(signal[0], (0, 16_000)), n_mels)
    torch.testing.assert_close(scaled, reference[:, : scaled.shape[1]], atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2000), max_size=12), st.integers(0, 9000))
def test_any_split_equals_one_pass(sizes: list[int], n_samples: int) -> None:
    """Blocks of any size, empty ones included, give the frames of the whole signal."""
    signal = _noise(n_samples)
    mel = LogMel(80)
    whole = mel.forward(signal)
    streamed = _stream(mel, signal, sizes)
    n_frames = streamed.shape[-1]
    assert n_frames >= (n_samples - mel.latency) // mel.block_size
    torch.testing.assert_close(streamed, whole[..., :n_frames], atol=1e-5, rtol=0)


def test_latency_is_as_declared() -> None:
    """Frame t hears samples below 160 t + latency, and does hear the last of them."""
    mel, signal, t = LogMel(80), _noise(8000), 20
    before = mel.forward(signal)
    edge = mel.block_size * t + mel.latency
    later = signal.clone()
    later[:, edge:] += 1.0
    assert torch.equal(mel.forward(later)[..., : t + 1], before[..., : t + 1])
    sooner = signal.clone()
    sooner[:, edge - 1] += 1.0
    assert not torch.equal(mel.forward(sooner)[..., t], before[..., t])


def test_running_norm_is_causal_and_splits() -> None:
    """Scaling depends on the loudest frame so far only, and any split agrees."""
    raw = torch.randn(2, 80, 50, generator=torch.Generator().manual_seed(1)) * 3 - 4
    norm = RunningNorm()
    whole, peak = norm.forward(raw)
    first, carried = norm.step(raw[..., :17], raw.new_full((2,), PEAK_FLOOR))
    second, carried = norm.step(raw[..., 17:], carried)
    assert torch.equal(torch.cat([first, second], dim=-1), whole)
    assert torch.equal(carried, peak)
    louder = raw.clone()
    louder[..., 30:] += 9
    assert torch.equal(norm.forward(louder)[0][..., :30], whole[..., :30])


def test_leading_silence_is_not_amplified() -> None:
    """Digital silence scales to one constant far below speech."""
    scaled, peak = RunningNorm().forward(LogMel(80).forward(torch.zeros(1, 8000)))
    assert peak.item() == PEAK_FLOOR
    assert scaled.unique().numel() == 1
    assert scaled.max() < -0.8
