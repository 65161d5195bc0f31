"""The server: one port for websockets, the browser page, health and metrics; it drains before it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import ssl
from types import TracebackType
from typing import cast

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from asr.errors import OptionError
from service.auth import Tokens
from service.config import ServerConfig
from service.connection import WRITE_BUFFER, Connection, Hub, StreamSocket
from service.handshake import Doorkeeper
from service.http import STREAM_PATH
from service.live import BatcherLike
from service.metrics import Metrics
from service.registry import Registry

_CLOSE_S = 5.0  # for the other side to answer a close frame
_FINISH_S = 10.0  # for the model to recognise what is queued when a drain's time is over

_log = logging.getLogger(__name__)


class Server:
    """Serves streams on one port, as an asynchronous context manager.

    It listens as soon as it is entered, and takes sessions once it was given a batcher.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Read the tokens, the certificate and the browser page.

        Args:
            config: How to listen and whom to let in.

        Raises:
            OptionError: A file cannot be used.
        """
        self._config = config
        self._tokens = Tokens(config.token_file) if config.token_file else None
        self._tls = _tls(config)
        self._metrics = Metrics()
        self._registry = Registry(n_places=config.limits.max_streams, resume_s=config.limits.resume_s)
        self._doorkeeper = Doorkeeper(
            tokens=self._tokens,
            allow_origins=config.allow_origins,
            registry=self._registry,
            metrics=self._metrics,
        )
        self._connections: set[Connection] = set()
        self._hub: Hub | None = None  # None while the model loads
        self._stop = asyncio.Event()
        self._listener: WebsocketServer

    async def __aenter__(self) -> Server:
        """Listen.

        Raises:
            OptionError: The address cannot be used.
        """
        config = self._config
        try:
            self._listener = await serve(
                self._handle,
                config.host,
                config.port,
                ssl=self._tls,
                create_connection=StreamSocket,
                process_request=self._process_request,
                # Audio does not get smaller, and each compressor takes up to 300 KiB; texts are small anyway.
                compression=None,
                ping_interval=None,  # see Connection
                close_timeout=_CLOSE_S,
                max_size=config.limits.message_bytes,
                write_limit=WRITE_BUFFER,
            )
        except OSError as error:
            raise OptionError(_listen_problem(error, config)) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See :meth:`close`."""
        await self.close()

    async def close(self) -> None:
        """Close every connection and give up every session; the batcher must still be there."""
        self._doorkeeper.closed_because = "shutting down"
        self._listener.close()
        await self._listener.wait_closed()
        for live in self._registry:
            self._registry.forget(live)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Address of the browser page."""
        return f"{'https' if self._tls else 'http'}://{self._authority}"

    @property
    def stream_url(self) -> str:
        """Address of the websocket."""
        return f"{'wss' if self._tls else 'ws'}://{self._authority}{STREAM_PATH}"

    def open_for(self, batcher: BatcherLike, *, model: str) -> None:
        """Take sessions from now on.

        Args:
            batcher: Recognises their streams; outlives the server.
            model: Its name, for clients.
        """
        config, metrics = self._config, self._metrics
        self._hub = Hub(batcher, model, self._registry, config.limits, config.defaults, metrics)
        metrics.watch(
            "sessions", "Sessions, those without a connection included.", lambda: len(self._registry)
        )
        metrics.watch("connections", "Open websockets.", lambda: len(self._connections))
        metrics.watch("slots_total", "Streams that the batcher can hold.", lambda: batcher.n_slots)
        metrics.watch("slots_used", "Streams that it holds.", lambda: batcher.n_used)
        metrics.watch("queued_audio_seconds", "Audio received and not yet recognised.", self._queued_s)
        self._doorkeeper.closed_because = None

    def handle_signals(self) -> None:
        """Let SIGTERM and SIGINT end :meth:`serve_forever`, a second one the process; SIGHUP reads tokens."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            self._stop.set()

        loop.add_signal_handler(signal.SIGTERM, stop)
        loop.add_signal_handler(signal.SIGINT, stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_tokens)

    async def serve_forever(self) -> None:
        """Serve until a signal comes, then drain."""
        await self._stop.wait()
        await self.drain()

    async def drain(self) -> None:
        """Take no new sessions, let running ones go on for a while, then finish them."""
        self._doorkeeper.closed_because = "shutting down"
        for connection in list(self._connections):
            if connection.is_waiting:
                connection.shut_down()
        drain_s = self._config.limits.drain_s
        _log.info("shutting down: %d sessions may go on for %g s", len(self._registry), drain_s)
        if await self._is_empty_within(drain_s):
            return
        for live in self._registry:
            if live.is_attached:
                live.expire("shutting_down", "the server is shutting down")
            else:
                self._registry.forget(live)
        if await self._is_empty_within(_FINISH_S):
            return
        for live in self._registry:
            live.fail("shutting_down", "the server shut down before everything was recognised")
        await self._is_empty_within(_CLOSE_S)

    async def _is_empty_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._registry.wait_empty(), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    async def _handle(self, websocket: ServerConnection) -> None:
        assert isinstance(websocket, StreamSocket) and self._hub
        connection = Connection(websocket, self._hub)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def _process_request(self, websocket: ServerConnection, request: Request) -> Response | None:
        return self._doorkeeper.answer(cast(StreamSocket, websocket), request)

    def _reload_tokens(self) -> None:
        if self._tokens:
            try:
                self._tokens.reload()
            except OptionError as error:
                _log.error("%s; the tokens stay as they were", error)

    def _queued_s(self) -> float:
        return sum(live.queued_s for live in self._registry)

    @property
    def _authority(self) -> str:
        host = self._config.host or "localhost"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def _tls(config: ServerConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # With an empty password an encrypted key is an error; without one OpenSSL would ask on the terminal.
        context.load_cert_chain(config.tls_cert, config.tls_key, password="")
    except OSError as error:  # an SSLError is one too
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise OptionError(
            f"TLS cannot use {config.tls_cert} with {config.tls_key} ({reason}); "
            "expected a PEM certificate chain and its key without a passphrase"
        ) from error
    return context


def _listen_problem(error: OSError, config: ServerConfig) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {config.port} on {config.host} is in use; stop the other program or choose another --port"
        )
    reason = error.strerror or str(error)
    return f"cannot listen on {config.host} port {config.port} ({reason}); check --host and --port"
