"""How many streams the server can keep within a latency target, from what its own ticks have taken.

A tick that advances k streams takes about a + b k seconds. With n streams that speak in real time in chunks
of c seconds, chunks come at the rate n / c, so a tick of t seconds finds k = n t / c of them, and

    t = a + b n t / c    =>    t(n) = a / (1 - b n / c),

which grows without bound as n comes near c / b. A chunk waits for the tick that runs when it comes and then
for its own, two ticks at the most; its first sample has waited for the rest of the chunk before. A tick takes
one chunk of a stream, so it must not take longer than a chunk lasts. That is

    c + 2 t(n) <= target    <=>    n <= c / b * (1 - 2 a / (target - c)),
              t(n) <= c     <=>    n <= c / b * (1 - a / c).

While nearly all ticks have the same number of streams they say little of a and b. One stream more than there
are is let in then, as long as the ticks that they really have stay well within these bounds.

All this is of one lane; streams are shared out evenly, so as many lanes hold as many times the streams.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from asr.errors import OptionError

_MEMORY_TICKS = 400.0  # after so many ticks an old one weighs a third of a new one
_SAFE_SHARE = 0.9  # of the streams that would just fit, as ticks are not all alike
_RECENT_TICKS = 50.0
_LEAST_VARIANCE = 0.1  # of the number of streams in a tick, to tell the two costs apart
_LEAST_STREAM_S = 1e-4  # what a stream costs at the least, where ticks tell nothing of it
_PRIOR_TICKS = 1.0  # weight of the prior that a tick costs as much as one stream in it


@dataclass(frozen=True)
class Tick:
    """A step of the model.

    Attributes:
        took_s: Its wall time.
        n_streams: Streams that it advanced.
        n_open: Streams that were open in its lane.
        audio_s: What it heard of all of them together.
        n_lanes: Ticks that may run at a time, each with streams of its own.
    """

    took_s: float
    n_streams: int
    n_open: int
    audio_s: float
    n_lanes: int = 1


class Goodput:
    """Learns what ticks cost and tells how many streams fit; used by any thread."""

    def __init__(self, target_s: float) -> None:
        """Know nothing yet.

        Args:
            target_s: From a sample's arrival to the answer to its chunk, at the worst.

        Raises:
            OptionError: The target is not positive.
        """
        if not (target_s > 0 and math.isfinite(target_s)):
            raise OptionError(f"the target latency is {target_s:g} s; expected more than 0")
        self._target_s = target_s
        self._lock = threading.Lock()
        self._weight = self._streams = self._squares = self._took = self._products = self._audio = 0.0
        self._recent_s = 0.0  # what ticks have taken lately
        self._capacity: int | None = None

    def observe(self, tick: Tick) -> None:
        """Learn from a tick.

        Args:
            tick: The newest.
        """
        if tick.audio_s:  # else a flush or an end, with nothing new to hear
            with self._lock:
                self._learn(tick)

    def _learn(self, tick: Tick) -> None:
        keep = 1 - 1 / _MEMORY_TICKS
        self._weight = keep * self._weight + 1
        self._streams = keep * self._streams + tick.n_streams
        self._squares = keep * self._squares + tick.n_streams**2
        self._took = keep * self._took + tick.took_s
        self._products = keep * self._products + tick.n_streams * tick.took_s
        self._audio = keep * self._audio + tick.audio_s
        self._recent_s += (tick.took_s - self._recent_s) / min(self._weight, _RECENT_TICKS)
        in_lane = max(self._predicted(), tick.n_open + 1 if self._may_try() else 1)
        self._capacity = tick.n_lanes * in_lane

    @property
    def capacity(self) -> int | None:
        """Streams that fit, at least one: without any there would be nothing to learn from.

        None until the first tick.
        """
        return self._capacity

    def _may_try(self) -> bool:
        """Whether ticks are too much alike to predict from, and short."""
        variance = self._squares / self._weight - (self._streams / self._weight) ** 2
        chunk_s = self._audio / self._streams
        bound_s = _SAFE_SHARE * min(chunk_s, (self._target_s - chunk_s) / 2)
        return variance < _LEAST_VARIANCE and self._recent_s <= bound_s

    def _predicted(self) -> int:
        tick_s, stream_s = self._costs()
        chunk_s = self._audio / self._streams
        spare_s = self._target_s - chunk_s
        if spare_s <= 2 * tick_s:
            return 1
        share = _SAFE_SHARE * min(1 - 2 * tick_s / spare_s, 1 - tick_s / chunk_s)
        return max(1, math.floor(chunk_s / max(stream_s, _LEAST_STREAM_S) * share))

    def _costs(self) -> tuple[float, float]:
        """A tick's own cost a and that of each stream b, by least squares.

        While all ticks have the same number of streams the two cannot be told apart; the prior shares the
        cost out between them then. As streams are added ticks differ, and what they took outweighs it soon.
        """
        weight, streams, squares = (
            self._weight + _PRIOR_TICKS,
            self._streams - _PRIOR_TICKS,
            self._squares + _PRIOR_TICKS,
        )
        determinant = weight * squares - streams**2
        tick_s = (squares * self._took - streams * self._products) / determinant
        stream_s = (weight * self._products - streams * self._took) / determinant
        if tick_s <= 0:
            return 0.0, self._products / self._squares
        return (tick_s, stream_s) if stream_s > 0 else (self._took / self._weight, 0.0)
