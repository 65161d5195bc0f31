"""How often each key may begin something: an allowance that fills up again with time."""

from __future__ import annotations

import math
from dataclasses import dataclass

_MINUTE_S = 60.0


@dataclass
class _Allowance:
    """What one key may still do, as of a moment."""

    left: float
    at: float


class Throttle:
    """Up to a minute's worth at once, then evenly; it knows no clock."""

    def __init__(self, per_minute: int | None) -> None:
        """Start with full allowances.

        Args:
            per_minute: Beginnings of one key; None is any number.
        """
        self._per_minute = per_minute
        self._allowances: dict[str, _Allowance] = {}  # by key, of which a token file has a few

    def admit(self, key: str, *, now: float) -> float:
        """Let a key begin once, if it may.

        Args:
            key: Whose.
            now: Seconds on any clock that only goes forward.

        Returns:
            0 if it may, else the seconds until it may.
        """
        if self._per_minute is None:
            return 0.0
        full, per_s = float(self._per_minute), self._per_minute / _MINUTE_S
        allowance = self._allowances.setdefault(key, _Allowance(full, now))
        allowance.left = min(full, allowance.left + (now - allowance.at) * per_s)
        allowance.at = now
        if allowance.left < 1:
            return math.ceil((1 - allowance.left) / per_s)
        allowance.left -= 1
        return 0.0
