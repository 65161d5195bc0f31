"""What a stream says, read by the transducer from the causal encoder's frames as they come.

Times are samples of the stream. The encoder works in windows, which begin anew now and then and encode the
last seconds once more; here frames are counted from the stream's start, and what was read is not read again.
A head's tokens have Whisper's ids, so Whisper's vocabulary knows their texts. Axis letters: F encoder frames,
E their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from asr.encoder import FRAME_SAMPLES
from asr.events import SAMPLE_RATE
from asr.frontier import LookPolicy
from asr.head import HEAD_FRAME_SAMPLES, HeadJob, TransducerHead
from asr.transducer_search import BeamSearch, Emission, GreedySearch, SearchJob, TransducerSearch
from asr.words import Token, Vocabulary

MAX_DRAFT_TOKENS = 24  # the oldest words of a longer draft are committed although hypotheses disagree


@dataclass(frozen=True)
class EmissionTiming:
    """When words are said, seen from when their tokens come out; in samples, measured for each head."""

    lead: int  # a word begins this much before the end of its first token's frame ...
    lag: int  # ... and ends this much before that of its last token

    @classmethod
    def from_ms(cls, *, lead_ms: float, lag_ms: float) -> EmissionTiming:
        """Build from milliseconds; a token lasts at least one head frame."""
        lead, lag = (round(ms * SAMPLE_RATE / 1000) for ms in (lead_ms, lag_ms))
        return cls(max(lead, lag + HEAD_FRAME_SAMPLES), lag)


@dataclass(frozen=True)
class Reading:
    """What a step read of one stream.

    Attributes:
        tokens: Tokens that are committed now.
        n_frames: Head frames read now.
        waits: For each of them, the head frames that had come after it when it was computed, at least.
    """

    tokens: tuple[Token, ...]
    n_frames: int
    waits: tuple[int, ...]


class TransducerReader:
    """One stream's text. :func:`read` is all that changes it, besides :meth:`commit_draft`."""

    def __init__(
        self,
        head: TransducerHead,
        vocabulary: Vocabulary,
        *,
        policy: LookPolicy,
        timing: EmissionTiming,
        beam_size: int = 1,
    ) -> None:
        """Begin a stream.

        Args:
            head: The head.
            vocabulary: Knows where words begin.
            policy: How far frames look ahead.
            timing: The head's.
            beam_size: Hypotheses; 1 is greedy.
        """
        self.beam_size = beam_size
        self._head = head
        self._vocabulary = vocabulary
        self._timing = timing
        self._state = head.init_state(policy)
        self._search = make_search(head, beam_size=beam_size).init_state()
        self._n_heard = 0
        self._latest = 0  # newest head frame that an output has waited for

    @property
    def draft(self) -> tuple[Token, ...]:
        """Open tokens: the newest word, and what hypotheses disagree on."""
        return tuple(map(self._token, self._search.draft))

    @property
    def heard(self) -> int:
        """Sample up to which encoder frames have come."""
        return self._n_heard * FRAME_SAMPLES

    @property
    def end(self) -> int:
        """Sample up to which the stream has been read."""
        return self._search.n_frames * HEAD_FRAME_SAMPLES

    def commit_draft(self) -> list[Token]:
        """Commit what is open, and return it."""
        return [self._token(emission) for emission in self._search.commit(len(self._search.draft))]

    def _new_job(self, job: ReadJob) -> HeadJob:
        """The frames that have not been heard yet."""
        assert job.first_frame <= self._n_heard, "encoder frames are missing"
        new = job.frames[:, self._n_heard - job.first_frame :]
        self._n_heard += new.shape[1]
        return HeadJob(new, self._state, job.ends)

    def _take(self, reach: tuple[int, ...]) -> Reading:
        """Commit whole words that hypotheses agree on, once their frames have been searched."""
        first = self._search.n_frames - len(reach)
        waits = []
        for frame, newest in enumerate(reach, start=first):
            self._latest = max(self._latest, newest)
            waits.append(self._latest - frame)
        ids = [emission.token for emission in self._search.draft]
        bounds = self._vocabulary.word_starts(ids)
        certain = self._search.n_agreed()
        overlong = len(ids) - MAX_DRAFT_TOKENS
        n_tokens = max((i for i in bounds if i <= max(certain, overlong)), default=0)
        tokens = self._search.commit(max(n_tokens, overlong if len(bounds) == 1 else 0, 0))
        return Reading(tuple(map(self._token, tokens)), len(reach), tuple(waits))

    def _token(self, emission: Emission) -> Token:
        peak = (emission.frame + 1) * HEAD_FRAME_SAMPLES
        span = max(0, peak - self._timing.lead), max(0, peak - self._timing.lag)
        return Token(emission.token, emission.logprob, peak, span)


@dataclass(frozen=True)
class ReadJob:
    """One stream's next encoder frames.

    Attributes:
        reader: The stream's reader.
        frames: ``[1, F, E]``, some of which may have been read before.
        first_frame: Index of the first of them from the stream's start.
        ends: The stream ends with them.
    """

    reader: TransducerReader
    frames: Tensor
    first_frame: int
    ends: bool = False


def read(head: TransducerHead, jobs: Sequence[ReadJob]) -> list[Reading]:
    """Read the next frames of many streams together.

    Args:
        head: The readers' head.
        jobs: At least one, of different streams that have not ended.

    Returns:
        What was read of each.
    """
    released = head.step([job.reader._new_job(job) for job in jobs])
    for beam_size in sorted({job.reader.beam_size for job in jobs}):
        make_search(head, beam_size=beam_size).advance(
            [
                SearchJob(part.frames, job.reader._search)
                for job, part in zip(jobs, released, strict=True)
                if job.reader.beam_size == beam_size
            ]
        )
    return [job.reader._take(part.reach) for job, part in zip(jobs, released, strict=True)]


def make_search(head: TransducerHead, *, beam_size: int) -> TransducerSearch:
    """The search for a number of hypotheses; 1 is greedy."""
    if beam_size == 1:
        return GreedySearch(head.transducer)
    return BeamSearch(head.transducer, beam_size=beam_size)
