"""The command line and other clients.

``StreamingClient`` is imported when it is first used: commands that need no server start without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clients.streaming import StreamingClient

__all__ = ["StreamingClient"]


def __getattr__(name: str) -> Any:
    """Import the client on first use (PEP 562)."""
    if name == "StreamingClient":
        from clients.streaming import StreamingClient

        return StreamingClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
