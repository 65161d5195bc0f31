"""Coroutines side by side, and slow iterators beside them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

from clients.interrupts import Interrupts

T = TypeVar("T")

_LAST_STEP_S = 0.5  # how long a step that was called off may take; then the daemon thread is left alone


async def together(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run coroutines until all are done or one fails; none outlives the call.

    This is what asyncio.TaskGroup does from Python 3.11 on, but the error comes as it is.

    Args:
        coroutines: What to run.

    Returns:
        Their results.

    Raises:
        Exception: The first that one of them raised.
    """
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_until_interrupted(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in an event loop of its own; Ctrl-C cancels it.

    Args:
        main: What to run.

    Raises:
        KeyboardInterrupt: After it has taken the cancellation, or at once by a second Ctrl-C.
    """

    async def interruptible() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        with Interrupts(on_first=lambda: loop.call_soon_threadsafe(task.cancel)):
            await main

    try:
        asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def in_thread(items: Iterator[T], *, abandoned: threading.Event) -> AsyncGenerator[T, None]:
    """Take the steps of an iterator in a thread, so that the event loop does not wait for them.

    Args:
        items: Used by the thread alone until this ends.
        abandoned: Set when this ends, to call off a step that waits.

    Yields:
        What the iterator yields.

    Raises:
        Exception: What the iterator raises.
    """
    loop = asyncio.get_running_loop()
    wanted: queue.SimpleQueue[asyncio.Future[list[T]] | None] = queue.SimpleQueue()

    def settle(future: asyncio.Future[list[T]], step: list[T] | Exception) -> None:
        if future.done():  # cancelled
            return
        if isinstance(step, Exception):
            future.set_exception(step)
        else:
            future.set_result(step)

    def work() -> None:
        while (future := wanted.get()) is not None:
            step: list[T] | Exception
            try:
                step = list(itertools.islice(items, 1))
            except Exception as error:  # handed to whoever waits for the step
                step = error
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, future, step)

    thread = threading.Thread(target=work, daemon=True, name="foresound-input")
    thread.start()
    try:
        while True:
            future: asyncio.Future[list[T]] = loop.create_future()
            wanted.put(future)
            step = await future
            if not step:
                return
            yield step[0]
    finally:
        wanted.put(None)
        abandoned.set()
        thread.join(_LAST_STEP_S)
