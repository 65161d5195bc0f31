"""Wrong transcripts are told from right ones, each utterance of a window by its own share."""

import pytest

from training.judge import Limits, find_wrong, share_out
from training.spelling import spell_like_teacher, spell_utterances


def test_each_utterance_gets_its_share() -> None:
    """Errors count where they are; the one in the middle is wrong."""
    texts = ["The first is right.", "this was never said", "and the third is right again"]
    teacher = "the first is right. Something else entirely! And the third is write again"
    shares = share_out(texts, teacher, durations_s=[2.0, 2.0, 3.0])
    assert [round(share.distance, 2) for share in shares] == [0.0, 1.0, 0.17]
    assert shares[1].heard == "something else entirely"


@pytest.mark.parametrize(("durations_s", "owner"), [([9.0, 1.0], 0), ([1.0, 9.0], 1)])
def test_surplus_words_belong_where_text_is_missing(durations_s: list[float], owner: int) -> None:
    """Between two utterances, the one with less text for its length lacks them."""
    shares = share_out(["one two", "three four"], "one two extra words three four", durations_s=durations_s)
    assert [share.distance > 0 for share in shares] == [i == owner for i in range(2)]


def test_nothing_heard_and_nothing_said() -> None:
    """Empty texts on either side."""
    (share,) = share_out(["some words"], "", durations_s=[1.0])
    assert (share.distance, share.heard) == (1.0, "")
    shares = share_out(["", ""], "some words", durations_s=[1.0, 2.0])
    assert sum(share.distance for share in shares) == 1.0


def test_both_ears_must_agree_that_a_text_is_wrong() -> None:
    """Far from what is heard and improbable; a few words only if next to impossible."""
    (far,) = share_out(["red green blue gold"], "something else was said", durations_s=[2.0])
    limits = Limits(distance=0.7, confidence=0.5)
    assert find_wrong("red green blue gold", far, confidence=0.1, limits=limits)
    assert find_wrong("red green blue gold", far, confidence=0.6, limits=limits) is None
    assert find_wrong("red green", far, confidence=0.1, limits=limits) is None
    assert find_wrong("red green", far, confidence=0.01, limits=limits)


def test_spelling_is_taken_over_where_words_agree() -> None:
    """Case and marks come from the teacher; other words stay, and so do texts that are not plain."""
    assert spell_like_teacher("IT'S MISTER BROWN I SAID", "It's Mr. Brown, I said.") == (
        "It's mister Brown, I said."
    )
    assert spell_utterances(["HELLO ANN", "GO ON"], "Hello, Ann. Go on!") == ["Hello, Ann.", "Go on!"]
    assert spell_utterances(["hello ann"], "Hello, Ann.") == ["Hello, Ann."]
    assert spell_utterances(["Hello Ann"], "hello, ann") == ["Hello Ann"]
    assert spell_utterances(["hello, ann"], "Hello Ann!") == ["hello, ann"]
