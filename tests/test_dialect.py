"""What every protocol relies on: the order of messages, streams that restart, and a path that chooses it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asr.errors import OptionError
from asr.events import Final, Partial, SpeechEnded, SpeechStarted, Word
from service import routes
from service.config import Limits
from service.messages import (
    Audio,
    Close,
    Command,
    Done,
    Error,
    Flush,
    Message,
    Note,
    Ping,
    Pong,
    Problem,
    Ready,
    Reply,
    Restart,
    Start,
    Stop,
)
from service.outbox import Outgoing
from service.protocol.dialect import BadRequest, Dialect, Frame, Opening, Patience
from service.protocol.native import NativeDialect
from service.routes import ROUTES, Route
from service.session import Feed, Finish, Open, Reopen, Session, State
from service.splice import Splice
from service.stream_settings import AudioFormat, Finished, Flushed, Progress, StreamSettings
from tests.fake_batcher import FakeBatcher
from tests.serving import get, in_loop, metric, serving, until_empty

OTHER = Start(audio=AudioFormat("mulaw", 8000), settings=StreamSettings(chunk_ms=80), progress=True)


def streaming(start: Start | None = None) -> Session:
    """A session with an open stream, its ready taken."""
    session = Session(id="s", resume_token="t", model="fake", limits=Limits())
    assert session.receive(start or Start(), now=0) == Open()
    session.opened(now=0)
    assert isinstance(told(session)[0], Ready)
    return session


def told(session: Session) -> list[Message]:
    return [outgoing.message for outgoing in iter(session.outbox.take, None)]


def word(text: str, start: int, end: int) -> Word:
    return Word(text, start, end, 0.9, True)


# The session


def test_what_a_protocol_says_itself_takes_its_place() -> None:
    """Replies and notes stand where they were given among what the session tells, and are not numbered."""
    session = streaming()
    session.receive(Reply(("a",)), now=0)
    session.receive(Ping(1), now=0)
    session.receive(Note("b"), now=0)
    outgoing = list(iter(session.outbox.take, None))
    assert [each.message for each in outgoing] == [Reply(("a",)), Pong(1), Note("b")]
    assert [each.seq for each in outgoing] == [0, 0, 0]


def test_replies_that_tell_errors_count_as_errors() -> None:
    """Fifty are forgiven, as of any client."""
    session = streaming()
    for _ in range(50):
        assert session.receive(Reply(("?",), error="wrong"), now=0) is None
    assert session.receive(Reply(("fine",)), now=0) is None
    assert session.receive(Reply(("?",), error="wrong"), now=0) == Finish()


def test_restart() -> None:
    """The old stream is finished, the next one opened; times, segments and totals go on."""
    session = streaming()
    assert session.receive(Audio(bytes(32_000)), now=0) == Feed(bytes(32_000))
    assert session.receive(Restart(OTHER), now=0) == Reopen()
    assert session.state is State.RESTARTING
    session.deliver(Final(0, "one", (word("one", 0, 8000),), 0, 16_000, False, 16_000))
    session.deliver(Finished(1.0, 0.25))
    assert (session.state, session.start, session.audio_s) == (State.WAITING, OTHER, 1.0)
    assert told(session)[1:] == [Final(0, "one", (word("one", 0, 8000),), 0, 16_000, False, 16_000)]
    session.opened(now=0)
    session.receive(Audio(bytes(4000)), now=0)
    assert session.audio_s == 1.5
    session.receive(Flush(), now=0)
    for output in (
        SpeechStarted(800),
        Partial(0, "two", "", (word("two", 800, 1600),), 1600),
        SpeechEnded(1600),
        Final(0, "two", (word("two", 800, 1600),), 0, 2000, False, 2000),
        Flushed(8000),
        Progress(8000),
    ):
        session.deliver(output)
        if isinstance(output, Partial):
            (*_, partial) = told(session)
            assert partial == Partial(1, "two", "", (word("two", 16_800, 17_600),), 17_600)
    assert told(session) == [
        SpeechEnded(17_600),
        Final(1, "two", (word("two", 16_800, 17_600),), 16_000, 18_000, False, 18_000),
        Flushed(24_000),
        Progress(24_000),
    ]
    assert session.receive(Stop(), now=0) == Finish()
    session.deliver(Finished(0.5, 0.125))
    assert told(session) == [Done(1.5, 0.25, "stop"), Close(1000, "stop")]


def test_restart_before_start_is_a_start() -> None:
    """A protocol need not remember whether its start was taken."""
    session = Session(id="s", resume_token="t", model="fake", limits=Limits())
    assert session.receive(Restart(OTHER), now=0) == Open()
    assert session.start == OTHER


def test_a_refused_restart_can_be_tried_again() -> None:
    """The session waits for a start as in the beginning."""
    session = streaming()
    session.receive(Restart(OTHER), now=0)
    session.deliver(Finished(1.0, 0.1))
    session.refused(OptionError("language must be another"))
    assert session.receive(Audio(b"12"), now=0) is None
    assert [error.code for error in told(session) if isinstance(error, Error)] == [
        "invalid_field",
        "not_started",
    ]
    assert session.receive(Start(), now=0) == Open()
    session.opened(now=0)
    session.deliver(SpeechStarted(0))
    assert told(session)[-1] == SpeechStarted(16_000)


def test_a_limit_while_restarting() -> None:
    """The stream is being finished already; its end is the session's."""
    session = streaming()
    session.receive(Restart(OTHER), now=0)
    assert session.expire("session_limit", "too long") is None
    assert session.state is State.FINISHING
    session.deliver(Finished(1.0, 0.1))
    *_, error, done, close = told(session)
    assert (error.code, done.audio_s, close.reason) == ("session_limit", 1.0, "session_limit")


