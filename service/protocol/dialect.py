"""What a wire protocol has to provide: frames to commands, messages to frames. No sockets, no clock.

One dialect serves one connection and may keep what it has to remember of it; docs/design.md, section 5, tells
how connection, dialect and session work together::

    handshake ── Opening ──> open_dialect() -> Dialect      (BadRequest: HTTP 400, there is no connection)
    opened()                                 the first frames, then the commands of start_commands()
    frame ──> receive() ──> Command, Reply   in order; a Reply takes its place among the session's messages
    session's message ──> send() ──> frames
    session's Close ──> close() ──> the last frames, close code, reason

What a dialect may rely on:

- Of the messages of :mod:`service.messages` those of a stream come in this order: ``Ready``, then events,
  ``Flushed`` for each ``Flush``, ``Done`` after ``Stop``, ``Close``. Where the client reads slowly, only the
  newest ``Partial``, ``Ack`` and ``Progress`` are kept; all the others always come.
- ``receive`` runs ahead of ``send``: commands take effect in order, their messages come later. A ``Note``
  comes back to ``send`` in its place: after what the commands before it caused at once, and after ``Ready``
  or the refusal if that was a ``Start`` or ``Restart``.
- A ``Start`` that the model refuses is answered by ``Error("invalid_field", ...)`` whose ``field`` is the
  option; audio that follows is answered by ``not_started`` until another ``Start`` is taken.
- ``Restart`` changes the settings of a running stream: what was sent before is recognised with the old ones.
  Times and segment numbers go on.
- ``Start(progress=True)`` asks for ``Progress``: how far the audio has been recognised, also in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from service.config import Limits
from service.messages import Close, Command, Frame, Reply
from service.outbox import Outgoing
from service.stream_settings import StreamSettings

__all__ = ["BadRequest", "Dialect", "Frame", "OpenDialect", "Opening", "Patience", "Reply"]


@dataclass(frozen=True)
class Opening:
    """What is known when a client connects.

    Attributes:
        query: The address's parameters, blank ones included.
        headers: The request's, by lower-case name.
        defaults: The server's settings for what a client leaves out.
        limits: The server's.
        model: The recogniser's name.
        languages: Codes that the recogniser takes; empty if that is not known.
    """

    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    defaults: StreamSettings = field(default_factory=StreamSettings)
    limits: Limits = field(default_factory=Limits)
    model: str = ""
    languages: tuple[str, ...] = ()


class BadRequest(Exception):  # noqa: N818 - HTTP's name for it
    """An address that contradicts itself: the handshake is refused with HTTP 400 and the text.

    Attributes:
        code: What is wrong, in the protocol's terms; empty where it has none.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        """Say what was given, what was expected and what to do."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Patience:
    """How long a silent client keeps its connection, in seconds.

    Attributes:
        start_s: From the handshake to the first ``Start``.
        idle_s: Without a frame afterwards. Any frame counts, also one that gives no command.
    """

    start_s: float
    idle_s: float


class Dialect(Protocol):
    """One client's language; inherit from it for the defaults.

    Attributes:
        is_resumable: Whether clients can come back to a session whose connection broke.
        crash_code: The close code when the server itself fails.
    """

    is_resumable: bool = False
    crash_code: int = 1011

    def patience(self, limits: Limits) -> Patience:
        """How long to wait for the client.

        Args:
            limits: The server's.
        """
        return Patience(limits.start_s, limits.idle_s)

    def opened(self, session_id: str) -> Sequence[Frame]:
        """The frames to send right after the handshake.

        Args:
            session_id: Names the session in the server's log.
        """
        return ()

    def start_commands(self) -> Sequence[Command | Reply]:
        """What the handshake alone asks for, such as a ``Start`` from the address's parameters."""
        return ()

    def receive(self, frame: Frame) -> Sequence[Command | Reply]:
        """Understand a frame.

        Args:
            frame: Text or binary, as received.

        Returns:
            Commands for the session and replies for the client, in order.
        """
        ...

    def send(self, outgoing: Outgoing) -> Sequence[Frame]:
        """Tell a message.

        Args:
            outgoing: Any message of the session but ``Close`` and ``Reply``.

        Returns:
            Its frames; none where this protocol does not tell such a thing.
        """
        ...

    def close(self, close: Close) -> tuple[Sequence[Frame], int, str]:
        """End the connection.

        Args:
            close: The session's wish; its reason is ``stop`` or a code of :data:`service.codes.FATAL_ERRORS`.

        Returns:
            The last frames, the close code and the reason.
        """
        ...


OpenDialect = Callable[[Opening], Dialect]
