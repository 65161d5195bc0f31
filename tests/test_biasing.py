"""Hotwords: the trie by hand and by brute force, the search with a scripted decoder, streams with weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.biasing import MAX_HOTWORDS, ROOT, Biasing, Strength, TokenTrie, check_hotwords, spellings
from asr.engine import Text
from asr.errors import OptionError
from asr.events import Partial
from asr.recognizer import Recognizer
from asr.rules import Context, default_rules
from tests.test_search import EOT, N_VOCAB, TOKENIZER, VOCABULARY, Alone, Script, heard, search, text

TEXT = Text(TOKENIZER, VOCABULARY, default_rules(TOKENIZER, n_vocab=N_VOCAB), N_VOCAB, torch.device("cpu"))
BEGIN, GO_ON = 1.0, 3.0
STRENGTH = Strength(begin=BEGIN, go_on=GO_ON)
TERMS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=4)
TOKENS = st.lists(st.integers(0, 3), max_size=12)


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text))


def listening(script: Script, *terms: str, beam_size: int = 1, strength: Strength = STRENGTH) -> Alone:
    """A search with hotwords over a scripted decoder."""
    made = search(script, beam_size=beam_size)
    bias(made, TEXT.biasing(terms, strength))
    return made


def bias(made: Alone, biasing: Biasing) -> None:
    made.search._biasing = biasing
    made.search._rules = [biasing, *TEXT.rules]


def follows(table: dict[str, dict[str, float]]) -> Script:
    """A script: text so far -> probabilities of what comes next; end-of-text where it says nothing."""

    def script(so_far: tuple[int, ...], n_frames: int) -> dict[int, float]:
        following = table.get(VOCABULARY.text(so_far), {"": 0.99})
        return {ids(piece)[0] if piece else EOT: p for piece, p in following.items()}

    return script


def gained(biasing: Biasing, trie: TokenTrie, tokens: Sequence[int]) -> float:
    """What the tokens of a text gain together while all of it is open."""
    total, node = 0.0, ROOT
    for n_before, token in enumerate(tokens):
        total += float(biasing.gains(node, n_open=n_before)[token])
        node = trie.step(node, token)
    return total


@given(TERMS, TOKENS)
def test_the_trie_knows_the_longest_beginning(terms: list[list[int]], tokens: list[int]) -> None:
    """After any text the node's depth is the longest suffix that begins a term, stepped or walked."""
    trie = TokenTrie([terms])
    beginnings = {tuple(term[:n]) for term in terms for n in range(len(term) + 1)}
    longest = max(n for n in range(len(tokens) + 1) if tuple(tokens[len(tokens) - n :]) in beginnings)
    node = ROOT
    for token in tokens:
        node = trie.step(node, token)
    assert node == trie.walk(tokens)
    assert trie.node(node).depth == longest
    assert len(trie) == len(beginnings) - 1


@given(st.lists(TERMS, min_size=1, max_size=2), TOKENS)
def test_what_no_term_completes_is_taken_back(terms: list[list[list[int]]], tokens: list[int]) -> None:
    """A text without a whole term has gained nothing once it has ended, whatever it began."""
    end = 4
    said = [tokens[i:j] for i in range(len(tokens)) for j in range(i + 1, len(tokens) + 1)]
    whole = [spelling for term in terms for spelling in term if spelling in said]
    trie = TokenTrie(terms)
    total = gained(Biasing(trie, STRENGTH, n_vocab=5), trie, [*tokens, end])
    assert total == pytest.approx(0.0) if not whole else total > 0


@given(TERMS, TOKENS)
def test_what_is_decided_is_not_taken_back(terms: list[list[int]], tokens: list[int]) -> None:
    """A search that decides at once never loses anything, and what it may gain is one token's strength."""
    trie = TokenTrie([terms])
    biasing = Biasing(trie, STRENGTH, n_vocab=5)
    gains = biasing.gains(trie.walk(tokens), n_open=0)
    assert {*gains.tolist()} <= {0.0, BEGIN, GO_ON}


