"""The transducer's predictor, joiner and loss, against plain references on small cases."""

import pytest
import torch
from torchaudio.functional import rnnt_loss

import asr.transducer_loss
from asr.transducer import Transducer
from asr.transducer_loss import Texts, allowed_cells, anywhere, transducer_loss

V, D = 5, 7
TOKENS = torch.tensor([[1, 3, 3, 0], [4, 2, 9, 9]])  # the second text has two tokens, then padding
LENGTHS, N_FRAMES = torch.tensor([4, 2]), torch.tensor([6, 4])


def _transducer(seed: int = 0) -> Transducer:
    torch.manual_seed(seed)
    return Transducer(V, frame_width=D, embedding_width=6, joint_width=8)


def _frames(seed: int = 0, n_frames: int = 6) -> torch.Tensor:
    return torch.randn(2, n_frames, D, generator=torch.Generator().manual_seed(seed))


def _reference(transducer: Transducer, frames: torch.Tensor, texts: Texts, fast_emit: float) -> torch.Tensor:
    """Graves's forward recursion in log-space, one cell after the other; windows per token transition."""
    losses = []
    for b in range(len(frames)):
        n, tokens = int(N_FRAMES[b]), texts.tokens[b, : texts.lengths[b]].tolist()
        predicted = transducer.predict(torch.tensor([tokens], dtype=torch.int64))[0]
        logits = transducer.join(transducer.transcribe(frames[b, :n])[:, None], predicted[None])
        log_p = logits.log_softmax(-1)
        alpha: dict[tuple[int, int], torch.Tensor] = {(0, 0): torch.zeros(())}
        for t in range(n):
            for u in range(len(tokens) + 1):
                arrivals = []
                if (t - 1, u) in alpha:
                    arrivals.append(alpha[t - 1, u] + log_p[t - 1, u, V])
                if (
                    u
                    and (t, u - 1) in alpha
                    and texts.first_frames[b, u - 1] <= t <= texts.last_frames[b, u - 1]
                ):
                    label = log_p[t, u - 1, tokens[u - 1]]
                    arrivals.append(alpha[t, u - 1] + label + fast_emit * (label - label.detach()))
                if arrivals:
                    alpha[t, u] = torch.logsumexp(torch.stack(arrivals), 0)
        losses.append(-(alpha[n - 1, len(tokens)] + log_p[n - 1, len(tokens), V]))
    return torch.stack(losses)


def _windowed() -> Texts:
    first = torch.tensor([[0, 1, 1, 3], [1, 2, 0, 0]])
    last = torch.tensor([[1, 2, 3, 5], [1, 3, 0, 0]])
    return Texts(TOKENS, LENGTHS, first, last)