def test_segments_are_numbered_on_without_audio() -> None:
    """Also where the first stream heard nothing."""
    splice = Splice()
    splice.next_stream(Finished(0.0, 0.0))
    assert splice.place(Progress(5)) == Progress(5)
    assert splice.audio_s == 0


# The connection


class Echo(Dialect):
    """Tells what it is told, one line each."""

    def __init__(self, opening: Opening) -> None:
        if opening.query.get("wrong"):
            raise BadRequest("wrong is given; leave it out", code="wrong")
        self._opening = opening

    def patience(self, limits: Limits) -> Patience:
        return Patience(start_s=0.2, idle_s=limits.idle_s)

    def opened(self, session_id: str) -> Sequence[Frame]:
        return (f"hello {self._opening.model}", f"you are {self._opening.headers.get('user-agent', '')[:6]}")

    def start_commands(self) -> Sequence[Command | Reply]:
        return (Start(progress=True), Note("started")) if "start" in self._opening.query else ()

    def receive(self, frame: Frame) -> Sequence[Command | Reply]:
        match frame:
            case bytes():
                return (Audio(frame),)
            case "stop":
                return (Reply(("bye",)), Stop())
            case "restart":
                return (Restart(Start(settings=StreamSettings(chunk_ms=80))), Note("restarted"))
            case "wrong":
                return (Problem("wrong", "very"),)
            case "nothing":
                return ()
        raise ZeroDivisionError("a fault of ours")

    def send(self, outgoing: Outgoing) -> Sequence[Frame]:
        match outgoing.message:
            case Note(content):
                return (str(content),)
            case Final(text=text):
                return (text, "twice")
            case Partial() | SpeechStarted() | SpeechEnded():
                return ()
        return (type(outgoing.message).__name__,)

    def close(self, close: Close) -> tuple[Sequence[Frame], int, str]:
        return ("last",), 3000 + close.code % 1000, close.reason


@pytest.fixture(autouse=True)
def _echo(monkeypatch: pytest.MonkeyPatch) -> None:
    route = Route(
        Echo,
        lambda headers, query: list(query.get("key", ())),
        routes.openai_refusal,
        "show a key",
        subprotocols=("echo", "second"),
        message_bytes=20_000,
    )
    monkeypatch.setitem(ROUTES, "/echo", route)


def echo_url(server: Any, query: str = "") -> str:
    return str(server.stream_url.replace("/v1/stream", f"/echo?{query}"))


async def rest(websocket: Any) -> list[str]:
    frames = []
    try:
        while True:
            frames.append(await websocket.recv())
    except ConnectionClosed:
        return frames


