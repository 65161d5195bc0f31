from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.anchor import MAX_BACK, MIN_BACK, WORD_END, anchor_after_words, anchor_in_pause, anchor_in_speech
from asr.chunking import Chunking
from asr.encoder import FRAME_SAMPLES
from asr.events import SAMPLE_RATE

NOW = 28 * SAMPLE_RATE
CHUNKS_MS = [40, 80, 160, 300, 600, 1000]


def is_on_grid(n_frames: int, chunking: Chunking) -> bool:
    """Whether so many frames from an anchor end at a chunk's end."""
    return n_frames >= chunking.first_size and (n_frames - chunking.first_size) % chunking.size == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, NOW), max_size=40),
    st.one_of(st.none(), st.integers(NOW - 8 * SAMPLE_RATE, NOW)),
    st.sampled_from(CHUNKS_MS),
)
def test_anchor_in_speech_keeps_three_to_six_seconds(
    starts: list[int], open_start: int | None, chunk_ms: int
) -> None:
    """Whatever was said: the step ends on the grid, and what is open is heard again if it can be."""
    chunking = Chunking.from_ms(chunk_ms)
    anchor = anchor_in_speech(sorted(starts), open_start=open_start, end=NOW, chunking=chunking)
    assert anchor.start + anchor.n_frames * FRAME_SAMPLES == NOW
    assert is_on_grid(anchor.n_frames, chunking)
    assert NOW - anchor.start <= MAX_BACK
    if open_start is not None and open_start >= NOW - MAX_BACK + chunking.size * FRAME_SAMPLES:
        assert anchor.start <= open_start
    if open_start is not None or any(start >= NOW - MAX_BACK for start in starts):
        assert NOW - anchor.start >= MIN_BACK


@pytest.mark.parametrize("chunk_ms", [40, 80, 160, 300])
def test_anchor_in_speech_lies_just_before_a_word(chunk_ms: int) -> None:
    """With words half a second apart, the grid lets the anchor come close to one's start."""
    starts = list(range(0, NOW, SAMPLE_RATE // 2))
    anchor = anchor_in_speech(starts, open_start=None, end=NOW, chunking=Chunking.from_ms(chunk_ms))
    gap = min(start - anchor.start for start in starts if start >= anchor.start)
    assert gap <= SAMPLE_RATE // 5


def test_anchor_without_words_keeps_two_seconds() -> None:
    """After music or noise little is encoded again."""
    anchor = anchor_in_speech([SAMPLE_RATE], open_start=None, end=NOW, chunking=Chunking.from_ms(300))
    assert 1.5 * SAMPLE_RATE <= NOW - anchor.start <= 2 * SAMPLE_RATE


@pytest.mark.parametrize("chunk_ms", CHUNKS_MS)
@pytest.mark.parametrize("silence_s", [0.0, 0.3, 0.9, 5.0])
def test_anchor_in_pause_holds_no_word(chunk_ms: int, silence_s: float) -> None:
    """The window begins in the silence, with up to a second of it, and on the grid."""
    chunking = Chunking.from_ms(chunk_ms)
    silent_since = NOW - int(silence_s * SAMPLE_RATE)
    anchor = anchor_in_pause(silent_since, end=NOW, chunking=chunking)
    assert anchor.start >= silent_since
    assert is_on_grid(anchor.n_frames, chunking)
    assert NOW - anchor.start <= max(SAMPLE_RATE, chunking.first_size * FRAME_SAMPLES)
    assert (NOW - anchor.start) % FRAME_SAMPLES == 0


@pytest.mark.parametrize("chunk_ms", CHUNKS_MS)
@pytest.mark.parametrize("back_s", [0.1, 1.0, 2.2, 5.0, 25.0])
def test_anchor_after_words_is_near_their_end(chunk_ms: int, back_s: float) -> None:
    """The window begins within a chunk of the last word's end, and never so far back that mel is gone."""
    chunking = Chunking.from_ms(chunk_ms)
    anchor = anchor_after_words(NOW - int(back_s * SAMPLE_RATE), end=NOW, chunking=chunking)
    assert is_on_grid(anchor.n_frames, chunking)
    assert anchor.start + anchor.n_frames * FRAME_SAMPLES == NOW
    assert NOW - anchor.start <= MAX_BACK
    wanted = NOW - min(int(back_s * SAMPLE_RATE), MAX_BACK) + WORD_END
    is_late = NOW - wanted < chunking.first_size * FRAME_SAMPLES
    assert is_late or abs(anchor.start - wanted) <= chunking.size * FRAME_SAMPLES
