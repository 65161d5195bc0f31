"""The truncated vocabulary spells everything, with Whisper's own ids."""

import sys

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from whisper.tokenizer import get_tokenizer

from asr.bpe import PIECES, TruncatedBpe
from asr.errors import OptionError
from asr.words import Vocabulary

TOKENIZERS = {multilingual: get_tokenizer(multilingual) for multilingual in (False, True)}
BPES = {multilingual: TruncatedBpe.of(tokenizer, 1024) for multilingual, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize("multilingual", [False, True])
def test_every_character_round_trips(multilingual: bool) -> None:
    """All of Unicode except surrogates, which are no characters."""
    bpe = BPES[multilingual]
    for start in range(0, sys.maxunicode + 1, 4096):
        text = "".join(chr(c) for c in range(start, start + 4096) if not 0xD800 <= c < 0xE000)
        tokens = bpe.encode(text)
        assert bpe.decode(tokens) == text
        assert all(0 <= token < 1024 for token in tokens)


@given(st.text(), st.booleans())
def test_every_text_round_trips(text: str, multilingual: bool) -> None:
    """Whatever is said, special tokens' spellings included."""
    assert BPES[multilingual].decode(BPES[multilingual].encode(text)) == text
    assert BPES[multilingual].decode(BPES[multilingual].encode("<|endoftext|>" + text))[13:] == text


@pytest.mark.parametrize("multilingual", [False, True])
def test_ids_are_whispers(multilingual: bool) -> None:
    """A token has the bytes of Whisper's token of the same id; all single bytes are there."""
    ours, theirs = BPES[multilingual].encoding, TOKENIZERS[multilingual].encoding
    pieces = [ours.decode_single_token_bytes(token) for token in range(1024)]
    assert pieces == [theirs.decode_single_token_bytes(token) for token in range(1024)]
    assert {bytes([byte]) for byte in range(256)} <= set(pieces)


def test_the_whole_vocabulary_is_whispers_encoding() -> None:
    """Without truncation, texts are cut and merged exactly as Whisper does it."""
    tokenizer = TOKENIZERS[False]
    whole = TruncatedBpe.of(tokenizer, tokenizer.eot)
    for text in (" It's  we'll, 1984\n\n isn't\tit?", "naïve — “quoted” 日本語 🙂🙂 ", "A" * 100):
        assert whole.encode(text) == tokenizer.encoding.encode_ordinary(text)
    assert isinstance(tokenizer.encoding, tiktoken.Encoding)
    assert tokenizer.encoding._pat_str == PIECES


def test_words_begin_with_blanks() -> None:
    """The engine's word boundaries work on truncated tokens."""
    bpe = BPES[False]
    tokens = bpe.encode(" Hello there, recognizers.")
    vocabulary = Vocabulary(bpe)
    starts = [*vocabulary.word_starts(tokens), len(tokens)]
    words = [vocabulary.text(tokens[a:b]) for a, b in zip(starts, starts[1:], strict=False)]
    assert words == [" Hello", " there,", " recognizers."]


@pytest.mark.parametrize("n_tokens", [255, 60_000])
def test_wrong_sizes_are_refused(n_tokens: int) -> None:
    """The message names the range."""
    with pytest.raises(OptionError, match="256 to 50256"):
        TruncatedBpe.of(TOKENIZERS[False], n_tokens)
