"""How long words take: from the arrival of the audio in which a word ends to the word, committed."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable

from asr.events import SAMPLE_RATE, Final, Partial
from service.stream_settings import Finished, OnChannel, Output

_KEPT_S = 60.0  # of audio; a word that takes longer is not timed


class WordLatency:
    """Watches one session; compressed audio is not timed, as nobody knows what has arrived."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        """Begin before any audio.

        Args:
            observe: Takes every word's latency in seconds.
        """
        self._observe = observe
        self._arrivals: deque[tuple[float, float]] = deque()  # audio so far in seconds, and when it was so
        self._forgotten_s = 0.0  # audio whose arrival is not known any more
        self._told: dict[int, int] = {}  # by channel, the sample where its last timed word ends
        self._before_s = 0.0  # audio of the streams before this one, where the session has restarted

    def heard(self, audio_s: float, *, now: float) -> None:
        """Note that audio has arrived.

        Args:
            audio_s: How much in all.
            now: Seconds on a clock that only goes forward.
        """
        self._arrivals.append((audio_s, now))
        while audio_s - self._arrivals[0][0] > _KEPT_S:
            self._forgotten_s = self._arrivals.popleft()[0]

    def told(self, output: Output, *, now: float) -> None:
        """Time the words that an output is the first to commit.

        Args:
            output: Of the session's stream.
            now: As for :meth:`heard`.
        """
        if isinstance(output, Finished):
            self._before_s += output.audio_s
            self._told.clear()
        channel, event = (output.channel, output.event) if isinstance(output, OnChannel) else (0, output)
        if not isinstance(event, Partial | Final):
            return
        before = self._told.get(channel, 0)
        new = [word for word in event.words if word.stable and word.end > before]
        for word in new:
            arrived_at = self._arrival(self._before_s + word.end / SAMPLE_RATE)
            if arrived_at is not None:
                self._observe(now - arrived_at)
        if new:
            self._told[channel] = max(word.end for word in new)

    def _arrival(self, audio_s: float) -> float | None:
        """When so much audio had arrived; None if that is not known."""
        if audio_s <= self._forgotten_s:
            return None
        index = bisect_left(self._arrivals, audio_s, key=lambda arrival: arrival[0])
        return self._arrivals[index][1] if index < len(self._arrivals) else None