def test_gains_by_hand() -> None:
    """Begin, go on, leave, complete, fall into another term, and a word that only looks complete."""
    a, b, c, d, inside = range(5)
    trie = TokenTrie([[[a, b, c]], [[b, d]], [[d]]], is_inside=lambda token: token == inside)
    biasing = Biasing(trie, STRENGTH, n_vocab=5, inside=torch.tensor([False] * 4 + [True]))
    ab = trie.walk([a, b])
    assert biasing.gains(ROOT, n_open=0).tolist() == [BEGIN, BEGIN, 0, BEGIN, 0]
    left = -(BEGIN + GO_ON)
    # c completes "abc"; d leaves it for "bd", which gives b's strength a second time, now as a beginning.
    expected = [left + BEGIN, left + BEGIN, GO_ON, left + BEGIN + GO_ON, left]
    assert biasing.gains(ab, n_open=2).tolist() == expected
    # With only b still open, a's strength is not taken back.
    expected = [BEGIN - GO_ON, BEGIN - GO_ON, GO_ON, BEGIN + GO_ON - GO_ON, -GO_ON]
    assert biasing.gains(ab, n_open=1).tolist() == expected
    complete = trie.walk([a, b, c])
    assert biasing.gains(complete, n_open=3).tolist() == [BEGIN, BEGIN, 0, BEGIN, -(BEGIN + 2 * GO_ON)]


def test_no_spelling_gains_more_than_the_shortest() -> None:
    """Tokens beyond the shortest spelling's number gain nothing, unless another term goes on with them."""
    a, b, c, d, end = range(5)
    trie = TokenTrie([[[a, b], [c, d, a]], [[c, b, d]]])
    biasing = Biasing(trie, STRENGTH, n_vocab=5)
    assert gained(biasing, trie, [a, b, end]) == gained(biasing, trie, [c, d, a, end]) == BEGIN + GO_ON
    assert gained(biasing, trie, [c, b, d, end]) == BEGIN + 2 * GO_ON
    assert gained(biasing, trie, [c, d, end]) == 0


@pytest.mark.parametrize(
    ("term", "has_blanks", "expected"),
    [
        ("knave", True, [" knave", " Knave"]),
        ("MONT BLANC", True, [" MONT BLANC", " mont blanc", " Mont blanc", " Mont Blanc"]),
        ("McBride", True, [" McBride", " mcbride", " Mcbride"]),
        ("東京", False, ["東京"]),
    ],
)
def test_spellings(term: str, has_blanks: bool, expected: list[str]) -> None:
    """A term as given, in lower case and capitalised, each once."""
    assert spellings(term, has_blanks=has_blanks) == expected


@pytest.mark.parametrize(
    ("hotwords", "message"),
    [
        ("Sagarmatha", "hotwords must be a list of texts, not the one text 'Sagarmatha'"),
        (["a"] * (MAX_HOTWORDS + 1), "at most 100 texts, not 101"),
        (["a", " \n"], r"hotwords\[1\] must have 1 to 100 characters besides blanks around it, not 0"),
        (["a" * 101], r"hotwords\[0\] must have 1 to 100 characters besides blanks around it, not 101"),
        ([b"a"], r"hotwords\[0\] must be a text, not b'a'"),
    ],
)
def test_bad_hotwords(hotwords: Sequence[str], message: str, tiny_recognizer: Recognizer) -> None:
    """The error names the term that is wrong and what was expected."""
    with pytest.raises(OptionError, match=message):
        tiny_recognizer.stream(hotwords=hotwords)


def test_good_hotwords() -> None:
    """Blanks are made single and a term comes once; a hundred terms of a hundred characters are taken."""
    assert check_hotwords(["  Mount \t Everest ", "K2", "K2"]) == ("Mount Everest", "K2")
    terms = [f"{n:02}" + "x" * 98 for n in range(100)]
    assert check_hotwords(terms) == tuple(terms)


@pytest.mark.parametrize("strength", [(-1.0, 0.0), (0.0, 20.5), (math.nan, 1.0), (0.0, math.inf)])
def test_bad_strength(strength: tuple[float, float]) -> None:
    """A strength outside 0 to 20 is refused."""
    with pytest.raises(OptionError, match="from 0 to 20"):
        Strength(*strength)


