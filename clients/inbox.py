"""What a server has told a client: every event once and in order, also over several connections. No I/O."""

from __future__ import annotations

from collections import deque

from asr.events import Event, Final, Partial, SpeechEnded, SpeechStarted
from clients.messages import Message, parse

_MAX_BACKLOG = 1000  # events; beyond that an unread draft gives way to the next one


class Inbox:
    """Messages, less those that a new connection repeats.

    Attributes:
        events: Not yet read by the caller.
        last_seq: Number of the newest numbered message; the server repeats those after it.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.events: deque[Event] = deque()
        self.last_seq = 0
        self._newest_partial: Partial | None = None
        self._n_final = 0  # segments before this one are final

    def receive(self, frame: str | bytes) -> Message | None:
        """Take a frame.

        Args:
            frame: As it came.

        Returns:
            The message, None if there is nothing new in it. Events have been added to ``events``.

        Raises:
            ServerError: The frame is not what the protocol says.
        """
        seq, message = parse(frame)
        if seq and seq <= self.last_seq:
            return None
        self.last_seq = max(self.last_seq, seq)
        if isinstance(message, Partial):
            # The newest draft is repeated on a new connection; it may have been read, or be out of date.
            if message == self._newest_partial or message.segment < self._n_final:
                return None
            self._newest_partial = message
            if len(self.events) >= _MAX_BACKLOG and isinstance(self.events[-1], Partial):
                self.events.pop()
        if isinstance(message, Final):
            self._n_final = message.segment + 1
        if isinstance(message, Partial | Final | SpeechStarted | SpeechEnded):
            self.events.append(message)
        return message
