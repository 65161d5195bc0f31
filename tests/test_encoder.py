"""The causal encoder: streaming equals one pass, the future never leaks, and off means original."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.encoder import CausalEncoder, Chunking, EncoderJob, EncoderState
from asr.errors import OptionError
from tests.tiny import tiny_whisper

CHUNKS_MS = [40, 80, 160, 300, 600, 1000]


@pytest.fixture(scope="module")
def encoder() -> CausalEncoder:
    return CausalEncoder(tiny_whisper().encoder)


def _mel(n_frames: int, *, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 80, 2 * n_frames + 1, generator=torch.Generator().manual_seed(seed)) * 0.5


def _poisoned(encoder: CausalEncoder, chunking: Chunking, *, step: int | None = None) -> EncoderState:
    """A fresh state with the least room that such steps need; reading an empty slot would show."""
    size = max(chunking.first_size, step or chunking.size)
    state = encoder.init_state(ring_slots=max(size, chunking.left_context + (step or chunking.size)))
    state.keys.fill_(torch.nan)
    state.values.fill_(torch.nan)
    return state


def _step(
    encoder: CausalEncoder, window: torch.Tensor, state: EncoderState, chunking: Chunking
) -> torch.Tensor:
    return encoder.step([EncoderJob(window, state, chunking)])[0]


@torch.no_grad()
def _stream(encoder: CausalEncoder, mel: torch.Tensor, chunking: Chunking) -> torch.Tensor:
    state = _poisoned(encoder, chunking)
    padded = torch.nn.functional.pad(mel, (2, 0))
    frames, at = [], 0
    while True:
        size = chunking.next_size(at)
        if 2 * (at + size) + 1 > mel.shape[-1]:
            return torch.cat(frames, dim=1)
        frames.append(_step(encoder, padded[..., 2 * at : 2 * (at + size) + 3], state, chunking))
        at += size


@pytest.mark.parametrize("chunk_ms", CHUNKS_MS)
@pytest.mark.parametrize("left_context_s", [1.0, 10.0])
def test_streaming_equals_one_pass(encoder: CausalEncoder, chunk_ms: int, left_context_s: float) -> None:
    """Chunk by chunk through the ring cache gives the frames of one masked pass over 29 s."""
    chunking = Chunking.from_ms(chunk_ms, left_context_s=left_context_s)
    mel = _mel(1450)
    streamed = _stream(encoder, mel, chunking)
    with torch.no_grad():
        whole = encoder.forward(mel, chunking)[:, : streamed.shape[1]]
    assert streamed.shape[1] > 1350
    torch.testing.assert_close(streamed, whole, atol=1e-4, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_several_chunks_at_once(encoder: CausalEncoder, data: st.DataObject) -> None:
    """A step over any run of whole chunks equals one chunk at a time."""
    chunking = Chunking(
        data.draw(st.integers(2, 20)), data.draw(st.integers(0, 2)), data.draw(st.integers(5, 60))
    )
    n_chunks = data.draw(st.integers(2, 9))
    n_frames = chunking.first_size + (n_chunks - 1) * chunking.size
    mel = _mel(n_frames, seed=data.draw(st.integers(0, 99)))
    padded = torch.nn.functional.pad(mel, (2, 0))
    largest = chunking.first_size + 3 * chunking.size
    state, at, frames = _poisoned(encoder, chunking, step=largest), 0, []
    with torch.no_grad():
        while at < n_frames:
            size = chunking.next_size(at) + chunking.size * data.draw(st.integers(0, 3))
            size = min(size, n_frames - at)
            frames.append(_step(encoder, padded[..., 2 * at : 2 * (at + size) + 3], state, chunking))
            at += size
        whole = encoder.forward(mel, chunking)
    torch.testing.assert_close(torch.cat(frames, dim=1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk_ms", CHUNKS_MS)
def test_future_never_leaks(encoder: CausalEncoder, chunk_ms: int) -> None:
    """Changing the audio after a chunk and its declared latency leaves every frame up to it as it was."""
    chunking = Chunking.from_ms(chunk_ms)
    end = chunking.first_size + 4 * chunking.size
    mel = _mel(end + 60)
    later = mel.clone()
    later[..., 2 * end + encoder.latency :] += 3.0
    with torch.no_grad():
        before, after = encoder.forward(mel, chunking), encoder.forward(later, chunking)
    assert torch.equal(before[:, :end], after[:, :end])
    assert not torch.allclose(before[:, end:], after[:, end:])


def test_left_context_is_a_limit(encoder: CausalEncoder) -> None:
    """With one layer's reach, audio older than the left context cannot matter; younger audio does."""
    chunking = Chunking(5, initial=0, left_context=10)
    mel = _mel(400)
    reach = chunking.left_context * 3 + 5  # frames, through three layers
    older = mel.clone()
    older[..., : 2 * (395 - reach) - 4] += 3.0
    with torch.no_grad():
        before = encoder.forward(mel, chunking)
        assert torch.equal(before[:, 395:], encoder.forward(older, chunking)[:, 395:])
        younger = mel.clone()
        younger[..., 2 * 390 : 2 * 391] += 3.0
        assert not torch.allclose(before[:, 395:], encoder.forward(younger, chunking)[:, 395:])


