"""What a stream says, read by the transducer from the causal encoder's frames as they come.

Times are samples of the stream. The encoder works in windows, which begin anew now and then and encode the
last seconds once more; here frames are counted from the stream's start, and what was read is not read again.
A head's tokens have Whisper's ids, so Whisper's vocabulary knows their texts. Axis letters: F encoder frames,
E their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from asr.events import SAMPLE_RATE
from asr.frontier import LookPolicy
from asr.head import HEAD_FRAME_SAMPLES, STACK, HeadJob, HeadMark, HeadState, TransducerHead
from asr.lookahead import Released
from asr.transducer import N_CONTEXT
from asr.transducer_search import (
    BeamSearch,
    Emission,
    GreedySearch,
    Hotwords,
    Hypothesis,
    SearchJob,
    SearchState,
    TransducerSearch,
)
from asr.waiting import n_ready
from asr.words import Token, Vocabulary

Then = Literal["listen", "peek", "flush", "finish"]
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
        waits: One for each head frame read now: the head frames that had come after it by then, at least,
            and after the encoder's step that first brought it.
    """

    tokens: tuple[Token, ...]
    waits: tuple[int, ...]


@dataclass
class _Mark:
    """A place in a stream to which its reader can go back."""

    n_heard: int
    n_released: int
    newest: int
    arrived: tuple[int, ...]
    head: HeadMark
    search: SearchState


