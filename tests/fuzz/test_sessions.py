"""Any sequence of legal and illegal steps by several clients of a real server, over real sockets.

Whatever they do, in whatever order: nobody gets another's words, none is lost or told twice, what is left
behind is given back, and the server never calls anything a fault of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from service.config import Limits
from tests.fake_batcher import FakeBatcher
from tests.serving import RATE, Client, get, metric, serving

KEYS = st.sampled_from(["alpha", "beta"])
PICK = st.integers(0, 5)
WORD_BYTES = 2 * RATE // 4
PATIENCE_S = 10.0


@dataclass
class Talk:
    """What the test knows of one session.

    Attributes:
        key: Whose it is.
        token: To resume it; empty before it has started.
        n_bytes: Sent, as far as the server can have got it.
        finals: By number.
        last_seq: The newest number that came.
        is_done: Whether ``done`` has come.
    """

    key: str
    token: str = ""
    n_bytes: int = 0
    finals: dict[int, str] = field(default_factory=dict)
    last_seq: int = 0
    is_done: bool = False


class Conversations(RuleBasedStateMachine):
    """Up to six connections at a time, by two keys, to a server with four places."""

    @initialize()
    def serve(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = TemporaryDirectory()
        tokens = Path(self.folder.name) / "tokens"
        tokens.write_text("alpha\nbeta\n")
        self.batcher = FakeBatcher(n_slots=4)
        limits = Limits(max_streams=4, key_streams=3, resume_s=1000)
        # The context manager must live as long as the machine.
        self.serving = serving(self.batcher, limits=limits, token_file=tokens)
        self.server = self.run(self.serving.__aenter__())
        self.clients: list[tuple[Client, Talk]] = []
        self.talks: list[Talk] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, PATIENCE_S))

    def pick(self, number: int) -> tuple[Client, Talk] | None:
        return self.clients[number % len(self.clients)] if self.clients else None

    def send(self, number: int, frame: str | bytes) -> Talk | None:
        """Send over one of the connections, if it is still there."""
        if picked := self.pick(number):
            client, talk = picked
            with suppress(ConnectionClosed):
                self.run(client.websocket.send(frame))
                return talk
        return None

    @rule(key=KEYS)
    def come(self, key: str) -> None:
        """A new connection; refused where there is no place."""
        if len(self.clients) < 6:
            self.connect(key, "")

    def connect(self, key: str, query: str) -> Client | None:
        try:
            address = f"{self.server.stream_url}?token={key}{query}"
            websocket: ClientConnection = self.run(_connected(address))
        except InvalidStatus as refused:
            assert refused.response.status_code in (429, 503)
            return None
        self.clients.append((Client(websocket), Talk(key)))
        return self.clients[-1][0]

    @rule(number=PICK)
    def start(self, number: int) -> None:
        self.send(number, '{"type": "start"}')

    @rule(number=PICK, n_words=st.integers(1, 9))
    def speak(self, number: int, n_words: int) -> None:
        self.send(number, bytes(n_words * WORD_BYTES))

    @rule(number=PICK, frame=st.sampled_from(["{", "[]", '{"type": "start", "chunk_ms": 1}', b"odd", b""]))
    def blunder(self, number: int, frame: str | bytes) -> None:
        self.send(number, frame)

    @rule(number=PICK, kind=st.sampled_from(["flush", "ping", "flush", "stop"]))
    def command(self, number: int, kind: str) -> None:
        self.send(number, f'{{"type": "{kind}"}}')

    @rule(number=PICK)
    def listen(self, number: int) -> None:
        """Read what is there."""
        if picked := self.pick(number):
            self.run(self.read(*picked, wait_s=0.005))

    @rule(number=PICK)
    def cut(self, number: int) -> None:
        """Break a connection; what was on its way in either direction may be lost."""
        if picked := self.pick(number):
            self.run(self.read(*picked, wait_s=0.001))
            picked[0].cut()
            self.clients.remove(picked)
            self.run(asyncio.sleep(0.002))

    @rule(number=PICK, key=KEYS, in_address=st.booleans())
    def resume(self, number: int, key: str, in_address: bool) -> None:
        """Come back to a session, one's own or another key's, whose old connection may still be there."""
        if not self.talks or len(self.clients) >= 6:
            return
        talk = self.talks[number % len(self.talks)]
        client = self.connect(key, f"&resume_token={talk.token}" if in_address else "")
        if client is None:
            return
        self.clients.pop()
        self.run(client.send("start", resume_token=talk.token, last_seq=talk.last_seq))
        answer = self.run(self.first(client))
        if key != talk.key:
            assert answer is None or answer["type"] == "error", answer
            client.cut()
        elif answer and answer["type"] == "ready":
            assert answer["resumed"] and answer["resume_token"] == talk.token
            self.clients.append((client, talk))
        else:  # the session is over
            client.cut()

    @rule(is_held=st.booleans())
    def hold(self, is_held: bool) -> None:
        """The model is busy for a while."""
        self.run(self.hold_or_release(is_held))

    async def hold_or_release(self, is_held: bool) -> None:
        if is_held:
            self.batcher.hold()
        else:
            self.batcher.release()

    @invariant()
    def nothing_is_counted_wrong(self) -> None:
        if not hasattr(self, "server"):
            return
        registry = self.server._registry
        held = sum(place.n_streams for place in registry._places)
        assert self.batcher.n_used <= held <= 4
        for key in {place.key for place in registry._places}:
            assert sum(place.n_streams for place in registry._places if place.key == key) <= 3
        for _, talk in self.clients:
            check_words(talk)

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        self.run(self.hold_or_release(False))
        for client, talk in list(self.clients):
            self.run(self.read(client, talk, wait_s=0.02))
            if talk.token:  # it has started, and ends in order now
                with suppress(ConnectionClosed):
                    self.run(client.send("stop"))
                self.run(self.read(client, talk, wait_s=PATIENCE_S))
                check_words(talk)
            client.cut()
        assert self.run(metric(self.server, "crashes_total")) == 0
        assert self.run(get(self.server, "/healthz"))[0] == 200
        self.run(self.serving.__aexit__(None, None, None))
        assert self.batcher.n_used == 0 and not self.server._registry._places
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        self.folder.cleanup()

    async def first(self, client: Client) -> dict[str, Any] | None:
        """The first answer; None if the connection closes instead."""
        with suppress(ConnectionClosed):
            return await client.recv()
        return None

    async def read(self, client: Client, talk: Talk, *, wait_s: float) -> None:
        """Take messages until none comes for a while or the connection is closed."""
        with suppress(ConnectionClosed, asyncio.TimeoutError):
            while True:
                n_before = client.last_seq
                message = await asyncio.wait_for(client.recv(), wait_s)
                assert message.get("seq", n_before + 1) > n_before, "told twice on one connection"
                talk.last_seq = max(talk.last_seq, message.get("seq", 0))
                if message["type"] == "ready" and not talk.token:
                    talk.token = message["resume_token"]
                    self.talks.append(talk)
                elif message["type"] == "final":
                    # A connection that was taken over may still be read: its numbers are the other's.
                    text = talk.finals.setdefault(message["seq"], message["text"])
                    assert text == message["text"]
                elif message["type"] == "ack":
                    talk.n_bytes = max(talk.n_bytes, message["bytes"])
                elif message["type"] == "done":
                    talk.is_done = True
                    talk.n_bytes = round(message["audio_s"] * 2 * RATE)


def check_words(talk: Talk) -> None:
    """Its own words from the first on, none left out or twice; all of them once it is done."""
    words = " ".join(text for _, text in sorted(talk.finals.items())).split()
    assert words == [f"w{n}" for n in range(len(words))], words
    if talk.is_done:
        assert len(words) == talk.n_bytes // WORD_BYTES


async def _connected(address: str) -> ClientConnection:
    return await connect(address, compression=None)


TestConversations = Conversations.TestCase
TestConversations.settings = settings(
    max_examples=20,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
