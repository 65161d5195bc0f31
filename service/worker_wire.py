"""What the server and its model processes say to each other: pickles, each behind its length.

Both ends are one program on one machine, connected by a pair of sockets that nobody else can open.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.admission import Tick
from service.stream_settings import AudioFormat, Output, StreamSettings

_LENGTH = struct.Struct(">I")
_READ_AHEAD = 1 << 22  # bytes that may lie unread before the other end waits


@dataclass(frozen=True)
class Model:
    """What a model process loads.

    Attributes:
        model: As in :meth:`asr.Recognizer.load`, like the next four.
        defaults: Of streams whose clients say nothing; refused at once if the model refuses them.
        n_threads: Of torch in each process.
        log_format: One of :data:`service.logs.LOG_FORMATS`.
    """

    model: str
    adapter: str
    head: str
    weights: str
    device: str
    defaults: StreamSettings
    n_threads: int = 1
    log_format: str = "text"


@dataclass(frozen=True)
class OpenStream:
    """Open a stream; ``Opened`` or ``Refused`` is the answer."""

    id: int
    audio: AudioFormat
    settings: StreamSettings


@dataclass(frozen=True)
class Feed:
    """Add audio to a stream."""

    id: int
    data: bytes


@dataclass(frozen=True)
class Flush:
    """Make a stream's words final."""

    id: int


@dataclass(frozen=True)
class Finish:
    """End a stream."""

    id: int


@dataclass(frozen=True)
class Close:
    """Abandon a stream, or one that is being opened."""

    id: int


@dataclass(frozen=True)
class Loaded:
    """The model is there."""

    name: str
    languages: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """A stream is open."""

    id: int


@dataclass(frozen=True)
class Refused:
    """A stream is not opened; or, without an ``id``, the model is not loaded and the process ends."""

    id: int | None
    error: Exception


@dataclass(frozen=True)
class Outputs:
    """What a tick gave a stream; ``traceback`` belongs to a ``Failed`` among them."""

    id: int
    outputs: tuple[Output, ...]
    traceback: str = ""


@dataclass(frozen=True)
class Queue:
    """Of a stream: bytes that have arrived in the model process, and seconds of audio that wait there."""

    n_received: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """How a model process does, several times a second.

    Attributes:
        tick_age_s: Of the running tick; 0 while none runs.
        cpu_s: Processor time that the process has used.
        memory_bytes: Memory that it holds.
        queues: Of the streams where something has changed.
    """

    tick_age_s: float
    cpu_s: float
    memory_bytes: int
    queues: Mapping[int, Queue] = field(default_factory=dict)


Command = OpenStream | Feed | Flush | Finish | Close
Answer = Loaded | Opened | Refused | Outputs | Report | Tick


class Wire:
    """One end of a pair of sockets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Use :meth:`over` instead."""
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, end: socket.socket) -> Wire:
        """Talk over a connected socket, which belongs to the wire from now on."""
        return cls(*await asyncio.open_connection(sock=end, limit=_READ_AHEAD))

    def send(self, message: Command | Answer) -> None:
        """Send a message; one to an end that is gone is dropped."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._writer.write(_LENGTH.pack(len(data)) + data)

    async def messages(self) -> AsyncIterator[Any]:
        """Yield what comes, commands or answers, until the other end is gone."""
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                yield pickle.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    def close(self) -> None:
        """Let the other end find that this one is gone."""
        self._writer.close()


def portable(error: Exception) -> Exception:
    """Return the error, or one that says as much if it would not survive the way to another process."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    return error if type(copy) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")