def test_one_chunk_over_everything_is_whispers_encoder(encoder: CausalEncoder) -> None:
    """Without causality the frames are those of openai-whisper's own encoder."""
    mel = _mel(1500)
    mel[..., -1] = 0  # Whisper's convolution pads with zeros
    with torch.no_grad():
        ours = encoder.forward(mel, Chunking(1500, initial=0, left_context=1500))
        theirs = encoder.weights(mel[..., :-1])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_streams_share_steps(encoder: CausalEncoder, data: st.DataObject) -> None:
    """Streams of other chunk sizes and left contexts, at other places, get together what each gets alone."""
    chunkings = [
        Chunking(data.draw(st.integers(2, 12)), data.draw(st.integers(0, 2)), data.draw(st.integers(5, 40)))
        for _ in range(data.draw(st.integers(2, 4)))
    ]
    mels = [_mel(60, seed=seed) for seed in range(len(chunkings))]
    states = [_poisoned(encoder, chunking) for chunking in chunkings]
    frames: list[list[torch.Tensor]] = [[] for _ in chunkings]
    with torch.no_grad():
        while True:
            due = [
                i
                for i, c in enumerate(chunkings)
                if states[i].position + c.next_size(states[i].position) <= 60
            ]
            if not due:
                break
            going = data.draw(st.sets(st.sampled_from(due), min_size=1))
            jobs = []
            for i in sorted(going):
                at, size = states[i].position, chunkings[i].next_size(states[i].position)
                window = torch.nn.functional.pad(mels[i], (2, 0))[..., 2 * at : 2 * (at + size) + 3]
                jobs.append(EncoderJob(window, states[i], chunkings[i]))
            for i, part in zip(sorted(going), encoder.step(jobs), strict=True):
                frames[i].append(part)
        for mel, chunking, parts in zip(mels, chunkings, frames, strict=True):
            streamed = torch.cat(parts, dim=1)
            whole = encoder.forward(mel[..., : 2 * streamed.shape[1] + 1], chunking)
            torch.testing.assert_close(streamed, whole, atol=1e-4, rtol=0)


def test_a_copied_state_goes_its_own_way(encoder: CausalEncoder) -> None:
    """Steps from a copy leave the original as it was, and assigning the copy back undoes steps."""
    chunking = Chunking(4, initial=1, left_context=12)
    mel = torch.nn.functional.pad(_mel(40), (2, 0))
    state = _poisoned(encoder, chunking)
    with torch.no_grad():
        for at, size in ((0, 8), (8, 4), (12, 4)):
            _step(encoder, mel[..., 2 * at : 2 * (at + size) + 3], state, chunking)
        mark = state.copy()
        first = _step(encoder, mel[..., 32 : 2 * 20 + 3], state, chunking)
        _step(encoder, mel[..., 40 : 2 * 24 + 3], state, chunking)
        state.assign(mark)
        torch.testing.assert_close(_step(encoder, mel[..., 32 : 2 * 20 + 3], state, chunking), first)


@pytest.mark.parametrize("chunk_ms", [0, 20, 50, 1020])
def test_wrong_chunk_sizes_are_refused(chunk_ms: int) -> None:
    """The message names the range."""
    with pytest.raises(OptionError, match="from 40 to 1000"):
        Chunking.from_ms(chunk_ms)


def test_chunk_bounds() -> None:
    """The first chunk is extended; the others follow it without gaps."""
    start, end = Chunking(3, initial=1, left_context=9).bounds(torch.arange(13))
    assert start.tolist() == [0] * 6 + [6] * 3 + [9] * 3 + [12]
    assert end.tolist() == [6] * 6 + [9] * 3 + [12] * 3 + [15]
