"""What a session still has to tell its client, and what it told lately, for a client that resumes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from asr.events import Final, Partial, SpeechEnded, SpeechStarted
from service.messages import Ack, Close, Done, Message
from service.stream_settings import Flushed, Progress

# Sent messages kept for a client that resumes. It lacks what was on its way when its connection broke, a few
# dozen at most; an hour of dialogue makes about a thousand, with their words some megabytes.
N_KEPT = 1000

_DURABLE = (Final, SpeechStarted, SpeechEnded, Flushed, Done)


@dataclass(frozen=True)
class Outgoing:
    """A message to send; those that are never dropped are numbered 1, 2, 3... and the others 0."""

    message: Message
    seq: int = 0


class Outbox:
    """Messages in order: finals and their like are never dropped, of partials only the newest is kept."""

    def __init__(self, *, n_kept: int = N_KEPT) -> None:
        """Start empty.

        Args:
            n_kept: Numbered messages that stay for :meth:`restart` once they were taken.
        """
        self._unsent: deque[Outgoing] = deque()
        self._sent: deque[Outgoing] = deque(maxlen=n_kept)
        self._farewell: tuple[Outgoing, ...] = ()
        self._unsaid: deque[Outgoing] = deque()  # of the farewell, which comes after all else
        self._newest_partial: Partial | None = None
        self._seq = 0

    def __len__(self) -> int:
        """Messages that wait to be sent."""
        return len(self._unsent) + len(self._unsaid)

    @property
    def last_seq(self) -> int:
        """The newest number given out."""
        return self._seq

    @property
    def oldest_seq(self) -> int:
        """The oldest number still kept, or the next one where none is."""
        kept = (*self._sent, *self._unsent, *self._farewell)
        return next((each.seq for each in kept if each.seq), self._seq + 1)

    def put(self, message: Message) -> None:
        """Add a message, which may make older unsent ones obsolete.

        Args:
            message: Anything but what :meth:`end` takes.
        """
        match message:
            case Partial():
                self._drop(Partial)
                self._newest_partial = message
            case Ack() | Progress():
                self._drop(type(message))
            case Final() if self._newest_partial and self._newest_partial.segment <= message.segment:
                self._drop(Partial)
                self._newest_partial = None
        self._unsent.append(self._numbered(message))

    def end(self, *farewell: Message) -> None:
        """Add the last messages; a client that resumes gets them again.

        Args:
            farewell: Closes the connection in the end.
        """
        assert not self._farewell and isinstance(farewell[-1], Close)
        self._drop(Partial)
        self._newest_partial = None
        self._farewell = tuple(self._numbered(message) for message in farewell)
        self._unsaid.extend(self._farewell)

    def take(self) -> Outgoing | None:
        """Return the next message to send, None if there is none."""
        if not self._unsent:
            return self._unsaid.popleft() if self._unsaid else None
        outgoing = self._unsent.popleft()
        if outgoing.seq:
            self._sent.append(outgoing)
        return outgoing

    def restart(self, greeting: Message, *, last_seq: int) -> None:
        """Begin again on a new connection: the greeting, what the client lacks, the newest partial.

        Args:
            greeting: The first message.
            last_seq: The newest number the client has; at least ``oldest_seq - 1``, at most ``last_seq``.
        """
        assert self.oldest_seq - 1 <= last_seq <= self._seq
        lacking = [each for each in (*self._sent, *self._unsent) if each.seq > last_seq]
        partial = [Outgoing(self._newest_partial)] if self._newest_partial else []
        self._sent = deque((each for each in self._sent if each.seq <= last_seq), self._sent.maxlen)
        self._unsent = deque([Outgoing(greeting), *lacking, *partial])
        self._unsaid = deque(each for each in self._farewell if not each.seq or each.seq > last_seq)

    @property
    def is_delivered(self) -> bool:
        """Whether a session that has ended has nothing left to tell but to close."""
        is_told = not self._unsent and all(isinstance(each.message, Close) for each in self._unsaid)
        return bool(self._farewell) and is_told

    def _numbered(self, message: Message) -> Outgoing:
        if not isinstance(message, _DURABLE):
            return Outgoing(message)
        self._seq += 1
        return Outgoing(message, self._seq)

    def _drop(self, kind: type[Message]) -> None:
        """Drop the unsent message of a kind, of which there is one at most."""
        for outgoing in self._unsent:
            if isinstance(outgoing.message, kind):
                self._unsent.remove(outgoing)
                return
