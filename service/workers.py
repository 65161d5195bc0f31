"""Model processes: each has weights and streams of its own, and a tick in one holds up none in another.

In one process several ticks would take turns: between torch's operations, many and small, each needs Python's
lock. And an operating system that ends a process, or a crash in native code, takes its streams only; the
process begins anew. A stream joins the process that has the fewest.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType

from asr.errors import ForesoundError
from service.admission import Tick
from service.stream_settings import AudioFormat, Failed, Finished, NoSlotError, Output, StreamSettings
from service.worker import main
from service.worker_wire import (
    Answer,
    Close,
    Command,
    Feed,
    Finish,
    Flush,
    Loaded,
    Model,
    Opened,
    OpenStream,
    Outputs,
    Queue,
    Refused,
    Report,
    Wire,
)

_SILENCE_S = 2.0  # a process that says nothing for so long is as one whose tick does not end
_END_S = 12.0  # for a process to end once the server is through with it, its last tick included
_AGAIN_S = (0.0, 1.0, 5.0, 30.0)  # before each new try to start a process that has ended

Deliver = Callable[[Sequence[Output]], None]

_log = logging.getLogger(__name__)


class WorkerError(ForesoundError):
    """A model process ended; or the traceback of what failed there."""


class WorkerSlot:
    """One stream in a model process; its methods never wait."""

    def __init__(self, worker: Worker, id: int, audio: AudioFormat, deliver: Deliver) -> None:
        """Made by :meth:`Workers.open`."""
        self._worker, self._id, self._audio = worker, id, audio
        self._n_fed = 0
        self._queue = Queue(0, 0.0)
        self.deliver = deliver

    @property
    def queued_s(self) -> float:
        """Seconds of audio fed and not yet recognised; estimated for compressed audio."""
        on_its_way_s = (self._n_fed - self._queue.n_received) / self._audio.bytes_per_s
        return on_its_way_s + self._queue.seconds

    def feed(self, data: bytes) -> None:
        """Add audio: whole sample frames, or for compressed audio any bytes."""
        self._n_fed += len(data)
        self._worker.send(Feed(self._id, data))

    def flush(self) -> None:
        """Make at least everything fed so far final, then deliver ``Flushed``."""
        self._worker.send(Flush(self._id))

    def finish(self) -> None:
        """Make everything final, then deliver ``Finished`` and free the slot."""
        self._worker.send(Finish(self._id))

    def close(self) -> None:
        """Abandon the stream: nothing more is delivered, and the slot is freed."""
        self._worker.close(self._id)

    def report(self, queue: Queue) -> None:
        """Learn what waits in the process, and let whoever waits for it to become less look."""
        self._queue = queue
        self.deliver(())


class Worker:
    """One model process at a time: when it ends without being told to, the next one.

    Attributes:
        loaded: What it has loaded.
        report: The newest.
        is_ready: Whether it takes streams.
        pid: The process; None between two.
    """

    def __init__(self, model: Model, *, n_slots: int, on_tick: Callable[[Tick], None]) -> None:
        """Start nothing yet.

        Args:
            model: What to load.
            n_slots: Streams that can be open at a time.
            on_tick: Told of every tick.
        """
        self._model, self._n_slots, self._on_tick = model, n_slots, on_tick
        self._slots: dict[int, WorkerSlot] = {}
        self._opening: dict[int, asyncio.Future[None]] = {}
        self._wire: Wire | None = None
        self._running: asyncio.Task[None] | None = None
        self._heard_at = 0.0
        self._is_stopping = False
        self._cpu_before_s = 0.0  # of processes that have ended
        self.loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self.report = Report(0.0, 0.0, 0)
        self.is_ready = False
        self.pid: int | None = None

    @property
    def n_streams(self) -> int:
        """Streams that are open or about to be."""
        return len(self._slots)

    @property
    def tick_age_s(self) -> float:
        """Seconds since the running tick began or, beyond a while, since anything came; else 0."""
        silent_s = time.monotonic() - self._heard_at if self.is_ready else 0.0
        if self.report.tick_age_s or silent_s > _SILENCE_S:
            return self.report.tick_age_s + silent_s
        return 0.0

    @property
    def cpu_s(self) -> float:
        """Processor time used so far."""
        return self._cpu_before_s + self.report.cpu_s

    def start(self) -> None:
        """Start the process; ``loaded`` tells how that went."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the process; streams still open are abandoned."""
        self._is_stopping = True
        if self._wire:
            self._wire.close()
        elif self._running:
            self._running.cancel()
        if self._running:
            await asyncio.gather(self._running, return_exceptions=True)

    def send(self, command: Command) -> None:
        """Send a command; one to a process that has ended is dropped, as its streams are."""
        if self._wire:
            self._wire.send(command)

    async def open(
        self, id: int, audio: AudioFormat, settings: StreamSettings, deliver: Deliver
    ) -> WorkerSlot:
        """Open a stream, as :meth:`Workers.open` has it."""
        slot = self._slots[id] = WorkerSlot(self, id, audio, deliver)
        answer = self._opening[id] = asyncio.get_running_loop().create_future()
        try:
            self.send(OpenStream(id, audio, settings))
            await answer
        except BaseException:
            self.close(id)
            raise
        finally:
            self._opening.pop(id, None)
        return slot

    def close(self, id: int) -> None:
        """Abandon a stream, however far it is."""
        if self._slots.pop(id, None):
            self.send(Close(id))

    async def _run(self) -> None:
        n_tries = 0
        while not self._is_stopping:
            await asyncio.sleep(_AGAIN_S[min(n_tries, len(_AGAIN_S) - 1)])
            why, was_ready = await self._run_process()
            if self._is_stopping:
                return
            if not self.loaded.done():
                self.loaded.set_exception(WorkerError(f"{why} before it had loaded it"))
            if self.loaded.exception():
                return
            self._give_up_streams(why)
            n_tries = 1 if was_ready else n_tries + 1

    async def _run_process(self) -> tuple[str, bool]:
        """Why the process ended, and whether it was ready before."""
        with self._process() as (process, end):
            self.pid = process.pid
            self._wire = await Wire.over(end)
            async for answer in self._wire.messages():
                self._take(answer)
            self._wire.close()
            self._wire = self.pid = None
            was_ready, self.is_ready = self.is_ready, False
            self._cpu_before_s, self.report = self.cpu_s, Report(0.0, 0.0, 0)
            await asyncio.to_thread(process.join, _END_S)
            if process.exitcode is None:
                return "a process of the model did not end and was killed", was_ready
            return f"a process of the model ended with exit code {process.exitcode}", was_ready

    @contextmanager
    def _process(self) -> Iterator[tuple[multiprocessing.process.BaseProcess, socket.socket]]:
        """Start a process, and make sure at the end that it is gone."""
        ours, theirs = socket.socketpair()
        # Not forked: torch's threads do not survive that.
        process = multiprocessing.get_context("spawn").Process(
            target=main, args=(theirs, self._model, self._n_slots), name="model", daemon=True
        )
        process.start()
        theirs.close()
        try:
            yield process, ours
        finally:
            process.kill()
            process.join()

    def _take(self, answer: Answer | Command) -> None:
        self._heard_at = time.monotonic()
        match answer:
            case Loaded():
                self.is_ready = True
                if not self.loaded.done():
                    self.loaded.set_result(answer)
            case Tick():
                self._on_tick(answer)
            case Outputs(id=id) if slot := self._slots.get(id):
                self._hand_out(slot, answer)
            case Report(queues=queues):
                self.report = answer
                for id, queue in queues.items():
                    if slot := self._slots.get(id):
                        slot.report(queue)
            case Opened(id=id) if id in self._opening:
                self._opening[id].set_result(None)
            case Refused(id=None, error=error):
                if self.loaded.done():
                    _log.error("a process of the model could not load it again", exc_info=error)
                else:
                    self.loaded.set_exception(error)
            case Refused(id=id, error=error) if id in self._opening:
                self._slots.pop(id, None)
                self._opening[id].set_exception(error)

    def _hand_out(self, slot: WorkerSlot, answer: Outputs) -> None:
        for output in answer.outputs:
            if isinstance(output, Finished | Failed):
                self._slots.pop(answer.id, None)
            if isinstance(output, Failed) and answer.traceback:
                output.error.__cause__ = WorkerError(answer.traceback)
        slot.deliver(answer.outputs)

    def _give_up_streams(self, why: str) -> None:
        _log.error("%s; %d streams failed", why, len(self._slots))
        for answer in self._opening.values():
            if not answer.done():
                answer.set_exception(WorkerError(why))
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            slot.deliver((Failed(WorkerError(why)),))


