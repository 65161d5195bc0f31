"""What a server has told a client: every event once, in order, over connections and streams. No I/O."""

from __future__ import annotations

from collections import deque
from itertools import takewhile

from asr.events import Event, Final, Partial, SpeechEnded, SpeechStarted
from clients.messages import Message, moved, parse

_MAX_BACKLOG = 1000  # events; beyond that an unread draft gives way to the next one


class Inbox:
    """Messages, less those that a new connection repeats.

    Attributes:
        events: Not yet read by the caller.
        last_seq: Number of the newest numbered message; the server repeats those after it.
        origin: Where the server's stream begins in the client's, in samples at 16 kHz.
        settled: What was said before it, in the client's samples, is recognised for good.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.events: deque[Event] = deque()
        self.last_seq = self.origin = self.settled = 0
        self._newest_partial: Partial | None = None
        self._n_final = 0  # segments before this one are final
        self._final_end = 0  # of the last of them, in samples
        self._first_segment = 0  # of the server's stream

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
        if isinstance(message, Partial | Final | SpeechStarted | SpeechEnded):
            message = moved(message, self.origin, self._first_segment)
        if isinstance(message, Partial):
            # The newest draft is repeated on a new connection; it may have been read, or be out of date.
            if message == self._newest_partial or message.segment < self._n_final:
                return None
            self._newest_partial = message
            if len(self.events) >= _MAX_BACKLOG and isinstance(self.events[-1], Partial):
                self.events.pop()
            committed = [word.end for word in takewhile(lambda word: word.stable, message.words)]
            self.settled = max(self.settled, *committed[-1:], self._final_end)
        if isinstance(message, Final):
            self._n_final = message.segment + 1
            self._final_end = message.end
            self.settled = max(self.settled, message.end)
        if isinstance(message, Partial | Final | SpeechStarted | SpeechEnded):
            self.events.append(message)
        return message

    def settle(self) -> None:
        """Make what is committed of the open segment a final: the server has forgotten how to go on."""
        partial = self._newest_partial
        if partial is None or partial.segment < self._n_final:
            return
        words = tuple(takewhile(lambda word: word.stable, partial.words))
        if words:
            start, end = self._final_end, words[-1].end
            text = partial.committed.strip()
            self.events.append(Final(partial.segment, text, words, start, end, False, partial.time))
            self._n_final, self._final_end = partial.segment + 1, end

    def start_again(self, origin: int) -> None:
        """Expect another stream's messages.

        Args:
            origin: Where it begins, in the client's samples at 16 kHz.
        """
        self.last_seq, self.origin, self._first_segment = 0, origin, self._n_final