@pytest.mark.parametrize("fast_emit", [0.0, 0.5])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("per_piece", [1000, 7])
def test_loss_and_gradients_are_those_of_the_definition(
    windowed: bool, fast_emit: float, per_piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every parameter's and every frame's gradient, with and without windows, in one piece and in several."""
    monkeypatch.setattr(asr.transducer_loss, "CELLS_PER_PIECE", per_piece)
    transducer, frames = _transducer(), _frames().requires_grad_()
    texts = _windowed() if windowed else anywhere(TOKENS, LENGTHS, n_frames=6)
    wanted = [frames, *transducer.parameters()]
    ours = transducer_loss(transducer, frames, N_FRAMES, texts, fast_emit=fast_emit)
    theirs = _reference(transducer, frames, texts, fast_emit)
    torch.testing.assert_close(ours, theirs)
    weights = torch.tensor([1.0, 0.3])
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), wanted),
        torch.autograd.grad((theirs * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_without_windows_it_is_torchaudios_loss() -> None:
    """The two-symbol lattice gives what torchaudio gives for all symbols."""
    transducer, frames = _transducer(), _frames()
    tokens = torch.where(TOKENS < V, TOKENS, 0)
    logits = transducer.join(transducer.transcribe(frames)[:, :, None], transducer.predict(tokens)[:, None])
    theirs = rnnt_loss(logits, tokens.int(), N_FRAMES.int(), LENGTHS.int(), blank=V, reduction="none")
    ours = transducer_loss(transducer, frames, N_FRAMES, anywhere(TOKENS, LENGTHS, n_frames=6))
    torch.testing.assert_close(ours, theirs)


def test_padding_does_not_matter() -> None:
    """Longer paddings of frames and texts change nothing."""
    transducer, frames = _transducer(), _frames()
    texts = _windowed()
    longer = Texts(*(torch.nn.functional.pad(x, (0, 3)) if x.dim() == 2 else x for x in vars(texts).values()))
    poisoned = torch.nn.functional.pad(frames, (0, 0, 0, 5), value=1e4)
    poisoned[1, 4:] = 1e4
    torch.testing.assert_close(
        transducer_loss(transducer, poisoned, N_FRAMES, longer),
        transducer_loss(transducer, frames, N_FRAMES, texts),
    )


def test_empty_texts_want_blanks_only() -> None:
    """Silence beside speech and silence alone cost the blanks of all frames."""
    transducer, frames = _transducer(), _frames()
    nothing = anywhere(TOKENS[:, :0], torch.tensor([0, 0]), n_frames=6)
    beside = anywhere(TOKENS, torch.tensor([4, 0]), n_frames=6)
    blank = transducer.join(
        transducer.transcribe(frames), transducer.predict(torch.zeros(2, 0, dtype=torch.int64))
    ).log_softmax(-1)[..., V]
    expected = -torch.stack([blank[0].sum(), blank[1, :4].sum()])
    torch.testing.assert_close(transducer_loss(transducer, frames, N_FRAMES, nothing), expected)
    torch.testing.assert_close(transducer_loss(transducer, frames, N_FRAMES, beside)[1], expected[1])


def test_windows_leave_a_band() -> None:
    """A cell is allowed while its last token may have come and the next one need not have."""
    cells = allowed_cells(_windowed(), N_FRAMES, 6)
    assert [row.nonzero().flatten().tolist() for row in cells[0].T] == [
        [0, 1],
        [0, 1, 2],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [3, 4, 5],
    ]
    assert [row.nonzero().flatten().tolist() for row in cells[1].T] == [[0, 1], [1, 2, 3], [2, 3], [], []]


def test_fast_emit_moves_tokens_forward() -> None:
    """Trained on a text that fits anywhere, tokens come earlier with FastEmit than without."""
    expected_frames = []
    for fast_emit in (0.0, 1.0):
        transducer, frames = _transducer(), _frames(n_frames=6).detach()
        optimizer = torch.optim.Adam(transducer.parameters(), lr=0.02)
        texts = anywhere(TOKENS, LENGTHS, n_frames=6)
        for _ in range(60):
            optimizer.zero_grad()
            transducer_loss(transducer, frames, N_FRAMES, texts, fast_emit=fast_emit).sum().backward()
            optimizer.step()
        with torch.no_grad():
            encoded, predicted = transducer.transcribe(frames), transducer.predict(TOKENS[:1])
            blank = transducer.join(encoded[0], predicted[0, 0]).log_softmax(-1)[:, V]
        stays = torch.cat([torch.zeros(1), blank.cumsum(0)]).exp()  # probability that nothing came by frame t
        expected_frames.append(float(stays[1:].sum()))
    assert expected_frames[1] < 0.8 * expected_frames[0]


def test_the_predictor_sees_two_tokens() -> None:
    """Older tokens do not matter, the last two do."""
    transducer = _transducer()
    tokens = torch.tensor([[0, 1, 2], [3, 1, 2], [0, 4, 2], [0, 1, 4]])
    last = transducer.predict(tokens)[:, -1]
    torch.testing.assert_close(last[0], last[1])
    assert not torch.allclose(last[0], last[2], atol=1e-3)
    assert not torch.allclose(last[0], last[3], atol=1e-3)


def test_embeddings_begin_as_whispers() -> None:
    """Distances between tokens survive the turn when no axis is left out."""
    transducer = Transducer(30, frame_width=D, embedding_width=6, joint_width=8)
    table = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    transducer.start_from_embeddings(table)
    ours = transducer.predictor.embedding.weight.detach()[:30]
    ratio = torch.pdist(ours) / torch.pdist(table[:30])
    assert ours.std() == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), atol=1e-4, rtol=1e-3)
