"""The decoder with growing caches gives what openai-whisper's own decoder gives."""

import pytest
import torch

from asr.decoder import TEXT_STEP, Decoder, DecoderJob, FrameCache
from tests.tiny import tiny_whisper


@pytest.fixture(scope="module")
def model():  # noqa: ANN201
    return tiny_whisper()


@pytest.fixture(scope="module")
def decoder(model) -> Decoder:  # noqa: ANN001
    return Decoder(model.decoder, model.alignment_heads)


def _inputs(n_tokens: int = 9, n_frames: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randint(0, 50_000, (2, n_tokens), generator=generator),
        torch.randn(2, n_frames, 64, generator=generator),
    )


@torch.no_grad()
def test_forward_equals_whispers_decoder(model, decoder: Decoder) -> None:  # noqa: ANN001
    """Whole sequences under a causal mask give Whisper's own logits."""
    tokens, frames = _inputs()
    n = tokens.shape[1]
    output = decoder.forward(
        tokens,
        decoder.project_frames(frames),
        positions=torch.arange(n)[None],
        self_mask=torch.ones(n, n, dtype=torch.bool).tril(),
    )
    torch.testing.assert_close(
        decoder.logits(output.hidden), model.decoder(tokens, frames), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_step_equals_forward_with_frames_arriving_first(decoder: Decoder, model) -> None:  # noqa: ANN001
    """Frames appended in pieces and tokens in pieces give one pass; unwritten room never matters."""
    tokens, frames = _inputs()
    for row in range(2):
        cross = decoder.new_frame_cache(max_frames=64)
        cross.frames.fill_(float("nan"))
        for piece in frames[row : row + 1].split([7, 13, 30], dim=1):
            decoder.append_frames([(piece, cross)])
        state = decoder.new_self_cache()
        state.keys.fill_(float("nan"))
        state.values.fill_(float("nan"))
        pieces = tokens[row : row + 1].split([4, 1, 1, 3], dim=1)
        jobs = [DecoderJob(piece, state, cross, n_logits=piece.shape[1]) for piece in pieces]
        logits = torch.cat([decoder.step([job])[0].logits for job in jobs], dim=1)
        expected = model.decoder(tokens[row : row + 1], frames[row : row + 1])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_streams_share_a_step(decoder: Decoder) -> None:
    """Streams with other frames, places, token and hypothesis counts get together what each gets alone."""
    tokens, frames = _inputs(n_tokens=12)
    sizes = [(1, 7, 30), (2, 1, 50), (1, 3, 11)]  # hypotheses, new tokens, frames

    def jobs() -> list[DecoderJob]:
        made = []
        for k, (n_rows, n_new, n_frames) in enumerate(sizes):
            text = decoder.new_self_cache(n_rows=n_rows)
            cross = FrameCache(frames[:1, :n_frames] + k, n_frames)
            decoder.step([DecoderJob(tokens[:n_rows, : k + 1], text, cross)])
            made.append(
                DecoderJob(tokens[:n_rows, k + 1 : k + 1 + n_new], text, cross, n_logits=min(2, n_new))
            )
        return made

    together = decoder.step(jobs())
    for k, (job, result) in enumerate(zip(jobs(), together, strict=True)):
        alone = decoder.step([job])[0]
        assert job.text.n_tokens == k + 1 + sizes[k][1]
        torch.testing.assert_close(result.logits, alone.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(result.attention, alone.attention, atol=1e-5, rtol=0)


@torch.no_grad()
def test_truncate_then_step_forgets(decoder: Decoder) -> None:
    """After truncation other tokens continue as if the dropped ones had never been."""
    tokens, frames = _inputs()
    cross = FrameCache(frames[:1], frames.shape[1])
    state, fresh = decoder.new_self_cache(), decoder.new_self_cache()
    decoder.step([DecoderJob(tokens[:1, :6], state, cross)])
    state.truncate(3)
    again = decoder.step([DecoderJob(tokens[1:, :4], state, cross)])[0].logits
    decoder.step([DecoderJob(tokens[:1, :3], fresh, cross)])
    expected = decoder.step([DecoderJob(tokens[1:, :4], fresh, cross)])[0].logits
    torch.testing.assert_close(again, expected, rtol=0, atol=5e-5)  # six tokens at once round otherwise


@torch.no_grad()
def test_reorder_copies_hypotheses(decoder: Decoder) -> None:
    """A reordered cache continues the hypothesis that each row was made a copy of."""
    tokens, frames = _inputs()
    cross = FrameCache(frames[:1], frames.shape[1])
    state = decoder.new_self_cache(n_rows=2)
    decoder.step([DecoderJob(tokens[:, :5], state, cross)])
    state.reorder(torch.tensor([1, 1]))
    logits = decoder.step([DecoderJob(tokens[1:, 5:6].expand(2, 1), state, cross)])[0].logits
    torch.testing.assert_close(logits[0], logits[1])


@torch.no_grad()
def test_attention_rows_are_distributions(decoder: Decoder) -> None:
    """Each alignment head's row sums to one over the frames heard."""
    tokens, frames = _inputs()
    job = DecoderJob(tokens[:1], decoder.new_self_cache(), FrameCache(frames[:1], frames.shape[1]))
    output = decoder.step([job])[0]
    assert output.attention.shape == (1, 2, 9, 50)
    torch.testing.assert_close(output.attention.sum(-1), torch.ones(1, 2, 9))


@torch.no_grad()
def test_rows_with_audio_of_their_own(decoder: Decoder, model) -> None:  # noqa: ANN001
    """A job whose rows have different frames gives Whisper's logits and attention of each."""
    tokens, frames = _inputs()
    job = DecoderJob(
        tokens, decoder.new_self_cache(n_rows=2), FrameCache(frames, frames.shape[1]), n_logits=9
    )
    together = decoder.step([job])[0]
    torch.testing.assert_close(together.logits, model.decoder(tokens, frames), atol=1e-4, rtol=0)
    for row in range(2):
        cross = FrameCache(frames[row : row + 1], frames.shape[1])
        alone = decoder.step([DecoderJob(tokens[row : row + 1], decoder.new_self_cache(), cross)])[0]
        torch.testing.assert_close(together.attention[row : row + 1], alone.attention, atol=1e-5, rtol=0)


@torch.no_grad()
def test_attention_is_that_of_the_projected_keys(decoder: Decoder) -> None:
    """Without keys of frames, a step's alignment is that of a forward with keys."""
    tokens, frames = _inputs()
    n = tokens.shape[1]
    whole = decoder.forward(
        tokens[:1],
        decoder.project_frames(frames[:1]),
        positions=torch.arange(n)[None],
        self_mask=torch.ones(n, n, dtype=torch.bool).tril(),
        with_attention=True,
    )
    job = DecoderJob(tokens[:1], decoder.new_self_cache(), FrameCache(frames[:1], frames.shape[1]))
    torch.testing.assert_close(decoder.step([job])[0].attention, whole.attention, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_text_cache_grows_and_shrinks(decoder: Decoder, model) -> None:  # noqa: ANN001
    """A text beyond the first room goes on as in one pass; a reset gives the room back."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 50_000, (1, 2 * TEXT_STEP + 9), generator=generator)
    _, frames = _inputs()
    cross, state = FrameCache(frames[:1], frames.shape[1]), decoder.new_self_cache()
    small = state.n_bytes
    pieces = tokens.split(TEXT_STEP - 5, dim=1)
    logits = [decoder.step([DecoderJob(piece, state, cross)])[0].logits for piece in pieces]
    expected = model.decoder(tokens, frames[:1])[:, -1:]
    torch.testing.assert_close(logits[-1], expected, atol=1e-4, rtol=0)
    assert state.n_bytes == 3 * small
    state.reset()
    assert state.n_bytes == small and state.n_tokens == 0
