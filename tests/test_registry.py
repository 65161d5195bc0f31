"""The registry: places, tokens, and sessions that are forgotten in time."""

from __future__ import annotations

import asyncio

from service.config import Limits
from service.live import LiveSession
from service.metrics import Metrics
from service.registry import Registry
from service.session import Session, State


def live_session(token: str) -> LiveSession:
    session = Session(id=token, resume_token=token, model="fake", limits=Limits())
    return LiveSession(session, key="k", limits=Limits(), metrics=Metrics())


def test_places_are_counted_and_come_back_once() -> None:
    """A released place is free again, and releasing it twice frees no second one."""
    registry = Registry(n_places=2, resume_s=1)
    one, two = registry.reserve("k"), registry.reserve("k")
    assert one and two and registry.reserve("k") is None
    one.release()
    one.release()
    assert registry.reserve("k") and registry.reserve("k") is None


def test_sessions_are_found_by_token_until_they_are_forgotten() -> None:
    """Forgetting ends the session and leaves others alone."""

    async def scenario() -> None:
        registry = Registry(n_places=2, resume_s=1)
        one, two = live_session("one"), live_session("two")
        registry.add(one)
        registry.add(two)
        assert registry.find("one", key="k") is one and registry.find("three", key="k") is None
        assert [*registry] == [one, two]
        registry.forget(one)
        assert registry.find("one", key="k") is None and len(registry) == 1
        assert (one.session.state, two.session.state) == (State.ENDED, State.WAITING)

    asyncio.run(scenario())


def test_a_kept_session_is_forgotten_in_time_unless_it_is_resumed() -> None:
    """The grace time runs from the lost connection, and stops when the client is back."""

    async def scenario() -> None:
        registry = Registry(n_places=2, resume_s=0.02)
        lost, back = live_session("lost"), live_session("back")
        for live in (lost, back):
            registry.add(live)
            registry.keep(live)
        registry.resumed(back)
        await asyncio.sleep(0.05)
        assert [*registry] == [back]
        registry.forget(back)
        await registry.wait_empty()

    asyncio.run(scenario())
