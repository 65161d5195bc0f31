"""What a client still has to send, and what it has sent but the server has not confirmed. No I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class _Entry:
    """A frame and the number of audio bytes before it; control messages (text) have no length."""

    at: int
    frame: bytes | str

    @property
    def end(self) -> int:
        return self.at + (len(self.frame) if isinstance(self.frame, bytes) else 0)

    def is_received(self, n_bytes: int) -> bool:
        """Tell by the server's count; of a control message only what came after it is proof."""
        return self.end <= n_bytes if isinstance(self.frame, bytes) else self.at < n_bytes


class Outbox:
    """Frames in order, each kept until the server has it, so that a new connection can go on.

    What the server has is kept a while longer: if it forgets the stream, another one can say it again.

    Attributes:
        n_added: Audio bytes that were ever added.
    """

    def __init__(self, *, window_bytes: int, past_bytes: int = 0) -> None:
        """Start empty.

        Args:
            window_bytes: Audio that may be under way. What is not there when the connection breaks
                is sent again, and a ping waits behind it.
            past_bytes: Audio that the server has and that is kept at most, until it is forgotten.
        """
        self._window = window_bytes
        self._max_past = past_bytes
        self._past: deque[_Entry] = deque()
        self._sent: deque[_Entry] = deque()
        self._unsent: deque[_Entry] = deque()
        self._n_sent = self._n_received = 0
        self.n_added = 0

    @property
    def n_kept(self) -> int:
        """Audio bytes that the server has not confirmed."""
        return self.n_added - self._n_received

    def add(self, frame: bytes | str) -> None:
        """Append a frame.

        Args:
            frame: Audio, or a control message.
        """
        entry = _Entry(self.n_added, frame)
        self._unsent.append(entry)
        self.n_added = entry.end

    def take(self) -> bytes | str | None:
        """Return the next frame to send, None if there is none or too much is under way."""
        if not self._unsent or self._n_sent - self._n_received >= self._window:
            return None
        entry = self._unsent.popleft()
        self._sent.append(entry)
        self._n_sent = entry.end
        return entry.frame

    def confirm(self, n_bytes: int) -> None:
        """Drop what the server has.

        Args:
            n_bytes: How much audio it has received in all.

        Raises:
            ValueError: It has more than was sent.
        """
        if n_bytes > self._n_sent:
            raise ValueError(f"{n_bytes} bytes are confirmed, but {self._n_sent} were sent")
        self._n_received = max(self._n_received, n_bytes)
        while self._sent and self._sent[0].is_received(self._n_received):
            self._past.append(self._sent.popleft())
        self.forget(self._n_received - self._max_past)

    def forget(self, n_bytes: int) -> None:
        """Keep audio for another stream only from here on.

        Args:
            n_bytes: Audio bytes from the beginning.
        """
        self._past = deque(e for e in self._past if isinstance(e.frame, str) or e.end > n_bytes)

    def answered(self, frame: str) -> None:
        """Drop a control message that the server has answered, which proves that it has it.

        Args:
            frame: The message; the oldest one counts.
        """
        # Unsent: about to be repeated after a lost connection.
        for entries in (self._past, self._sent, self._unsent):
            for entry in entries:
                if entry.frame == frame:
                    entries.remove(entry)
                    return

    def rewind(self, n_bytes: int) -> None:
        """Send again what the server lacks.

        Args:
            n_bytes: How much audio it has received in all.

        Raises:
            ValueError: What it lacks is not kept any more.
        """
        if n_bytes < self._n_received:
            raise ValueError(f"the server has {n_bytes} bytes, after it confirmed {self._n_received}")
        self.confirm(n_bytes)
        again, self._sent = self._sent, deque()
        if again and isinstance(frame := again[0].frame, bytes) and again[0].at < n_bytes:
            again[0] = _Entry(n_bytes, frame[n_bytes - again[0].at :])
        self._unsent = again + self._unsent
        self._n_sent = n_bytes

    def start_again(self, n_bytes: int) -> int:
        """Say everything from a point on to another stream, whose count begins at 0 there.

        Args:
            n_bytes: The point, in audio bytes from the beginning.

        Returns:
            The point that is possible: later if what follows ``n_bytes`` is not all kept.
        """
        entries = [*self._past, *self._sent, *self._unsent]
        kept_from = next((each.at for each in entries if isinstance(each.frame, bytes)), self.n_added)
        first = max(kept_from, min(n_bytes, self.n_added))
        self._past, self._sent, self._unsent = deque(), deque(), deque()
        for each in entries:
            at = max(0, each.at - first)
            if isinstance(each.frame, str):
                self._unsent.append(_Entry(at, each.frame))
            elif each.end > first:
                self._unsent.append(_Entry(at, each.frame[max(0, first - each.at) :]))
        self.n_added -= first
        self._n_sent = self._n_received = 0
        return first
