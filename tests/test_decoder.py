"""The decoder with growing caches gives what openai-whisper's own decoder gives."""

import pytest
import torch

from asr.decoder import Decoder
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
        cross = decoder.new_cross_cache(max_frames=64)
        cross.keys.fill_(float("nan"))
        cross.values.fill_(float("nan"))
        for piece in frames[row : row + 1].split([7, 13, 30], dim=1):
            decoder.append_frames(piece, cross)
        state = decoder.new_self_cache()
        state.keys.fill_(float("nan"))
        state.values.fill_(float("nan"))
        pieces = tokens[row : row + 1].split([4, 1, 1, 3], dim=1)
        hidden = torch.cat([decoder.step(piece, state, cross).hidden for piece in pieces], dim=1)
        expected = model.decoder(tokens[row : row + 1], frames[row : row + 1])
        torch.testing.assert_close(decoder.logits(hidden), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_truncate_then_step_forgets(decoder: Decoder) -> None:
    """After truncation other tokens continue as if the dropped ones had never been."""
    tokens, frames = _inputs()
    cross = decoder.project_frames(frames[:1])
    state, fresh = decoder.new_self_cache(), decoder.new_self_cache()
    decoder.step(tokens[:1, :6], state, cross)
    state.truncate(3)
    again = decoder.step(tokens[1:, :4], state, cross).hidden
    decoder.step(tokens[:1, :3], fresh, cross)
    torch.testing.assert_close(again, decoder.step(tokens[1:, :4], fresh, cross).hidden)


@torch.no_grad()
def test_reorder_copies_hypotheses(decoder: Decoder) -> None:
    """A reordered cache continues the hypothesis that each row was made a copy of."""
    tokens, frames = _inputs()
    cross = decoder.project_frames(frames[:1])
    state = decoder.new_self_cache(n_rows=2)
    decoder.step(tokens[:, :5], state, cross)
    state.reorder(torch.tensor([1, 1]))
    hidden = decoder.step(tokens[1:, 5:6].expand(2, 1), state, cross).hidden
    torch.testing.assert_close(hidden[0], hidden[1])


@torch.no_grad()
def test_attention_rows_are_distributions(decoder: Decoder) -> None:
    """Each alignment head's row sums to one over the frames heard."""
    tokens, frames = _inputs()
    output = decoder.step(
        tokens[:1], decoder.new_self_cache(), decoder.project_frames(frames[:1]), with_attention=True
    )
    assert output.attention is not None
    assert output.attention.shape == (1, 2, 9, 50)
    torch.testing.assert_close(output.attention.sum(-1), torch.ones(1, 2, 9))