RON = {
    "": {" Ron": 0.9},
    " Ron": {"nie": 0.8, "icky": 0.2},
    " Ronicky": {" drew": 0.99},
    " Ronnie": {" drew": 0.99},
    " Ronicky drew": {" his": 0.99},
    " Ronnie drew": {" his": 0.99},
    " Ronicky drew his": {" gun": 0.99},
    " Ronnie drew his": {" gun": 0.99},
}


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("term", ["Ronicky", "ronicky", "RONICKY", "Ronicky drew his"])
def test_a_listed_name_wins(beam_size: int, term: str) -> None:
    """The less likely spelling is chosen if it is listed, in whatever case, with the model's confidence."""
    plain = search(follows(RON), beam_size=beam_size)
    plain.advance(heard(50))
    assert "".join(text(plain)) == " Ronnie drew his gun"
    made = listening(follows(RON), term, beam_size=beam_size)
    made.advance(heard(50))
    assert "".join(text(made)) == " Ronicky drew his gun"
    tokens = [*made.committed, *made.draft]
    assert math.exp(tokens[1].logprob) == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_what_is_not_said_does_not_come(beam_size: int) -> None:
    """A listed term that the model gives one chance in a thousand is not written, nor is its beginning."""
    script = follows({"": {" The": 0.97, " Ron": 0.001, "": 0.02}, " The": {" end": 0.99, "icky": 0.001}})
    made = listening(script, "Ronicky", "The", beam_size=beam_size)
    made.advance(heard(50))
    assert "".join(text(made)) == " The end"


DONALD = {
    "": {" Don": 0.6, " Ron": 0.4},
    " Don": {"ald": 0.97},
    " Ron": {"ald": 0.97, "icky": 0.001},
    " Donald": {" came": 0.99},
    " Ronald": {" came": 0.99},
}


@pytest.mark.parametrize("beam_size", [1, 4])
def test_what_an_abandoned_term_gained_is_taken_back(beam_size: int) -> None:
    """A beginning that the boost brought forward does not win unless the term is completed."""
    boost = Strength(begin=2.0, go_on=2.0)
    made = listening(follows(DONALD), "Ronicky", beam_size=beam_size, strength=boost)
    made.advance(heard(50))
    assert "".join(text(made)) == " Donald came"


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_word_that_only_begins_like_a_term_gains_nothing(beam_size: int) -> None:
    """The term "Ron" does not help "Ronald"."""
    made = listening(follows(DONALD), "Ron", beam_size=beam_size)
    made.advance(heard(50))
    assert "".join(text(made)) == " Donald came"


