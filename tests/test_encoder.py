"""The causal encoder: streaming equals one pass, the future never leaks, and off means original."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.chunking import Chunking
from asr.encoder import CausalEncoder, EncoderJob, EncoderState, step_bounds
from asr.errors import OptionError
from tests.tiny import tiny_whisper

CHUNKS_MS = [40, 80, 160, 300, 600, 1000]


@pytest.fixture(scope="module")
def encoder() -> CausalEncoder:
    return CausalEncoder(tiny_whisper().encoder)


def _mel(n_frames: int, *, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 80, 2 * n_frames + 1, generator=torch.Generator().manual_seed(seed)) * 0.5


def _poisoned(encoder: CausalEncoder, chunking: Chunking) -> EncoderState:
    """A fresh state; reading an empty slot would show."""
    state = encoder.init_state(ring_slots=chunking.ring_slots)
    state.keys.fill_(torch.nan)
    state.values.fill_(torch.nan)
    return state


def _job(mel: torch.Tensor, state: EncoderState, chunking: Chunking, *, end: int) -> EncoderJob:
    """The step that ends at frame ``end``."""
    at = state.position
    window = torch.nn.functional.pad(mel, (2, 0))[..., 2 * at : 2 * end + 3]
    return EncoderJob(window, state, chunking.left_context, chunking.n_final(end) - at)


@torch.no_grad()
def _stream(encoder: CausalEncoder, mel: torch.Tensor, chunking: Chunking) -> torch.Tensor:
    """The final frames of a signal."""
    state, frames = _poisoned(encoder, chunking), []
    end = chunking.next_end(0)
    while 2 * end + 1 <= mel.shape[-1]:
        job = _job(mel, state, chunking, end=end)
        frames.append(encoder.step([job])[0][:, : job.n_final])
        end = chunking.next_end(end)
    return torch.cat(frames, dim=1)


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


@pytest.mark.parametrize(
    ("chunk_ms", "right_context_ms"), [(40, 20), (80, 300), (160, 840), (300, 300), (600, 400), (980, 20)]
)
def test_streaming_with_right_context_equals_one_pass(
    encoder: CausalEncoder, chunk_ms: int, right_context_ms: int
) -> None:
    """Frames computed again with what came after them are those of one pass that has copies of it."""
    chunking = Chunking.from_ms(chunk_ms, left_context_s=2.0, right_context_ms=right_context_ms)
    mel = _mel(400)
    streamed = _stream(encoder, mel, chunking)
    with torch.no_grad():
        whole = encoder.forward(mel, chunking)[:, : streamed.shape[1]]
    assert streamed.shape[1] > 300
    torch.testing.assert_close(streamed, whole, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_first_step_may_have_any_length(encoder: CausalEncoder) -> None:
    """As after a restart: its frames see one another, and the ring keeps what the next ones see."""
    chunking = Chunking(5, initial=11, left_context=20, right_context=8)  # 60 frames, 33 slots
    mel = _mel(120)
    streamed = _stream(encoder, mel, chunking)
    torch.testing.assert_close(
        streamed, encoder.forward(mel, chunking)[:, : streamed.shape[1]], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("right_context_ms", [0, 260])
@pytest.mark.parametrize("chunk_ms", CHUNKS_MS[:-1])
def test_future_never_leaks(encoder: CausalEncoder, chunk_ms: int, right_context_ms: int) -> None:
    """Changing the audio after a step and its declared latency leaves every final frame as it was."""
    chunking = Chunking.from_ms(chunk_ms, right_context_ms=right_context_ms)
    end = chunking.first_size + 4 * chunking.size
    mel = _mel(end + 60)
    later = mel.clone()
    later[..., 2 * end + encoder.latency :] += 3.0
    with torch.no_grad():
        before, after = encoder.forward(mel, chunking), encoder.forward(later, chunking)
    n_final = chunking.n_final(end)
    assert torch.equal(before[:, :n_final], after[:, :n_final])
    assert not torch.allclose(before[:, n_final:end], after[:, n_final:end]) or n_final == end
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
        Chunking(
            data.draw(st.integers(2, 12)),
            data.draw(st.integers(0, 2)),
            data.draw(st.integers(5, 40)),
            data.draw(st.integers(0, 20)),
        )
        for _ in range(data.draw(st.integers(2, 4)))
    ]
    mels = [_mel(60, seed=seed) for seed in range(len(chunkings))]
    states = [_poisoned(encoder, chunking) for chunking in chunkings]
    ends = [chunking.next_end(0) for chunking in chunkings]
    frames: list[list[torch.Tensor]] = [[] for _ in chunkings]
    with torch.no_grad():
        while due := [i for i, end in enumerate(ends) if end <= 60]:
            going = sorted(data.draw(st.sets(st.sampled_from(due), min_size=1)))
            jobs = [_job(mels[i], states[i], chunkings[i], end=ends[i]) for i in going]
            for i, job, part in zip(going, jobs, encoder.step(jobs), strict=True):
                frames[i].append(part[:, : job.n_final])
                ends[i] = chunkings[i].next_end(ends[i])
        for mel, chunking, parts in zip(mels, chunkings, frames, strict=True):
            if parts:
                streamed = torch.cat(parts, dim=1)
                whole = encoder.forward(mel, chunking)[:, : streamed.shape[1]]
                torch.testing.assert_close(streamed, whole, atol=1e-4, rtol=0)


def test_a_copied_state_goes_its_own_way(encoder: CausalEncoder) -> None:
    """Steps from a copy leave the original as it was, and assigning the copy back undoes steps."""
    chunking = Chunking(4, initial=1, left_context=12)
    mel = _mel(40)
    state = _poisoned(encoder, chunking)

    def step(end: int) -> torch.Tensor:
        return encoder.step([_job(mel, state, chunking, end=end)])[0]

    with torch.no_grad():
        for end in (8, 12, 16):
            step(end)
        mark = state.copy()
        first = step(20)
        step(24)
        state.assign(mark)
        torch.testing.assert_close(step(20), first)


@pytest.mark.parametrize("chunk_ms", [0, 20, 50, 1020])
def test_wrong_chunk_sizes_are_refused(chunk_ms: int) -> None:
    """The message names the range."""
    with pytest.raises(OptionError, match="from 40 to 1000"):
        Chunking.from_ms(chunk_ms)


def test_chunk_bounds() -> None:
    """The first chunk is extended; the others follow it without gaps."""
    start, end = step_bounds(Chunking(3, initial=1, left_context=9), torch.arange(13))
    assert start.tolist() == [0] * 6 + [6] * 3 + [9] * 3 + [12]
    assert end.tolist() == [6] * 6 + [9] * 3 + [12] * 3 + [15]


def test_chunk_bounds_with_right_context() -> None:
    """A frame becomes final in the first step that ends late enough after it."""
    chunking = Chunking(3, initial=1, left_context=9, right_context=4)
    start, end = step_bounds(chunking, torch.arange(10))
    assert end.tolist() == [6] * 2 + [9] * 3 + [12] * 3 + [15] * 2
    assert start.tolist() == [0] * 2 + [2] * 3 + [5] * 3 + [8] * 2
    assert [chunking.n_final(n) for n in (6, 9, 12)] == [2, 5, 8]


@pytest.mark.parametrize(("chunk_ms", "right_context_ms"), [(300, -20), (300, 30), (300, 720), (1000, 20)])
def test_wrong_right_contexts_are_refused(chunk_ms: int, right_context_ms: int) -> None:
    """The message names the range, which the chunk decides."""
    with pytest.raises(OptionError, match=f"from 0 to {1000 - chunk_ms} with chunks of {chunk_ms} ms"):
        Chunking.from_ms(chunk_ms, right_context_ms=right_context_ms)
