"""Serves an ASGI application beside the websockets, on the same event loop and without signal handlers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

_STARTED_POLL_S = 0.01
REQUEST_S = 10.0  # for the head of a request: as long as a websocket's handshake may take


class _Http(H11Protocol):
    """HTTP on one connection, which uvicorn itself would keep as long as a client takes to write a head."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait_for_request()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        self._timer.cancel()

    def _wait_for_request(self) -> None:
        self._timer = self.loop.call_later(REQUEST_S, self._leave, self.cycle)

    def _leave(self, last: RequestResponseCycle | None) -> None:
        if self.cycle is last and (last is None or last.response_complete):
            self.transport.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: the websocket server has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class RestServer:
    """An HTTP server for one application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        tls_cert: Path | None,
        tls_key: Path | None,
        patience_s: float,
    ) -> None:
        """Take the address.

        Args:
            app: What is served.
            host: As for the websockets.
            port: 0 is any free one.
            tls_cert: Certificate chain, PEM.
            tls_key: Its private key, PEM.
            patience_s: How long running requests may go on once the server stops.

        Raises:
            OSError: The address cannot be used.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                http=_Http,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                ssl_certfile=tls_cert,
                ssl_keyfile=tls_key,
                timeout_graceful_shutdown=max(1, round(patience_s)),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._socket.getsockname()[1]
        return port

    async def start(self) -> None:
        """Serve until :meth:`stop`."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(_STARTED_POLL_S)

    def take_no_more(self) -> None:
        """Take no more requests; running ones go on."""
        self._server.should_exit = True

    async def stop(self) -> None:
        """Let running requests end, and return when all is over; again does nothing."""
        self.take_no_more()
        if self._serving:
            await asyncio.wait({self._serving})
        self._socket.close()
