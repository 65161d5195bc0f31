"""A client's dialogue with a protocol, over a real session but without sockets, clock or model.

``Dialogue.log`` is what a recorded conversation holds: a line for each frame, ``>`` sent, ``<`` received.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from service.config import Limits
from service.messages import Close, Command, Reply
from service.protocol.dialect import Dialect, Frame
from service.session import Feed, Finish, Flush, Open, Reopen, Session, State
from service.stream_settings import Output
from tests.fake_batcher import FakeBatcher, FakeSlot

_RECORDINGS = Path(__file__).parent / "fixtures" / "conversations"


class Dialogue:
    """Plays the connection; everything that the client sends is recognised and answered at once, or held."""

    def __init__(self, dialect: Dialect, *, model: str = "fake", limits: Limits | None = None) -> None:
        """Shake hands."""
        self.dialect = dialect
        self.session = Session(id="5e551014", resume_token="secret", model=model, limits=limits or Limits())
        self.batcher = FakeBatcher()
        self.batcher.hold()
        self.slot: FakeSlot | None = None
        self.received: list[str] = []
        self.closed: tuple[int, str] | None = None
        self.log: list[str] = []
        self.is_held = False
        self.is_scripted = False  # nothing is recognised but what is delivered
        self._get(dialect.opened(self.session.id))
        self._obey(dialect.start_commands())
        self.pump()

    def send(self, frame: Frame, *, shown: str = "") -> list[str]:
        """Send a frame; return what came back."""
        self.log.append(f"> {shown or (frame if isinstance(frame, str) else f'{len(frame)} bytes')}")
        n_before = len(self.received)
        self._obey(self.dialect.receive(frame))
        self.pump()
        return self.received[n_before:]

    def deliver(self, *outputs: Output) -> list[str]:
        """Let the stream give something; return what the client gets."""
        n_before = len(self.received)
        for output in outputs:
            self.session.deliver(output)
        self._write()
        return self.received[n_before:]

    def pump(self) -> None:
        """Let the model recognise and the connection write, unless they are held."""
        while not self.is_held:
            while self.slot and self.slot.is_busy and not self.is_scripted:
                for output in self.slot.tick():
                    self.session.deliver(output)
            self._write()
            if self.is_scripted or not (self.slot and self.slot.is_busy):
                return

    def messages(self) -> list[dict]:
        """All that the client has got."""
        return [json.loads(text) for text in self.received]

    def _obey(self, commands: Sequence[Command | Reply]) -> None:
        for command in commands:
            match self.session.receive(command, now=0.0):
                case Open():
                    self._open()
                case Reopen():
                    self.slot.finish()
                    held, self.is_held = self.is_held, False
                    self.pump()
                    self.is_held = held
                    if self.session.state is State.WAITING:
                        self._open()
                case Feed(data):
                    self.slot.feed(data)
                case Flush():
                    self.slot.flush()
                case Finish():
                    self.slot.finish()

    def _open(self) -> None:
        self.slot = FakeSlot(self.batcher, self.session.start.audio, lambda _: None, " d")
        self.batcher.slots.add(self.slot)
        self.session.opened(now=0.0)

    def _write(self) -> None:
        while self.closed is None and (outgoing := self.session.outbox.take()):
            match outgoing.message:
                case Close() as close:
                    frames, code, reason = self.dialect.close(close)
                    self._get(frames)
                    self.closed = code, reason
                    self.log.append(f"< close {code} {reason}".rstrip())
                case Reply(frames):
                    self._get(frames)
                case _:
                    self._get(self.dialect.send(outgoing))

    def _get(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            assert isinstance(frame, str)
            self.received.append(frame)
            self.log.append(f"< {frame}")


def assert_recorded(dialogue: Dialogue, name: str) -> None:
    """The dialogue is the recorded one; with FORESOUND_RECORD set it is recorded anew."""
    path = _RECORDINGS / f"{name}.txt"
    text = "\n".join(dialogue.log) + "\n"
    if os.environ.get("FORESOUND_RECORD"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