@in_loop
async def test_a_path_chooses_its_protocol() -> None:
    """Greeting, commands from the address, several frames or none for a message, its own close code."""
    async with serving() as server, connect(echo_url(server, "start=")) as websocket:
        await websocket.send(bytes(16_000))
        await websocket.send("nothing")
        await websocket.send("stop")
        frames = await rest(websocket)
        assert frames[:4] == ["hello fake", "you are Python", "Ready", "started"]
        assert [each for each in frames[4:] if each not in ("Ack", "Progress")] == [
            "bye",
            "w0 w1",
            "twice",
            "Done",
            "last",
        ]
        assert (websocket.close_code, websocket.close_reason) == (3000, "stop")
        await until_empty(server)
        assert await metric(server, 'messages_received_total{type="start"}') == 1
        assert await metric(server, 'messages_sent_total{type="final"}') == 1
        assert await metric(server, 'messages_sent_total{type="partial"}') == 0


@in_loop
async def test_a_stream_restarts_on_its_slot() -> None:
    """The reader waits for the old stream's end; one place and one slot serve both."""
    batcher = FakeBatcher(n_slots=1, tick_s=0.01)
    async with serving(batcher, limits=Limits(max_streams=1)) as server:
        async with connect(echo_url(server, "start=")) as websocket:
            for _ in range(3):
                await websocket.send(bytes(8000))
            await websocket.send("restart")
            await websocket.send(bytes(8000))
            await websocket.send("stop")
            frames = [each for each in await rest(websocket) if each not in ("Ack", "Progress")]
        assert frames[2:] == [
            *("Ready", "started", "w0 w1 w2", "twice", "Ready", "restarted"),
            *("bye", "w0", "twice", "Done", "last"),
        ]
        assert [settings.chunk_ms for _, settings in batcher.opened] == [300, 80]
        assert await metric(server, "audio_seconds_total") == 1.0


@in_loop
async def test_patience_is_the_protocol_s() -> None:
    """Here 0.2 s to the start, whatever the server's limit is."""
    async with serving() as server, connect(echo_url(server)) as websocket:
        assert await rest(websocket) == ["hello fake", "you are Python", "Error", "last"]
        assert websocket.close_code == 3408


@in_loop
async def test_refusals_are_in_the_protocol_s_form() -> None:
    """A wrong address is HTTP 400, and the metrics know why."""
    async with serving() as server:
        with pytest.raises(InvalidStatus) as caught:
            async with connect(echo_url(server, "wrong=1")):
                pass
        assert caught.value.response.status_code == 400 and b"leave it out" in caught.value.response.body
        assert await metric(server, 'refused_total{reason="wrong"}') == 1
        assert (await get(server, "/echo?wrong=1"))[0] == 400
        assert (await get(server, "/echo"))[0] == 426


@in_loop
async def test_subprotocols() -> None:
    """The first offered one that the path knows; one that it does not know is no reason to refuse."""
    async with serving() as server:
        for offered, chosen in ((["x", "second", "echo"], "second"), (["x"], None), (None, None)):
            async with connect(echo_url(server), subprotocols=offered) as websocket:
                assert websocket.subprotocol == chosen
        async with connect(server.stream_url, subprotocols=["echo"]) as websocket:
            assert websocket.subprotocol is None


@in_loop
async def test_a_message_limit_of_its_own() -> None:
    """On this path only."""
    async with serving() as server:
        async with connect(echo_url(server, "start=")) as websocket:
            await websocket.send(bytes(20_001))
            await rest(websocket)
            assert websocket.close_code == 1009
        async with connect(server.stream_url) as websocket:
            await websocket.send(bytes(20_002))
            assert "not_started" in await websocket.recv()


@in_loop
async def test_a_crash_closes_with_the_protocol_s_code() -> None:
    """1011 unless it says otherwise."""
    async with serving() as server, connect(echo_url(server, "start=")) as websocket:
        await websocket.send("crash")
        assert (await rest(websocket))[-2:] == ["Error", "last"]
        assert websocket.close_code == 3000 + 4500 % 1000


@in_loop
async def test_who_cannot_come_back_leaves_no_session() -> None:
    """Only a resumable protocol's session outlives its connection."""
    async with serving() as server:
        async with connect(echo_url(server, "start=")) as websocket:
            await asyncio.wait_for(websocket.recv(), 5)
            websocket.transport.abort()
        await until_empty(server)
    assert NativeDialect.is_resumable and not Dialect.is_resumable
