"""A process of the model: a batcher for the server, which is another process.

It ends when the server does, however that ends: then its socket is closed. Signals are the server's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import traceback
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from asr.errors import AudioError, OptionError
from asr.events import SAMPLE_RATE
from service.admission import Tick
from service.logs import configure_logs
from service.stream_settings import Failed, Finished, Output
from service.worker_wire import (
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
    portable,
)

if TYPE_CHECKING:
    from asr import Recognizer
    from service.batcher import Batcher, Slot

_REPORT_S = 0.1
_WARM_UP_S = 2

_log = logging.getLogger(__name__)


def main(end: socket.socket, model: Model, n_slots: int) -> None:
    """Load a model and serve streams until the other end is gone.

    Args:
        end: Of a connected pair of sockets.
        model: What to load.
        n_slots: Streams that can be open at a time.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal or a supervisor sends them to all processes
    configure_logs(model.log_format)
    os.environ["OMP_NUM_THREADS"] = str(model.n_threads)  # torch reads it when it is first imported
    asyncio.run(_serve(end, model, n_slots))


async def _serve(end: socket.socket, model: Model, n_slots: int) -> None:
    wire = await Wire.over(end)
    try:
        recognizer = await asyncio.to_thread(load, model)
        from service.batcher import Batcher

        loop = asyncio.get_running_loop()

        def on_tick(tick: Tick) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(wire.send, tick)

        batcher = Batcher(recognizer, n_slots=n_slots, on_tick=on_tick)
    except Exception as error:
        wire.send(Refused(None, portable(error)))
        wire.close()
        return
    async with batcher:
        wire.send(Loaded(recognizer.name, recognizer.languages))
        await _Worker(wire, batcher).run()


def load(model: Model) -> Recognizer:
    """Load a model.

    Args:
        model: Which.

    Returns:
        A recogniser that takes the default settings.

    Raises:
        ForesoundError: The model cannot be loaded, or refuses the defaults.
    """
    from asr import Recognizer

    device = model.device
    try:
        recognizer = Recognizer.load(
            model.model, adapter=model.adapter, head=model.head, weights=model.weights, device=device
        )
    except (RuntimeError, AssertionError) as error:  # torch's, for a device it does not have
        if device == "cpu":
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise OptionError(f"device '{device}' cannot be used ({reason}); try --device cpu") from error
    # A default that the model refuses is better found now than by every client.
    stream = recognizer.stream(
        decoder=model.defaults.decoder,
        latency=model.defaults.latency,
        chunk_ms=model.defaults.chunk_ms,
        right_context_ms=model.defaults.right_context_ms,
    )
    # The first calls of a process are slow; nobody should wait for them.
    stream.feed(np.random.default_rng(0).normal(0, 0.1, _WARM_UP_S * SAMPLE_RATE).astype(np.float32))
    stream.finish()
    return recognizer


class _Stream:
    """What the process knows of one stream."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.n_received = 0
        self.told = Queue(0, 0.0)

    @property
    def queue(self) -> Queue:
        return Queue(self.n_received, self.slot.queued_s)


class _Worker:
    """Carries out commands on a batcher, and sends what comes of them."""

    def __init__(self, wire: Wire, batcher: Batcher) -> None:
        self._wire, self._batcher = wire, batcher
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, _Stream] = {}

    async def run(self) -> None:
        """Work until the server is gone."""
        reporting = asyncio.create_task(self._report())
        async for command in self._wire.messages():
            self._do(command)
        reporting.cancel()

    def _do(self, command: Command) -> None:
        if isinstance(command, OpenStream):
            self._opening[command.id] = asyncio.create_task(self._open(command))
        elif isinstance(command, Close) and (opening := self._opening.pop(command.id, None)):
            opening.cancel()
        elif stream := self._streams.get(command.id):
            match command:
                case Feed(data=data):
                    stream.n_received += len(data)
                    stream.slot.feed(data)
                case Flush():
                    stream.slot.flush()
                case Finish():
                    stream.slot.finish()
                case Close():
                    stream.slot.close()
                    del self._streams[command.id]

    async def _open(self, asked: OpenStream) -> None:
        try:
            slot = await self._batcher.open(asked.audio, asked.settings, partial(self._deliver, asked.id))
        except Exception as error:
            self._wire.send(Refused(asked.id, portable(error)))
        else:
            self._streams[asked.id] = _Stream(slot)
            self._wire.send(Opened(asked.id))
        self._opening.pop(asked.id, None)

    def _deliver(self, id: int, outputs: Sequence[Output]) -> None:
        told, text = list(outputs), ""
        for index, output in enumerate(told):
            if isinstance(output, Failed):
                error = output.error
                text = "" if isinstance(error, AudioError) else "".join(traceback.format_exception(error))
                told[index] = Failed(portable(error))
            if isinstance(output, Failed | Finished):
                self._streams.pop(id, None)
        self._wire.send(Outputs(id, tuple(told), text))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            queues = {}
            for id, stream in self._streams.items():
                if (queue := stream.queue) != stream.told:
                    queues[id] = stream.told = queue
            batcher = self._batcher
            self._wire.send(Report(batcher.tick_age_s, batcher.cpu_s, batcher.memory_bytes, queues))
