"""Ctrl-C at a moment that suits the work: the first may wait or be handed on, a second never waits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Takes Ctrl-C for the length of a ``with`` statement.

    The first one raises KeyboardInterrupt, unless it comes inside :meth:`held`, where it waits for
    the end of the block, or ``on_first`` is given, which is called instead.
    """

    def __init__(self, on_first: Callable[[], object] | None = None) -> None:
        """Prepare.

        Args:
            on_first: What the first Ctrl-C does. It is called by the signal handler, so it may
                interrupt any code of the main thread and should only set or schedule something.
        """
        self._on_first = on_first
        self._holding = self._pending = False

    def __enter__(self) -> Interrupts:
        """Return itself; from now on signals are taken."""
        self._previous: Any = signal.getsignal(signal.SIGINT)
        # Signals reach the main thread only; an ignored SIGINT (nohup) stays ignored.
        self._active = (
            threading.current_thread() is threading.main_thread() and self._previous is not signal.SIG_IGN
        )
        if self._active:
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave signals to whoever had them before."""
        if self._active:
            signal.signal(signal.SIGINT, self._previous)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the block finish before KeyboardInterrupt is raised."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._pending or not (self._holding or self._on_first):
            raise KeyboardInterrupt
        self._pending = True
        if self._on_first:
            self._on_first()
