"""Where a stream's next window begins, so that no word is lost or doubled at the seam.

Pure arithmetic on samples. A window's first step must end at a chunk's end of its own grid, so anchors lie
whole chunks before the sample that the step reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asr.chunking import Chunking
from asr.encoder import FRAME_SAMPLES
from asr.events import SAMPLE_RATE

MIN_BACK = 3 * SAMPLE_RATE  # audio that a hard anchor keeps at least ...
WANTED_BACK = 4 * SAMPLE_RATE  # ... and would like to keep
MAX_BACK = 6 * SAMPLE_RATE
NO_WORDS_BACK = 2 * SAMPLE_RATE  # where no word was said lately (music, noise)
WORD_MARGIN = SAMPLE_RATE // 10  # audio before the first word of a window
WORD_END = SAMPLE_RATE // 5  # from the sample where a word was heard to its end
PAUSE_BACK = SAMPLE_RATE  # silence kept by an anchor in a pause, if there is that much


@dataclass(frozen=True)
class Anchor:
    """Where a window begins.

    Attributes:
        start: Sample of position 0, a multiple of one encoder frame before the step's end.
        n_frames: Encoder frames of the window's first step.
    """

    start: int
    n_frames: int


def anchor_in_speech(
    word_starts: Sequence[int], *, open_start: int | None, end: int, chunking: Chunking
) -> Anchor:
    """Anchor while somebody may be speaking: just before a committed word a few seconds back.

    Args:
        word_starts: Starts of the window's committed words.
        open_start: Start of the first word that is not committed, which must be heard again.
        end: Sample that the next encoder step reaches.
        chunking: The stream's chunks.

    Returns:
        The best anchor that keeps 3 to 6 s of audio.
    """
    lately = [start for start in word_starts if start >= end - MAX_BACK]
    if not lately and open_start is None:
        back = _floor(NO_WORDS_BACK // FRAME_SAMPLES, chunking)
        return Anchor(end - back * FRAME_SAMPLES, back)
    oldest_open = end if open_start is None else open_start - 2 * WORD_MARGIN
    step = chunking.size * FRAME_SAMPLES
    least = min(max(MIN_BACK, end - oldest_open), MAX_BACK - step)
    marks = lately if open_start is None else [*lately, open_start]
    n_frames = chunking.first_size
    best: tuple[float, int] | None = None
    while n_frames * FRAME_SAMPLES <= MAX_BACK:
        back = n_frames * FRAME_SAMPLES
        if back >= least:
            gap = min((mark - (end - back) for mark in marks if mark >= end - back), default=MAX_BACK)
            cost = abs(gap - WORD_MARGIN) + abs(back - WANTED_BACK) / 10
            if best is None or cost < best[0]:
                best = cost, n_frames
        n_frames += chunking.size
    assert best is not None, "the range of lengths is longer than a chunk"
    return Anchor(end - best[1] * FRAME_SAMPLES, best[1])


def anchor_in_pause(silent_since: int, *, end: int, chunking: Chunking) -> Anchor:
    """Anchor in the silence after a segment.

    Args:
        silent_since: Sample from which on nobody speaks.
        end: Sample that the next encoder step reaches.
        chunking: The stream's chunks.

    Returns:
        An anchor in the silence. Where the silence is shorter than a first chunk, the first step reaches
        beyond ``end``.
    """
    silence = max(0, (end - silent_since) // FRAME_SAMPLES)
    kept = min(silence, max(PAUSE_BACK // FRAME_SAMPLES, chunking.first_size))
    n_frames = _floor(kept, chunking) if kept >= chunking.first_size else kept
    return Anchor(end - n_frames * FRAME_SAMPLES, max(n_frames, chunking.first_size))


def anchor_after_words(last_word: int, *, end: int, chunking: Chunking) -> Anchor:
    """Anchor as near as the grid allows to the end of the last word.

    Args:
        last_word: A sample in the word.
        end: Sample that has been encoded; the first step reaches no further.
        chunking: The stream's chunks.

    Returns:
        The anchor.
    """
    wanted = (min(end - last_word, MAX_BACK) - WORD_END) // FRAME_SAMPLES
    n_frames = _floor(wanted + chunking.size // 2, chunking)
    return Anchor(end - n_frames * FRAME_SAMPLES, n_frames)


def _floor(n_frames: int, chunking: Chunking) -> int:
    """The largest length of whole chunks within ``n_frames``, at least the first chunk."""
    n_more = max(0, n_frames - chunking.first_size) // chunking.size
    return chunking.first_size + n_more * chunking.size
