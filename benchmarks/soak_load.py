"""Clients that come and go for :mod:`benchmarks.soak`: most speak to the end, some break off, some vanish."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from asr import SAMPLE_RATE, ForesoundError

BYTES_PER_S = 2 * SAMPLE_RATE
_BLOCK = BYTES_PER_S // 10
_RETRY_S = 0.5
_MAX_BROKEN = 20
FAULTS = (OSError, TimeoutError, WebSocketException, ForesoundError)
"""What a client may meet; everything else is a mistake of the benchmark."""
_VISITS = {"whole": 12, "cut": 5, "vanish": 2, "garbage": 1}  # how often each kind comes


@dataclass(frozen=True)
class Clip:
    """What a client says.

    Attributes:
        data: 16-bit samples, mono at 16 kHz.
        texts: The finals that a stream of its own gives.
    """

    data: bytes
    texts: tuple[str, ...]


@dataclass
class Tally:
    """What the clients have met so far.

    Attributes:
        n_visits: By kind.
        n_cuts: Connections broken and resumed.
        n_full: Handshakes refused because all places were taken; they were tried again.
        wrong: Finals that were not those of the clip alone, as "expected | got".
        failed: Visits that ended in an error nobody asked for, in words.
        end_ms: From the stop message to done, since this was last emptied.
    """

    n_visits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_VISITS, 0))
    n_cuts: int = 0
    n_full: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    end_ms: list[float] = field(default_factory=list)


class Speaker:
    """One stream, perhaps over several connections.

    Attributes:
        n_bytes: Sent so far.
        texts: Of the finals so far.
        end_s: From stop to done; None before.
        broken: Why the long stream had to resume, in words.
    """

    def __init__(self, url: str, data: bytes, *, speed: float | None) -> None:
        """Describe the stream.

        Args:
            url: Of the native protocol.
            data: What to say; see :class:`Clip`.
            speed: Against that of speech; None is as fast as the server takes it.
        """
        self._url, self._data = url, data
        self._block_s = 0.1 / speed if speed else 0.0
        self._resume: dict[str, Any] = {}
        self._finals: dict[int, str] = {}
        self._stopped_at = 0.0
        self._is_hushed = False
        self.n_bytes = 0
        self.end_s: float | None = None
        self.broken: list[str] = []

    @property
    def texts(self) -> tuple[str, ...]:
        """Of the finals so far."""
        return tuple(text for _, text in sorted(self._finals.items()))

    def hush(self) -> None:
        """Stop in order, wherever the stream is."""
        self._is_hushed = True

    async def speak(self, *, until: int | None = None) -> None:
        """Connect, or resume, and go on.

        Args:
            until: Break the connection after so many bytes; None is to finish in order.
        """
        token = self._resume.get("resume_token")
        query = f"?resume_token={token}" if token else ""
        # The server reads no faster than it recognises, and pings wait behind audio.
        async with connect(self._url + query, compression=None, ping_interval=None) as websocket:
            await websocket.send(json.dumps({"type": "start", "interim": False} | self._resume))
            ready = json.loads(await websocket.recv())
            if ready["type"] != "ready":
                raise ForesoundError(f"the server did not begin: {ready}")
            self._resume = {
                "resume_token": ready["resume_token"],
                "last_seq": self._resume.get("last_seq", 0),
            }
            reading = asyncio.create_task(self._read(websocket))
            with suppress(ConnectionClosed):
                await self._send(websocket, ready["bytes"], until)
            if until is not None:
                websocket.transport.abort()
            await reading

    async def speak_for_long(self) -> None:
        """Speak to the end, and resume what the network or a fault breaks off."""
        while self.end_s is None and len(self.broken) < _MAX_BROKEN:
            try:
                await self.speak()
                if self.end_s is None:
                    self.broken.append("the connection ended without done")
            except FAULTS as fault:
                self.broken.append(f"{type(fault).__name__}: {fault}")
                await asyncio.sleep(_RETRY_S)

    async def _send(self, websocket: ClientConnection, start: int, until: int | None) -> None:
        end = len(self._data) if until is None else min(until, len(self._data))
        began = time.perf_counter()
        for n_sent, position in enumerate(range(start, end, _BLOCK)):
            if self._is_hushed:
                break
            # By the clock, not from block to block: what a busy machine delays is caught up.
            await asyncio.sleep(max(0.0, began + n_sent * self._block_s - time.perf_counter()))
            await websocket.send(self._data[position : min(position + _BLOCK, end)])
            self.n_bytes = min(position + _BLOCK, end)
        if until is None:
            self._stopped_at = time.perf_counter()
            await websocket.send(json.dumps({"type": "stop"}))

    async def _read(self, websocket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            async for frame in websocket:
                message = json.loads(frame)
                self._resume["last_seq"] = max(self._resume["last_seq"], message.get("seq", 0))
                if message["type"] == "final":
                    self._finals[message["seq"]] = message["text"]
                elif message["type"] == "done":
                    self.end_s = time.perf_counter() - self._stopped_at


async def visit(url: str, clip: Clip, chance: random.Random, tally: Tally, *, speed: float) -> None:
    """Be one client of a random kind, and note what came of it.

    Args:
        url: Of the native protocol.
        clip: What it says.
        chance: Decides the kind and the moments of cuts.
        tally: Takes the result.
        speed: Against that of speech.
    """
    (kind,) = chance.choices(list(_VISITS), weights=list(_VISITS.values()))
    speaker = Speaker(url, clip.data, speed=speed)
    try:
        if kind == "garbage":
            await _talk_nonsense(url, chance)
        elif kind == "vanish":
            await speaker.speak(until=chance.randrange(len(clip.data)) & ~1)
        else:
            n_cuts = chance.randint(1, 3) if kind == "cut" else 0
            for position in sorted(chance.randrange(len(clip.data)) & ~1 for _ in range(n_cuts)):
                await speaker.speak(until=position)
                tally.n_cuts += 1
            await speaker.speak()
    except FAULTS as fault:
        if isinstance(fault, InvalidStatus) and fault.response.status_code == 503:
            tally.n_full += 1
        else:
            tally.failed.append(f"{kind}: {type(fault).__name__}: {fault}")
        await asyncio.sleep(_RETRY_S)
        return
    tally.n_visits[kind] += 1
    if kind in ("whole", "cut"):
        if speaker.texts != clip.texts:
            tally.wrong.append(f"{' / '.join(clip.texts)} | {' / '.join(speaker.texts)}")
        if speaker.end_s is not None:
            tally.end_ms.append(1000 * speaker.end_s)


async def _talk_nonsense(url: str, chance: random.Random) -> None:
    async with connect(url, compression=None) as websocket:
        with suppress(ConnectionClosed):
            for _ in range(chance.randint(1, 60)):
                await websocket.send(chance.choice(["{", "[]", '{"type": "start", "chunk_ms": -1}', "null"]))
            await websocket.send(b"\xff\xfe")
            websocket.transport.abort()
