"""A server for tests of the browser page: the real files, a scripted recogniser behind the native protocol.

It "recognises" the words of a script as the audio reaches their times, whatever the audio holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from service.http import STREAM_PATH, asset_response, load_page, text_response, unavailable

PARTIAL_S = 0.1
COMMIT_S = 0.5  # a word is committed this long after its end
FINAL_S = 0.7  # a segment is final this long after its last word
ACK_S = 1.0
_BYTES_PER_SAMPLE = 2


@dataclass(frozen=True)
class Segment:
    """Words that become one final.

    Attributes:
        words: Text, start and end in seconds.
    """

    words: tuple[tuple[str, float, float], ...]

    @property
    def start(self) -> float:
        return self.words[0][1]

    @property
    def end(self) -> float:
        return self.words[-1][2]


def segment(text: str, start: float, end: float) -> Segment:
    """Return a segment whose words share its time equally."""
    words = text.split()
    step = (end - start) / len(words)
    return Segment(
        tuple((word, start + i * step, start + (i + 0.8) * step) for i, word in enumerate(words)),
    )


SCRIPT = (
    segment("And so, my fellow Americans,", 0.3, 2.3),
    segment("ask not what your country can do for you.", 3.3, 7.6),
    segment("Ask what you can do for your country.", 8.2, 10.6),
)


@dataclass
class Session:
    """What the recogniser knows of one stream, over all of its connections."""

    token: str
    start: dict[str, Any]
    script: Sequence[Segment]
    audio: bytearray = field(default_factory=bytearray)
    sent: list[dict[str, Any]] = field(default_factory=list)  # messages with a seq
    n_finals: int = 0
    n_starts: int = 0
    partial_at_s: float = 0.0
    acknowledged_s: float = 0.0
    is_done: bool = False
    resumed_after: list[int] = field(default_factory=list)  # each resume's last_seq

    @property
    def heard_s(self) -> float:
        return len(self.audio) / _BYTES_PER_SAMPLE / int(self.start["sample_rate"])

    @property
    def n_samples(self) -> int:
        return len(self.audio) // _BYTES_PER_SAMPLE

    def hear(self, audio: bytes) -> Iterator[dict[str, Any]]:
        """Take audio; give what is to be sent."""
        self.audio += audio
        if (
            self.n_starts == self.n_finals < len(self.script)
            and self.heard_s >= self.script[self.n_starts].start
        ):
            self.n_starts += 1
            yield self._numbered({"type": "speech_started", "time": self.heard_s})
        while self.n_finals < len(self.script) and self.heard_s >= self.script[self.n_finals].end + FINAL_S:
            yield self._numbered({"type": "speech_ended", "time": self.heard_s})
            yield self._final()
        if self.n_finals < len(self.script) and self.heard_s >= self.partial_at_s + PARTIAL_S:
            self.partial_at_s = self.heard_s
            if self._words():
                yield self.partial()

    def finish(self) -> Iterator[dict[str, Any]]:
        """End the stream; give what is to be sent."""
        while self.n_finals < len(self.script) and self._words():
            yield self._final()
        if not self.is_done:
            self.is_done = True
            yield self._numbered({"type": "done", "audio_s": self.heard_s, "rtf": 0.1, "reason": "stop"})

    def partial(self) -> dict[str, Any]:
        """Return the newest partial."""
        words = self._words()
        committed = " ".join(word["text"] for word in words if word["stable"])
        text = " ".join(word["text"] for word in words)
        return {
            "type": "partial",
            "segment": self.n_finals,
            "committed": committed,
            "draft": text[len(committed) :],
            "words": words,
            "time": self.heard_s,
        }

    def _final(self) -> dict[str, Any]:
        words = [{**word, "stable": True} for word in self._words()]
        message = {
            "type": "final",
            "segment": self.n_finals,
            "text": " ".join(word["text"] for word in words),
            "words": words,
            "start": words[0]["start"],
            "end": words[-1]["end"],
            "second_pass": bool(self.start.get("second_pass")),
            "time": self.heard_s,
        }
        self.n_finals += 1
        return self._numbered(message)

    def _words(self) -> list[dict[str, Any]]:
        return [
            {
                "text": text,
                "start": round(start, 3),
                "end": round(end, 3),
                "confidence": 0.42 if text == "fellow" else 0.97,
                "stable": end + COMMIT_S <= self.heard_s,
            }
            for text, start, end in self.script[self.n_finals].words
            if end <= self.heard_s
        ]

    def _numbered(self, message: dict[str, Any]) -> dict[str, Any]:
        self.sent.append({**message, "seq": len(self.sent) + 1})
        return self.sent[-1]


class PageServer:
    """Serves the page and the protocol on a free port of this machine.

    Attributes:
        sessions: All streams so far, oldest first.
        n_connections: Websockets that were opened.
        is_away: While set, connections are refused as by a server that restarts.
        is_terse: Whether requests that open no websocket learn nothing of full places and tokens.
        forgets: Whether nobody can resume, as after a restart.
    """

    def __init__(
        self,
        *,
        script: Sequence[Segment] = SCRIPT,
        model: str = "tiny.en",
        token: str | None = None,
        is_full: bool = False,
        cuts_s: Sequence[float] = (),
        speed: float | None = None,
    ) -> None:
        """Describe a server.

        Args:
            script: What it recognises.
            model: Its model's name.
            token: What clients must present.
            is_full: Whether it refuses all streams.
            cuts_s: Seconds of audio after which the connection breaks, each once.
            speed: Audio is taken at so many times real time; None is as fast as it comes.
        """
        self.sessions: list[Session] = []
        self.n_connections = 0
        self.is_away = False
        self.is_terse = False
        self.forgets = False
        self._script = script
        self._model = model
        self._token = token
        self._is_full = is_full
        self._cuts_s = list(cuts_s)
        self._speed = speed
        self._assets = load_page()
        self._server: Server | None = None

    async def __aenter__(self) -> PageServer:
        self._server = await serve(
            self._handle,
            "127.0.0.1",
            0,
            process_request=self._process,
            max_queue=2,
            compression=None,
            close_timeout=0.5,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def _process(self, connection: ServerConnection, request: Request) -> Response | None:
        address = urlsplit(request.path)
        if address.path == "/readyz":
            return unavailable("full") if self._is_full else text_response(HTTPStatus.OK, "ok")
        if address.path != STREAM_PATH:
            asset = self._assets.get(address.path)
            return asset_response(asset) if asset else text_response(HTTPStatus.NOT_FOUND, "no such page")
        if self.is_terse and "Upgrade" not in request.headers:
            return None  # websockets itself answers 426
        if self._token is not None and parse_qs(address.query).get("token") != [self._token]:
            return text_response(HTTPStatus.UNAUTHORIZED, "give a token")
        return unavailable("the server is full") if self._is_full or self.is_away else None

    async def _handle(self, connection: ServerConnection) -> None:
        self.n_connections += 1
        with contextlib.suppress(ConnectionClosed):
            start = json.loads(await connection.recv())
            session = await self._open(connection, start)
            async for data in connection:
                if isinstance(data, bytes):
                    await self._hear(connection, session, data)
                elif json.loads(data)["type"] == "ping":
                    await _send(connection, {"type": "pong", "id": json.loads(data).get("id")})
                else:
                    await _send(connection, *session.finish())
                    return

    async def _open(self, connection: ServerConnection, start: dict[str, Any]) -> Session:
        token = start.get("resume_token")
        if token is not None and self.forgets:
            error = {"type": "error", "code": "unknown_resume_token", "message": "unknown", "fatal": True}
            await _send(connection, error)
            await connection.close(4404)
        session = next((each for each in self.sessions if each.token == token), None)
        resumed = session is not None
        if session is None:
            session = Session(f"resume-{len(self.sessions)}", start, self._script)
            self.sessions.append(session)
        else:
            session.resumed_after.append(start["last_seq"])
        ready = {
            "type": "ready",
            "session": "s",
            "resume_token": session.token,
            "resumed": resumed,
            "samples": session.n_samples,
            "bytes": len(session.audio),
            "model": self._model,
            "settings": {"language": session.start.get("language")},
            "limits": {
                "message_bytes": 1 << 20,
                "queue_s": 10,
                "idle_s": 60,
                "session_s": 3600,
                "resume_s": 30,
            },
        }
        missed = [each for each in session.sent if each["seq"] > start.get("last_seq", 0)]
        await _send(connection, ready, *missed)
        if resumed and session.n_finals < len(session.script):
            await _send(connection, session.partial())
        return session

    async def _hear(self, connection: ServerConnection, session: Session, audio: bytes) -> None:
        messages = list(session.hear(audio))
        # What the cut connection was about to say is lost with it.
        if self._cuts_s and session.heard_s >= self._cuts_s[0]:
            self._cuts_s.pop(0)
            connection.transport.abort()
            return
        if session.heard_s >= session.acknowledged_s + ACK_S:
            session.acknowledged_s = session.heard_s
            messages.append({"type": "ack", "samples": session.n_samples, "bytes": len(session.audio)})
        await _send(connection, *messages)
        if self._speed is not None:
            seconds = len(audio) / _BYTES_PER_SAMPLE / int(session.start["sample_rate"])
            await asyncio.sleep(seconds / self._speed)


async def _send(connection: ServerConnection, *messages: dict[str, Any]) -> None:
    for message in messages:
        await connection.send(json.dumps(message))
