"""Sessions by resume token, and the places that bound how many streams there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.live import LiveSession


class Place:
    """The right to one stream or more: a connection holds it from its handshake, then its session."""

    def __init__(self, places: set[Place], *, key: str, n_streams: int) -> None:
        """Take a place.

        Args:
            places: All that are taken; the new one is added.
            key: Whose it is.
            n_streams: How many it is for.
        """
        self.key = key
        self.n_streams = n_streams
        self._places = places
        places.add(self)

    @property
    def is_held(self) -> bool:
        """Whether it has not been given back."""
        return self in self._places

    def release(self) -> None:
        """Give the place back; again does nothing."""
        self._places.discard(self)


class Registry:
    """The sessions of a server that their clients may come back to."""

    def __init__(
        self,
        *,
        n_places: int,
        resume_s: float,
        places_per_key: int | None = None,
        fitting: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Start without sessions.

        Args:
            n_places: Streams at a time.
            resume_s: How long a session outlives its connection.
            places_per_key: Streams at a time of one key; None is as many as there are.
            fitting: How many streams the machine can serve now, None if that is not known. Those that are
                there stay when it becomes less.
        """
        self._n_places = n_places
        self._fitting = fitting
        self._places_per_key = places_per_key
        self._resume_s = resume_s
        self._places: set[Place] = set()
        # Tokens are 256 random bits, and the dict compares hashes before keys: how long a look-up takes tells
        # nobody anything about a token.
        self._sessions: dict[str, LiveSession] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def capacity(self) -> int:
        """Streams that may be there at a time, as things stand."""
        fitting = self._fitting()
        return self._n_places if fitting is None else min(self._n_places, fitting)

    @property
    def headroom(self) -> int:
        """Streams that would be let in now."""
        return max(0, self.capacity - sum(place.n_streams for place in self._places))

    def has_room(self, *, n_streams: int = 1) -> bool:
        """Tell whether there is a place.

        Args:
            n_streams: How many it is for.
        """
        return n_streams <= self.headroom

    def has_share(self, key: str, *, n_streams: int = 1) -> bool:
        """Tell whether a key may have more streams.

        Args:
            key: Whose.
            n_streams: How many more.
        """
        if self._places_per_key is None:
            return True
        n_used = sum(place.n_streams for place in self._places if place.key == key)
        return n_used + n_streams <= self._places_per_key

    def reserve(self, key: str, *, n_streams: int = 1) -> Place | None:
        """Take a place.

        Args:
            key: Whose.
            n_streams: How many it is for.

        Returns:
            The place, None where there is none, or none for this key.
        """
        if self.has_room(n_streams=n_streams) and self.has_share(key, n_streams=n_streams):
            return Place(self._places, key=key, n_streams=n_streams)
        return None

    def __len__(self) -> int:
        """Sessions, those without a connection included."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[LiveSession]:
        """Go through the sessions; they may end on the way."""
        return iter(list(self._sessions.values()))

    def add(self, live: LiveSession) -> None:
        """Let a session be found by its token.

        Args:
            live: A session whose stream is open.
        """
        self._sessions[live.session.resume_token] = live
        self._is_empty.clear()

    def find(self, token: str, *, key: str) -> LiveSession | None:
        """Look a session up.

        Args:
            token: What a client gave.
            key: Whose the client is; another key's session is none.

        Returns:
            Its session, None where there is none (any more).
        """
        live = self._sessions.get(token)
        return live if live and live.key == key else None

    def keep(self, live: LiveSession) -> None:
        """Forget a session in a while.

        Args:
            live: Has just lost its connection.
        """
        loop = asyncio.get_running_loop()
        self._timers[live.session.resume_token] = loop.call_later(self._resume_s, self.forget, live)

    def resumed(self, live: LiveSession) -> None:
        """Do not forget a session after all.

        Args:
            live: Has a connection again.
        """
        if timer := self._timers.pop(live.session.resume_token, None):
            timer.cancel()

    def forget(self, live: LiveSession) -> None:
        """Give a session up.

        Args:
            live: Has ended, or is to be abandoned.
        """
        self.resumed(live)
        self._sessions.pop(live.session.resume_token, None)
        live.abandon()
        if not self._sessions:
            self._is_empty.set()

    async def wait_empty(self) -> None:
        """Return when there is no session."""
        await self._is_empty.wait()