@pytest.mark.parametrize("beam_size", [1, 3])
def test_open_words_are_judged_again_and_committed_ones_stay(beam_size: int) -> None:
    """A term comes and goes in the draft with what is heard; what is committed never changes."""

    def script(so_far: tuple[int, ...], n_frames: int) -> dict[int, float]:
        said, other = ids(" we saw Paul there now and then"), ids(" we saw Peter there now and then")
        n = len(so_far)
        if n >= min(len(said), n_frames // 10):
            return {EOT: 0.99}
        certain = 0.9 if n_frames < 50 or n_frames >= 150 else 0.999
        return {said[n]: certain, other[n]: 1 - certain} if said[n] != other[n] else {said[n]: 0.99}

    made = listening(script, "Peter", beam_size=beam_size, strength=Strength(3.0, 3.0))
    before: list[int] = []
    drafts = []
    for n_frames in (10, 20, 30, 40, 50, 60, 70, 80, 150):
        made.advance(heard(n_frames))
        now = [token.id for token in made.committed]
        assert now[: len(before)] == before
        before = now
        drafts.append(text(made)[1])
    assert drafts[3] == " Peter there"
    assert "".join(text(made)) == " we saw Paul there now and then"


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_boosted_term_is_not_repeated_for_ever(beam_size: int) -> None:
    """The loop guard looks at what would win with the boost."""
    (name,) = ids(" Peter")

    def script(so_far: tuple[int, ...], n_frames: int) -> dict[int, float]:
        return {name: 0.2, EOT: 0.7}

    made = listening(script, "Peter", beam_size=beam_size, strength=Strength(3.0, 3.0))
    made.advance(heard(400))
    assert text(made)[0] + text(made)[1] == " Peter" * 4


def test_what_is_forbidden_stays_forbidden() -> None:
    """A term that no text may hold is not written, however strong the boost."""
    symbol = TOKENIZER.non_speech_tokens[0]

    def script(so_far: tuple[int, ...], n_frames: int) -> dict[int, float]:
        return {symbol: 0.6, EOT: 0.3}

    made = search(script)
    strong = Biasing(TokenTrie([[[symbol]]]), Strength(20.0, 20.0), n_vocab=N_VOCAB)
    bias(made, strong)
    made.advance(heard(50))
    assert made.draft == () and made.committed == []


def test_a_beam_does_not_take_back_what_is_committed() -> None:
    """Once a term's beginning is committed, leaving the term costs what its open tokens gained, no more."""
    rule = TEXT.biasing(["Mount Blanc Hotel"], STRENGTH)
    tokens = ids(" Mount Blanc")
    logits = torch.zeros(N_VOCAB)
    rule.apply(logits, Context(tokens, heard_s=1.0, n_in_segment=2, n_decided=1))
    assert float(logits[EOT]) == -GO_ON * (len(tokens) - 1)
    assert float(logits[ids(" Hotel")[0]]) == GO_ON


def test_text_that_looks_like_a_special_token_is_only_text() -> None:
    """A term or prompt with <|endoftext|> in it neither fails nor boosts end-of-text."""
    rule = TEXT.biasing(["<|endoftext|>"], STRENGTH)
    logits = torch.zeros(N_VOCAB)
    rule.apply(logits, Context([], heard_s=1.0, n_in_segment=0))
    assert float(logits[EOT]) == 0.0


def test_one_streams_hotwords_do_not_touch_another(tiny_recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Two streams advanced together, one with hotwords: the other says what it says alone."""
    samples = jfk[: 6 * 16_000]
    options = {"chunk_ms": 300, "beam_size": 2}

    def alone(**more: object) -> str:
        stream = tiny_recognizer.stream(**options, **more)  # type: ignore[arg-type]
        stream.feed(samples)
        stream.finish()
        return stream.transcript.text

    # Random weights say other words than these, so that the strongest boost changes the text.
    biased = {"hotwords": ("country", "fellow citizens"), "hotword_strength": Strength(20.0, 20.0)}
    first = tiny_recognizer.stream(**options)  # type: ignore[arg-type]
    second = tiny_recognizer.stream(**options, **biased)  # type: ignore[arg-type]
    for start in range(0, len(samples), 4800):
        block = samples[start : start + 4800]
        tiny_recognizer.step_batch([(first, block), (second, block)])
    for stream in (first, second):
        stream.finish()
    assert first.transcript.text == alone()
    assert second.transcript.text == alone(**biased)
    assert first.transcript.text != second.transcript.text


def test_real_speech(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """A listed word that was misheard comes out right; terms that nobody says change no word."""

    def hear(*hotwords: str) -> str:
        stream = recognizer.stream(right_context_ms=0, hotwords=hotwords)  # with it nothing is misheard
        events = [*stream.feed(jfk), *stream.finish()]
        partials = [event.committed for event in events if isinstance(event, Partial) and event.segment == 0]
        assert all(later.startswith(before) for before, later in zip(partials, partials[1:], strict=False))
        return stream.transcript.text

    lasts = "mat fich icky olot tuck aar berg clif dale elle fort gat ham ibis joy kin lot mer nis ora"
    unsaid = [f"{first}{last}" for first in ("Saga", "Mont", "Ron", "Riv", "Ken") for last in lasts.split()]
    assert len(unsaid) == MAX_HOTWORDS
    assert "Ask not" not in hear()
    assert "Ask not what your country can do for you" in hear("ask not")
    assert hear(*unsaid) == hear()
