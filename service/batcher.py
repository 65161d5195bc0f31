"""A thread advances all streams of a process, tick by tick.

A tick takes at most one chunk from every stream that has one and computes all of them together, so an upload
that is faster than speech never gets ahead of people who speak. Ticks follow one another without a clock:
what arrives during one is taken by the next, so batches grow with the load. Second passes run in a thread of
their own and delay nobody's partials.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from asr.batch import Step
from asr.errors import AudioError
from asr.events import SAMPLE_RATE, Event, Final
from asr.recognizer import Recognizer
from asr.second_pass import PendingFinal
from asr.slots import Slot as State
from asr.stream import NO_SAMPLES, Stream, Then
from service.admission import Tick
from service.intake import Intake, Samples, open_intake
from service.stream_settings import (
    AudioFormat,
    Failed,
    Finished,
    Flushed,
    NoSlotError,
    Output,
    Progress,
    StreamSettings,
)

_LAST_TICK_S = 10.0  # for the running ticks to end when the batcher stops; one that is stuck never does
_MAX_PENDING = 10 * SAMPLE_RATE  # samples of one stream; far more than a step takes

_T = TypeVar("_T")
_A = TypeVar("_A")
Deliver = Callable[[Sequence[Output]], None]

_log = logging.getLogger(__name__)


class Slot:
    """One stream's way into the batcher and out of it; its methods are the event loop's and never wait."""

    def __init__(self, batcher: Batcher, intake: Intake, stream: Stream, state: State, out: _Outlet) -> None:
        """Made by :meth:`Batcher.open`."""
        self._batcher = batcher
        self._intake = intake
        self.work = _Work(intake, stream, state, out)

    @property
    def queued_s(self) -> float:
        """Seconds of audio fed and not yet recognised; estimated for compressed audio."""
        return self._intake.waiting_s + self.work.pending_s

    def feed(self, data: bytes) -> None:
        """Add audio: whole sample frames, or for compressed audio any bytes."""
        self._intake.push(data)

    def flush(self) -> None:
        """Make at least everything fed so far final, then deliver ``Flushed``."""
        self.work.flush_marks.append(self._intake.n_pushed)
        self._batcher.wake()

    def finish(self) -> None:
        """Make everything final, then deliver ``Finished`` and free the slot."""
        self.work.is_ending = True
        self._intake.end()
        self._batcher.wake()

    def close(self) -> None:
        """Abandon the stream: nothing more is delivered, and the slot is freed."""
        self.work.out.close()
        self._intake.close()
        self._batcher.wake()


class _Outlet:
    """Brings one stream's outputs to the event loop in order, where a Final may wait for its second pass."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        self._loop = loop
        self._deliver = deliver
        self._held: deque[Output | Future[Final]] = deque()  # from the first unfinished second pass on
        self.is_closed = False

    def close(self) -> None:
        """Deliver nothing more."""
        self.is_closed = True

    def put(self, outputs: Sequence[Output | Future[Final]]) -> None:
        """Called by the worker after every tick."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._arrive, list(outputs))

    def _arrive(self, outputs: Sequence[Output | Future[Final]]) -> None:
        ready: list[Output] = []
        for output in outputs:
            if isinstance(output, Future):
                self._held.append(output)
                output.add_done_callback(lambda _: self.put(()))
            elif self._held and _must_wait(output):
                self._held.append(output)
            else:
                ready.append(output)
        while self._held and not (isinstance(head := self._held[0], Future) and not head.done()):
            self._held.popleft()
            ready.append(head.result() if isinstance(head, Future) else head)
        if not self.is_closed:
            self._deliver(ready)


def _must_wait(output: Output) -> bool:
    """Whether an output may not overtake a Final: other Finals and what says that all are there."""
    return isinstance(output, Final | Flushed | Progress | Finished | Failed)


class _Work:
    """What the worker knows of one stream."""

    def __init__(self, intake: Intake, stream: Stream, state: State, out: _Outlet) -> None:
        self.intake = intake
        self.stream = stream
        self.state = state
        self.out = out
        self.pending: Samples = NO_SAMPLES
        self.error: AudioError | None = None
        self.flush_marks: deque[int] = deque()  # bytes after which to flush; appended by the event loop
        self.flush_at: deque[int] = deque()  # the same in samples, once those bytes have been decoded
        self.is_ending = False
        self.n_heard = 0
        self.n_finals = 0
        self.busy_s = 0.0

    @property
    def pending_s(self) -> float:
        """Seconds of decoded audio that wait for a tick."""
        return len(self.pending) / SAMPLE_RATE

    def pull(self) -> None:
        """Take what the intake has decoded, unless there is plenty already."""
        if self.error is not None or len(self.pending) >= _MAX_PENDING:
            return
        try:
            samples = self.intake.pull()
        except AudioError as error:
            self.error = error
        else:
            self.pending = np.concatenate([self.pending, samples]) if len(samples) else self.pending
            while self.flush_marks and self.flush_marks[0] <= self.intake.n_taken:
                self.flush_marks.popleft()
                self.flush_at.append(self.n_heard + len(self.pending))

    def next_step(self) -> Step | None:
        """What to do in this tick; None if there is too little to do anything."""
        n_samples = self.stream.n_due
        then: Then = "listen"
        if self.flush_at and self.flush_at[0] < self.n_heard + n_samples:
            n_samples, then = self.flush_at.popleft() - self.n_heard, "flush"
        elif len(self.pending) < n_samples:
            is_over = self.error is not None or (self.is_ending and self.intake.is_drained())
            if not is_over:
                return None
            then = "finish"
        samples, self.pending = self.pending[:n_samples], self.pending[n_samples:]
        self.n_heard += len(samples)
        return Step(self.stream, samples, then)


class Batcher:
    """Slots, and a thread that advances the streams in them; an async context manager.

    Attributes:
        n_slots: Streams that can be open at a time.
        thread: Runs the ticks.
        n_ticks: How many there were so far.
    """

    n_lanes = 1  # ticks that may run at a time

    def __init__(
        self,
        recognizer: Recognizer,
        *,
        n_slots: int,
        on_tick: Callable[[Tick], None] = lambda tick: None,
    ) -> None:
        """Allocate the state of all slots.

        Args:
            recognizer: The model; from now on only this batcher may use it.
            n_slots: Streams that can be open at a time.
            on_tick: Told of every tick, from the thread.
        """
        self.n_slots = n_slots
        self._recognizer = recognizer
        self._takes_hotwords = "hotwords" in inspect.signature(recognizer.stream).parameters
        self._pool = recognizer.slots(n_slots)
        self._second = ThreadPoolExecutor(1, thread_name_prefix="second-pass")
        self._on_tick = on_tick
        self._works: list[_Work] = []
        self._to_do: deque[Callable[[], None]] = deque()
        self._news = threading.Condition()
        self._has_news = self._is_stopping = False
        self._tick_began: float | None = None  # None while no tick runs
        self.thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.n_ticks = 0

    @property
    def n_used(self) -> int:
        """Slots in use."""
        return self.n_slots - self._pool.n_free

    @property
    def tick_age_s(self) -> float:
        """Seconds since the running tick began; 0 while none runs."""
        began = self._tick_began
        return time.perf_counter() - began if began is not None else 0.0

    @property
    def cpu_s(self) -> float:
        """Processor time of this process so far."""
        return time.process_time()

    @property
    def memory_bytes(self) -> int:
        """Memory that this process holds; 0 where the system does not tell."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        return 0

    async def __aenter__(self) -> Batcher:
        """Start the thread."""
        self.thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop after the running tick, unless that does not end; streams still open are abandoned."""
        self._is_stopping = True
        self.wake()
        await asyncio.to_thread(self.thread.join, _LAST_TICK_S)
        if self.thread.is_alive():
            _log.error("a step of the model did not end; the process stops without it")
        self._second.shutdown(wait=False, cancel_futures=True)

    async def open(self, audio: AudioFormat, settings: StreamSettings, deliver: Deliver) -> Slot:
        """Open a stream.

        Args:
            audio: What will be fed.
            settings: How it is to be recognised.
            deliver: Called on this event loop after every tick in which the stream took part, with its
                outputs in order, a ``Progress`` at their end.

        Returns:
            The stream's slot.

        Raises:
            OptionError: The model refuses a setting.
            NoSlotError: All slots are taken.
        """
        outlet = _Outlet(asyncio.get_running_loop(), deliver)
        try:
            return await self._do(lambda: self._make(audio, settings, outlet))
        except asyncio.CancelledError:
            outlet.close()
            self.wake()
            raise

    async def _do(self, what: Callable[[], _T]) -> _T:
        """Have the thread do something between two ticks, after streams that are closed have left."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()

        def run() -> None:
            try:
                result = what()
            except Exception as error:
                _tell(loop, answer, answer.set_exception, error)
            else:
                _tell(loop, answer, answer.set_result, result)

        self._to_do.append(run)
        self.wake()
        return await answer

    def wake(self) -> None:
        """Tell the thread that there may be something to do; from any thread."""
        with self._news:
            self._has_news = True
            self._news.notify()

    def _make(self, audio: AudioFormat, settings: StreamSettings, outlet: _Outlet) -> Slot:
        """Begin a stream, as :meth:`open` has it; in the thread."""
        if outlet.is_closed:
            raise NoSlotError("the stream was abandoned before it began")  # told to nobody
        state = self._pool.take()
        if state is None:
            raise NoSlotError(f"all {self._pool.n_slots} slots are taken; try again later")
        told: dict[str, Any] = {"prompt": settings.full_prompt}
        if self._takes_hotwords:
            told = {"prompt": settings.prompt, "hotwords": settings.hotwords}
        try:
            stream = self._recognizer.stream(
                decoder=settings.decoder,
                latency=settings.latency,
                chunk_ms=settings.chunk_ms,
                right_context_ms=settings.right_context_ms,
                beam_size=settings.beam_size,
                language=settings.language,
                second_pass=settings.second_pass,
                silence_ms=settings.silence_ms,
                max_segment_s=settings.max_segment_s,
                slot=state,
                **told,
            )
            intake = open_intake(audio, on_samples=self.wake)
        except Exception:
            self._pool.give_back(state)
            raise
        slot = Slot(self, intake, stream, state, outlet)
        self._works.append(slot.work)
        return slot

    def _run(self) -> None:
        while not self._is_stopping:
            with self._news:
                while not self._has_news:
                    self._news.wait()
                self._has_news = False
            while not self._is_stopping:
                self._clear()
                if not self._tick():
                    break

    def _clear(self) -> None:
        """Let closed streams leave, then do what is to be done."""
        n_to_do = len(self._to_do)  # counted first: what was closed before one of them is free for it
        for work in [work for work in self._works if work.out.is_closed]:
            self._drop(work)
        for _ in range(n_to_do):
            self._to_do.popleft()()

    def _tick(self) -> bool:
        """Advance every stream that has something to do; False if none has."""
        going: list[tuple[_Work, Step]] = []
        for work in list(self._works):
            try:
                work.pull()
                if step := work.next_step():
                    going.append((work, step))
            except Exception as error:  # of its audio or for want of memory: it is this stream's alone
                self._fail(work, error)
        if not going:
            return False
        started = self._tick_began = time.perf_counter()
        outcomes = self._advance([step for _, step in going])
        took_s = time.perf_counter() - started
        self._tick_began = None
        self.n_ticks += 1
        audio_s = sum(len(step.samples) for _, step in going) / SAMPLE_RATE
        self._on_tick(Tick(took_s, len(going), len(self._works), audio_s))
        for (work, step), outcome in zip(going, outcomes, strict=True):
            work.busy_s += took_s / len(going)
            try:
                self._hand_out(work, step.then, outcome)
            except Exception as error:
                if work in self._works:
                    self._fail(work, error)
        return True

    def _advance(self, steps: list[Step]) -> list[list[Event | PendingFinal] | Exception]:
        try:
            return self._recognizer.advance(steps)
        except Exception as error:  # a mistake of ours, which must not stop the worker
            return [error for _ in steps]

    def _hand_out(
        self, work: _Work, then: Then, outcome: Sequence[Output | PendingFinal] | Exception
    ) -> None:
        if isinstance(outcome, Exception):
            self._fail(work, outcome)
            return
        outputs: list[Output | Future[Final]] = []
        for each in outcome:
            work.n_finals += isinstance(each, Final | PendingFinal)
            outputs.append(
                self._second.submit(_second_pass, each) if isinstance(each, PendingFinal) else each
            )
        if then == "flush":
            outputs.append(Flushed(work.n_heard))
        elif then == "finish":
            ended = Finished(work.n_heard / SAMPLE_RATE, work.busy_s)
            outputs.append(Failed(work.error) if work.error is not None else ended)
        if then == "finish":
            self._drop(work)  # before anybody hears of it, so that the slot can be had at once
        else:
            outputs.append(Progress(work.n_heard, work.stream.n_due))
        work.out.put(outputs)

    def _fail(self, work: _Work, error: Exception) -> None:
        """End one stream; nobody else is concerned. Say what was committed, and free the slot.

        Whoever has the stream is told of the error, and logs it with the name of its session.
        """
        outputs: list[Output] = []
        with contextlib.suppress(Exception):  # what broke the stream may have broken its transcript
            outputs += work.stream.transcript.segments[work.n_finals :]
        self._drop(work)
        work.out.put([*outputs, Failed(error)])

    def _drop(self, work: _Work) -> None:
        work.intake.close()
        self._works.remove(work)
        self._pool.give_back(work.state)


def _second_pass(pending: PendingFinal) -> Final:
    try:
        return pending.run()
    except Exception:
        _log.exception("a second pass failed; the segment stays as it was heard")
        return pending.first


def _tell(
    loop: asyncio.AbstractEventLoop, answer: asyncio.Future[_T], tell: Callable[[_A], None], what: _A
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(lambda: None if answer.cancelled() else tell(what))
