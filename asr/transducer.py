"""A transducer with a stateless predictor (Graves, arXiv 1211.3711; Ghodsi et al., ICASSP 2020).

At each frame the joiner chooses, given the last two tokens, the next token or blank, which moves on to the
next frame. Axis letters: B streams, T frames, U tokens, D frame width, E embedding width, J joint width, V
tokens; blank has id V.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

N_CONTEXT = 2  # tokens that the predictor sees


class Predictor(nn.Module):
    """Embedding and convolution over the last two tokens. Id V stands for "nothing was said before"."""

    def __init__(self, n_tokens: int, *, embedding_width: int, joint_width: int) -> None:
        """Make fresh weights.

        Args:
            n_tokens: V.
            embedding_width: E.
            joint_width: J.
        """
        super().__init__()
        self.embedding = nn.Embedding(n_tokens + 1, embedding_width)
        self.conv = nn.Conv1d(embedding_width, embedding_width, N_CONTEXT)
        self.out = nn.Linear(embedding_width, joint_width)

    def forward(self, context: Tensor) -> Tensor:
        """Predict from contexts that slide over a text.

        Args:
            context: ``[B, U + 1]`` int64 tokens, oldest first.

        Returns:
            ``[B, U, J]``: what may follow each two neighbours.
        """
        x = self.conv(self.embedding(context).transpose(1, 2)).transpose(1, 2)
        output: Tensor = self.out(nn.functional.silu(x))
        return output


class Transducer(nn.Module):
    """Predictor and joiner over the frames of an encoder.

    Attributes:
        blank: Id of blank, V.
    """

    def __init__(self, n_tokens: int, *, frame_width: int, embedding_width: int, joint_width: int) -> None:
        """Make fresh weights.

        Args:
            n_tokens: V.
            frame_width: D.
            embedding_width: E.
            joint_width: J.
        """
        super().__init__()
        self.blank = n_tokens
        self.predictor = Predictor(n_tokens, embedding_width=embedding_width, joint_width=joint_width)
        self.frame_in = nn.Linear(frame_width, joint_width)
        self.out = nn.Linear(joint_width, n_tokens + 1)

    @property
    def first_context(self) -> tuple[int, ...]:
        """What the predictor sees before the first token."""
        return (self.blank,) * N_CONTEXT

    def transcribe(self, frames: Tensor) -> Tensor:
        """The joiner's view ``[B, T, J]`` of encoder frames ``[B, T, D]``."""
        output: Tensor = self.frame_in(frames)
        return output

    def predict(self, tokens: Tensor) -> Tensor:
        """The joiner's view of texts.

        Args:
            tokens: ``[B, U]`` int64 from each text's first token on.

        Returns:
            ``[B, U + 1, J]``: row u is what the first u tokens say of the next.
        """
        before = tokens.new_full((len(tokens), N_CONTEXT), self.blank)
        output: Tensor = self.predictor(torch.cat([before, tokens], dim=1))
        return output

    def join(self, frames: Tensor, texts: Tensor) -> Tensor:
        """Logits of the next token or blank.

        Args:
            frames: ``[..., J]`` from :meth:`transcribe`.
            texts: ``[..., J]`` from :meth:`predict`, broadcastable to the frames.

        Returns:
            ``[..., V + 1]`` float32.
        """
        logits: Tensor = self.out(torch.tanh(frames + texts))
        return logits.float()

    @torch.no_grad()
    def start_from_embeddings(self, table: Tensor) -> None:
        """Let token embeddings begin as another model's, turned to their main axes.

        Args:
            table: ``[V', E']`` with V' at least V and E' at least E, such as Whisper's token embeddings.
        """
        embedding = self.predictor.embedding.weight
        n_tokens, width = self.blank, embedding.shape[1]
        assert table.shape[0] >= n_tokens and table.shape[1] >= width
        known = table[:n_tokens].double()
        known = known - known.mean(dim=0)
        _, _, axes = torch.linalg.svd(known, full_matrices=False)
        turned = known @ axes[:width].T
        embedding[:n_tokens] = (turned / turned.std()).to(embedding)
