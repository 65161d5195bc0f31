"""The transducer's vocabulary: the first ranks of Whisper's own byte-pair encoding.

Ranks are merges in the order in which they were learned, after the 256 single bytes. Leaving out the later
ones leaves a smaller encoding with the same token ids, which still spells any text.
"""

from __future__ import annotations

from dataclasses import dataclass

import tiktoken
from whisper.tokenizer import Tokenizer

from asr.errors import OptionError

N_BYTES = 256
# How Whisper's encodings (GPT-2's rule) cut a text into pieces, across which nothing is merged.
PIECES = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


@dataclass(frozen=True)
class TruncatedBpe:
    """A part of a Whisper tokenizer; as much of its interface as text needs.

    Attributes:
        encoding: The encoding with V tokens, none of them special.
        language: Code of the language that it is used for.
    """

    encoding: tiktoken.Encoding
    language: str

    @classmethod
    def of(cls, tokenizer: Tokenizer, n_tokens: int) -> TruncatedBpe:
        """Keep the first ranks of an encoding.

        Args:
            tokenizer: Whisper's.
            n_tokens: V, from 256 to the number of its text tokens.

        Returns:
            The truncated encoding; its ids are Whisper's.

        Raises:
            OptionError: V is outside its range.
        """
        whole = tokenizer.encoding
        if not N_BYTES <= n_tokens <= tokenizer.eot:
            raise OptionError(f"the vocabulary must have {N_BYTES} to {tokenizer.eot} tokens, not {n_tokens}")
        ranks = {whole.decode_single_token_bytes(rank): rank for rank in range(n_tokens)}
        encoding = tiktoken.Encoding(
            f"{whole.name}-{n_tokens}", pat_str=PIECES, mergeable_ranks=ranks, special_tokens={}
        )
        return cls(encoding, tokenizer.language or "en")

    @property
    def n_tokens(self) -> int:
        """V; blank comes after the tokens, so this is its id."""
        return self.encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return self.encoding.encode_ordinary(text)

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens; bytes that are no text become U+FFFD."""
        return self.encoding.decode(tokens)