class Workers:
    """Slots in model processes; an async context manager.

    Attributes:
        loaded: What the processes have loaded.
    """

    loaded: Loaded

    def __init__(
        self,
        model: Model,
        *,
        n_slots: int,
        n_workers: int = 1,
        on_tick: Callable[[Tick], None] = lambda tick: None,
    ) -> None:
        """Start nothing yet.

        Args:
            model: What to load.
            n_slots: Streams that can be open at a time.
            n_workers: Processes, at most one for each slot.
            on_tick: Told of every tick.
        """
        self._n_slots = n_slots
        n_workers = min(n_workers, n_slots)

        def count(tick: Tick) -> None:
            on_tick(replace(tick, n_lanes=n_workers))

        # Streams go where there are fewest, so as many slots for each are enough.
        self._share = -(-n_slots // n_workers)
        self._workers = [Worker(model, n_slots=self._share, on_tick=count) for _ in range(n_workers)]
        self._n_opened = 0

    @property
    def n_slots(self) -> int:
        """Streams that can be open at a time: fewer while a process begins anew."""
        return min(self._n_slots, self._share * self.n_lanes)

    @property
    def n_lanes(self) -> int:
        """Ticks that may run at a time: processes that are ready."""
        return sum(worker.is_ready for worker in self._workers)

    @property
    def n_used(self) -> int:
        """Slots in use."""
        return sum(worker.n_streams for worker in self._workers)

    @property
    def tick_age_s(self) -> float:
        """Seconds since the oldest running tick began; 0 while none runs."""
        return max(worker.tick_age_s for worker in self._workers)

    @property
    def cpu_s(self) -> float:
        """Processor time of all processes so far."""
        return sum(worker.cpu_s for worker in self._workers)

    @property
    def memory_bytes(self) -> int:
        """Memory that all processes hold."""
        return sum(worker.report.memory_bytes for worker in self._workers)

    async def __aenter__(self) -> Workers:
        """Start the processes and wait until they have loaded the model.

        Raises:
            ForesoundError: The model cannot be loaded, or refuses the defaults.
        """
        for worker in self._workers:
            worker.start()
        loaded = await asyncio.gather(*(worker.loaded for worker in self._workers), return_exceptions=True)
        for each in loaded:
            if isinstance(each, BaseException):
                await self._stop()
                raise each
            self.loaded = each
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes; streams still open are abandoned."""
        await self._stop()

    async def _stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    async def open(self, audio: AudioFormat, settings: StreamSettings, deliver: Deliver) -> WorkerSlot:
        """Open a stream in the process that has the fewest.

        Args:
            audio: What will be fed.
            settings: How it is to be recognised.
            deliver: Called on this event loop after every tick in which the stream took part, with its
                outputs in order, a ``Progress`` at their end; and with nothing when its queue has changed.

        Returns:
            The stream's slot.

        Raises:
            OptionError: The model refuses a setting.
            NoSlotError: All slots are taken, or no process is ready.
            WorkerError: The process ended meanwhile.
        """
        ready = [worker for worker in self._workers if worker.is_ready]
        if not ready:
            raise NoSlotError("no process of the model is ready; try again later")
        worker = min(ready, key=lambda worker: worker.n_streams)
        self._n_opened += 1
        return await worker.open(self._n_opened, audio, settings, deliver)