class TransducerReader:
    """One stream's text. :func:`read` is all that changes it, besides :meth:`commit_draft`.

    Attributes:
        beam_size: Hypotheses; 1 is greedy.
        timing: When words are said.
        policy: How far frames look ahead, and when provisional ones are read.
        n_heard: Encoder frames heard.
    """

    def __init__(
        self,
        head: TransducerHead,
        vocabulary: Vocabulary,
        *,
        policy: LookPolicy,
        timing: EmissionTiming,
        beam_size: int = 1,
        hotwords: Hotwords | None = None,
        state: HeadState | None = None,
    ) -> None:
        """Begin a stream.

        Args:
            head: The head.
            vocabulary: Knows where words begin.
            policy: How far frames look ahead; one that waits needs a head with a wait scheduler, unless it
                is a reference.
            timing: The head's.
            beam_size: Hypotheses; 1 is greedy.
            hotwords: Terms to expect, in the head's tokens.
            state: Preallocated memory, from now on the reader's alone; None allocates.
        """
        self.beam_size = beam_size
        self._vocabulary = vocabulary
        self.timing = timing
        self.policy = policy
        self._state = head.init_state() if state is None else state
        self._state.restart(policy)
        self._search = make_search(head, beam_size=beam_size).init_state()
        self._search.hotwords = hotwords
        self.n_heard = 0
        self._n_released = 0  # head frames
        self._newest = 0  # head frame that some output has waited for
        self._arrived: list[int] = []  # of each head frame not read yet: those encoded when it came
        self._peeked: tuple[Emission, ...] | None = None  # open tokens after a look at provisional frames
        self._said = list(head.transducer.first_context)  # newest committed tokens

    @property
    def draft(self) -> tuple[Token, ...]:
        """Open tokens: the newest word, what hypotheses disagree on, and what provisional frames say."""
        return tuple(map(self._token, self._search.draft if self._peeked is None else self._peeked))

    @property
    def asks_scheduler(self) -> bool:
        """Whether the head's wait scheduler decides which provisional frames are read."""
        return self.policy.wait is not None and self.policy.wait.future is None

    @property
    def no_frames(self) -> Tensor:
        """``[1, 0, E]``."""
        return self._state.left_over[:, :0]

    @property
    def end(self) -> int:
        """Sample up to which the stream has been read."""
        return self._search.n_frames * HEAD_FRAME_SAMPLES

    def commit_draft(self) -> list[Token]:
        """Commit what is open, but for what provisional frames say, and return it."""
        return self._commit(len(self._search.draft))

    def forget_final_mark(self) -> None:
        """Go on as if the text, all of it committed, had not ended with a full stop."""
        assert not self._search.draft, "open tokens follow the mark"
        if len(self._said) > N_CONTEXT and self._vocabulary.is_mark(self._said[-1]):
            self._said.pop()
            context = tuple(self._said[-N_CONTEXT:])
            self._search.hypotheses = [Hypothesis((), context)]

    def _mark(self) -> _Mark:
        search = replace(self._search, hypotheses=list(self._search.hypotheses))
        arrived = tuple(self._arrived)
        return _Mark(self.n_heard, self._n_released, self._newest, arrived, self._state.mark(), search)

    def _go_back(self, mark: _Mark) -> None:
        self.n_heard, self._n_released, self._newest = mark.n_heard, mark.n_released, mark.newest
        self._arrived = list(mark.arrived)
        self._state.go_back(mark.head)
        self._search = mark.search

    def _new_frames(self, job: ReadJob) -> Tensor:
        """The frames that have not been heard yet, provisional ones included."""
        assert not self._state.lookahead.has_ended, "the stream has ended"
        assert job.first_frame <= self.n_heard, "encoder frames are missing"
        return job.frames[:, self.n_heard - job.first_frame :]

    def _n_heard_now(self, job: ReadJob, logits: Tensor | None) -> int:
        """How many new frames are heard now: all that are final, and provisional ones that need not wait."""
        n_new = self._new_frames(job).shape[1]
        n_open = min(job.n_provisional, n_new)
        wait = self.policy.wait
        if not n_open or wait is None:
            return n_new - n_open
        n_left = self._state.left_over.shape[1]
        n_whole, n_final = (n_left + n_new) // STACK, (n_left + n_new - n_open) // STACK  # head frames
        if logits is None:
            n_more = n_whole - n_final - (wait.future or 0)
        else:
            n_more = n_ready(logits[n_final:], wait.bias)
        return max(n_new - n_open, STACK * (n_final + n_more) - n_left)

    def _head_job(self, job: ReadJob, logits: Tensor | None) -> HeadJob:
        """The new frames that are heard now."""
        new = self._new_frames(job)[:, : self._n_heard_now(job, logits)]
        self.n_heard += new.shape[1]
        return HeadJob(new, self._state, ends=job.then in ("flush", "finish"))

    def _unread(self, released: Released) -> Released:
        """The released frames that an earlier flush has not read already."""
        n_read = max(0, self._search.n_frames - self._n_released)
        self._n_released += len(released.reach)
        return Released(released.frames[:, n_read:], released.reach[n_read:])

    def _take(self, reach: tuple[int, ...], job: ReadJob, mark: _Mark) -> Reading:
        """Commit what is certain, once the released frames have been searched; after others go back."""
        self._peeked = self._search.draft if job.then == "peek" else None
        if job.then == "peek":
            self._go_back(mark)
            return Reading((), ())
        if job.then == "flush":
            mark.search = self._search
            self._go_back(mark)
        n_real = (self.n_heard + job.n_ahead) // STACK
        waits = self._waits(reach, job, n_real=n_real)
        if job.then == "flush":
            self._search.n_frames = min(self._search.n_frames, n_real)
        n_tokens = len(self._search.draft) if job.then == "flush" else self._n_certain()
        return Reading(tuple(self._commit(n_tokens)), tuple(waits))

    def _waits(self, reach: tuple[int, ...], job: ReadJob, *, n_real: int) -> list[int]:
        """How long the frames waited that were read last; where a stream ends they wait no longer."""
        first = self._search.n_frames - len(reach)
        listens = job.then == "listen"  # otherwise what has been encoded is also silence that is not heard
        n_encoded = max(n_real, job.n_encoded // STACK) if listens else n_real
        self._arrived += [n_encoded] * (n_encoded - first - len(self._arrived))
        waits = []
        for frame, newest in enumerate(reach[: max(0, n_real - first)], start=first):
            self._newest = max(self._newest, min(newest, n_real - 1))
            late = n_encoded - self._arrived[self._newest - first] if listens else 0
            waits.append(self._newest - frame + late)
        del self._arrived[: len(waits)]
        return waits

    def _commit(self, n_tokens: int) -> list[Token]:
        emissions = self._search.commit(n_tokens)
        self._peeked = None
        self._said = [*self._said, *(emission.token for emission in emissions)][-N_CONTEXT - 1 :]
        return [self._token(emission) for emission in emissions]

    def _n_certain(self) -> int:
        """Open tokens of whole words that hypotheses agree on."""
        ids = [emission.token for emission in self._search.draft]
        bounds = self._vocabulary.word_starts(ids)
        overlong = max(0, len(ids) - MAX_DRAFT_TOKENS)
        if len(bounds) <= 1:
            return overlong
        limit = max(self._search.n_agreed(), overlong)
        return max(bound for bound in bounds if bound <= limit)

    def _token(self, emission: Emission) -> Token:
        peak = (emission.frame + 1) * HEAD_FRAME_SAMPLES
        span = max(0, peak - self.timing.lead), max(0, peak - self.timing.lag)
        return Token(emission.token, emission.logprob, peak, span)


@dataclass(frozen=True)
class ReadJob:
    """One stream's next encoder frames.

    Attributes:
        reader: The stream's reader.
        frames: ``[1, F, E]``, some of which may have been read before; at most a few seconds new ones.
        first_frame: Index of the first of them from the stream's start.
        then: "finish": the stream ends with them. "peek": they are provisional; what they say is the reader's
            draft until its next job, and it has not heard them afterwards. "flush": everything heard before
            them is read and committed now, as if the stream ended with them; they are silence that it will
            not have heard afterwards.
        n_provisional: Of the frames to listen to, how many at their end are provisional. They are heard as
            far as the reader's policy lets, not the rest.
        n_encoded: Frames from the stream's start that have been encoded, the provisional ones included;
            waits count from there.
        n_ahead: Of the frames of a flush, how many were heard before the silence and will come once more when
            they are final.
    """

    reader: TransducerReader
    frames: Tensor
    first_frame: int
    then: Then = "listen"
    n_provisional: int = 0
    n_encoded: int = 0
    n_ahead: int = 0


def read(head: TransducerHead, jobs: Sequence[ReadJob]) -> list[Reading]:
    """Read the next frames of many streams together.

    Args:
        head: The readers' head.
        jobs: At least one, of different streams that have not ended.

    Returns:
        What was read of each.

    Raises:
        Exception: Whatever went wrong in the model. All streams are as before, so each can be read alone.
    """
    marks = [job.reader._mark() for job in jobs]
    try:
        logits = _weigh(head, jobs)
        released = head.step([job.reader._head_job(job, row) for job, row in zip(jobs, logits, strict=True)])
        unread = [job.reader._unread(part) for job, part in zip(jobs, released, strict=True)]
        for beam_size in sorted({job.reader.beam_size for job in jobs}):
            make_search(head, beam_size=beam_size).advance(
                [
                    SearchJob(part.frames, job.reader._search)
                    for job, part in zip(jobs, unread, strict=True)
                    if job.reader.beam_size == beam_size
                ]
            )
    except Exception:
        for job, mark in zip(jobs, marks, strict=True):
            job.reader._go_back(mark)
        raise
    parts = zip(jobs, unread, marks, strict=True)
    return [job.reader._take(part.reach, job, mark) for job, part, mark in parts]


def _weigh(head: TransducerHead, jobs: Sequence[ReadJob]) -> list[Tensor | None]:
    """What the wait scheduler says of the new head frames of each job whose provisional ones may be read."""
    is_asked = [job.n_provisional > 0 and job.reader.asks_scheduler for job in jobs]
    asked = [job for job, asks in zip(jobs, is_asked, strict=True) if asks]
    if not asked:
        return [None] * len(jobs)
    assert head.waiting, "the policy needs a head that has learned to wait"
    marks = [job.reader._state.mark() for job in asked]
    heard = head.step([HeadJob(job.reader._new_frames(job), job.reader._state) for job in asked])
    for job, mark in zip(asked, marks, strict=True):
        job.reader._state.go_back(mark)
    sizes = [each.frames.shape[1] for each in heard]
    future = [torch.arange(size, device=heard[0].frames.device).flip(0) for size in sizes]
    logits = head.waiting(torch.cat([each.frames for each in heard], dim=1)[0], torch.cat(future))
    rows = iter(logits.split(sizes))
    return [next(rows) if asks else None for asks in is_asked]


def make_search(head: TransducerHead, *, beam_size: int) -> TransducerSearch:
    """The search for a number of hypotheses; 1 is greedy."""
    if beam_size == 1:
        return GreedySearch(head.transducer)
    return BeamSearch(head.transducer, beam_size=beam_size)
