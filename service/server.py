"""The server: one port for websockets, the browser page, health and metrics; it drains before it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import ssl
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import cast

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from asr.errors import OptionError
from service.admission import Goodput, Tick
from service.auth import Tokens
from service.config import ServerConfig
from service.connection import WRITE_BUFFER, Connection, Hub, StreamSocket
from service.handshake import Doorkeeper
from service.http import STREAM_PATH
from service.live import BatcherLike
from service.metrics import Metrics
from service.protocol.dialect import Opening
from service.registry import Registry
from service.rest import RestApi
from service.rest_server import RestServer
from service.routes import VOSK
from service.throttle import Throttle

_OPEN_S = 10.0  # for a connection's handshake, however slowly its bytes come
_CLOSE_S = 5.0  # for the other side to answer a close frame
_STUCK_S = 60.0  # after which a tick, which takes less than a second, is never going to end
_FINISH_S = 10.0  # for the model to recognise what is queued when a drain's time is over

_ProcessRequest = Callable[[ServerConnection, Request], Response | None]

_log = logging.getLogger(__name__)


class Server:
    """Serves streams on one port, as an asynchronous context manager.

    It listens as soon as it is entered, and takes sessions once it was given a batcher.

    Attributes:
        metrics: What /metrics tells.
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
        self._operator_tokens = Tokens(config.operator_token_file) if config.operator_token_file else None
        self._tls = _tls(config)
        self.metrics = Metrics()
        limits = config.limits
        target_ms = limits.target_latency_ms
        self._goodput = None if target_ms is None else Goodput(target_ms / 1000)
        self._registry = Registry(
            n_places=limits.max_streams,
            resume_s=limits.resume_s,
            places_per_key=limits.key_streams,
            fitting=self._fitting,
        )
        self._doorkeeper = Doorkeeper(
            tokens=self._tokens,
            operator_tokens=self._operator_tokens,
            allow_origins=config.allow_origins,
            registry=self._registry,
            throttle=Throttle(limits.key_starts),
            metrics=self.metrics,
            health=self._problem,
        )
        self._connections: set[Connection] = set()
        self._hub: Hub | None = None  # None while the model loads
        self._stop = asyncio.Event()
        self._is_draining = False
        self._listener: WebsocketServer
        self._listeners: list[WebsocketServer] = []
        self._vosk: WebsocketServer | None = None
        self._rest: RestServer | None = None

    async def __aenter__(self) -> Server:
        """Listen.

        Raises:
            OptionError: The address cannot be used.
        """
        config = self._config
        self._listener = await self._listen(config.port, "--port", self._process_request)
        self._listeners.append(self._listener)
        if config.vosk_port is not None:
            self._vosk = await self._listen(config.vosk_port, "--vosk-port", self._process_vosk_request)
            self._listeners.append(self._vosk)
        if config.rest_port is not None:
            await self._serve_rest(config.rest_port)
        return self

    async def _listen(self, port: int, option: str, process_request: _ProcessRequest) -> WebsocketServer:
        config = self._config
        try:
            return await serve(
                self._handle,
                config.host,
                port,
                ssl=self._tls,
                create_connection=StreamSocket,
                process_request=process_request,
                select_subprotocol=_select_subprotocol,
                # Audio does not get smaller, and each compressor takes up to 300 KiB; texts are small anyway.
                compression=None,
                ping_interval=None,  # see Connection
                open_timeout=_OPEN_S,
                close_timeout=_CLOSE_S,
                max_size=config.limits.message_bytes,
                write_limit=WRITE_BUFFER,
            )
        except OSError as error:
            self._stop_listening()
            raise OptionError(_listen_problem(error, config.host, port, option)) from error

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def _serve_rest(self, port: int) -> None:
        config = self._config
        api = RestApi(
            self._doorkeeper,
            lambda: self._hub,
            allow_origins=config.allow_origins,
            upload_bytes=config.upload_bytes,
        )
        try:
            self._rest = RestServer(
                api.app,
                host=config.host,
                port=port,
                tls_cert=config.tls_cert,
                tls_key=config.tls_key,
                patience_s=config.limits.drain_s,
            )
        except OSError as error:
            self._stop_listening()
            raise OptionError(_listen_problem(error, config.host, port, "--rest-port")) from error
        await self._rest.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See :meth:`close`."""
        await self.close()

    async def close(self) -> None:
        """Close every connection and give up every session; the batcher must still be there."""
        self._doorkeeper.closed_because = "shutting down"
        self._stop_listening()
        if self._rest:
            await self._rest.stop()
        for listener in self._listeners:
            await listener.wait_closed()
        for live in self._registry:
            self._registry.forget(live)

    @property
    def port(self) -> int:
        """Where it listens."""
        return _port(self._listener)

    @property
    def url(self) -> str:
        """Address of the browser page."""
        return f"{self._scheme}://{self._authority(self.port)}"

    @property
    def stream_url(self) -> str:
        """Address of the websocket."""
        return f"{self._websocket_scheme}://{self._authority(self.port)}{STREAM_PATH}"

    @property
    def vosk_url(self) -> str | None:
        """Address for clients of vosk-server, if they are served."""
        return f"{self._websocket_scheme}://{self._authority(_port(self._vosk))}" if self._vosk else None

    @property
    def rest_url(self) -> str | None:
        """Address of OpenAI's REST interface, if it is offered: the SDKs' base URL."""
        return f"{self._scheme}://{self._authority(self._rest.port)}/v1" if self._rest else None

    def open_for(self, batcher: BatcherLike, *, model: str, languages: tuple[str, ...] = ()) -> None:
        """Take sessions from now on.

        Args:
            batcher: Recognises their streams; outlives the server.
            model: Its name, for clients.
            languages: Codes that it takes; empty if that is not known.
        """
        config, metrics = self._config, self.metrics
        self._hub = Hub(batcher, model, self._registry, config.limits, metrics)
        self._doorkeeper.opening = Opening(
            defaults=config.defaults, limits=config.limits, model=model, languages=languages
        )
        metrics.watch(
            "sessions", "Sessions, those without a connection included.", lambda: len(self._registry)
        )
        metrics.watch("connections", "Open websockets.", lambda: len(self._connections))
        metrics.watch("streams_capacity", "Streams that fit at a time.", lambda: self._registry.capacity)
        metrics.watch("streams_headroom", "Streams that would be let in.", lambda: self._registry.headroom)
        metrics.watch("slots_total", "Streams that the batcher can hold.", lambda: batcher.n_slots)
        metrics.watch("slots_used", "Streams that it holds.", lambda: batcher.n_used)
        metrics.watch("lanes", "Ticks that may run at a time.", lambda: batcher.n_lanes)
        metrics.watch("model_cpu_seconds", "Processor time of the model.", lambda: batcher.cpu_s)
        metrics.watch("model_memory_bytes", "Memory of the model.", lambda: batcher.memory_bytes)
        metrics.watch("queued_audio_seconds", "Audio received and not yet recognised.", self._queued_s)
        metrics.watch(
            "tick_age_seconds", "Time that the running tick has taken so far.", lambda: batcher.tick_age_s
        )
        metrics.watch("tasks", "Of the event loop.", lambda: len(asyncio.all_tasks()))
        metrics.watch("threads", "Of the process.", threading.active_count)
        metrics.watch("draining", "1 while the server shuts down.", lambda: self._is_draining)
        self._doorkeeper.closed_because = None

    def count_tick(self, tick: Tick) -> None:
        """Learn what the model's steps take; from any thread.

        Args:
            tick: The newest.
        """
        self.metrics.count_tick(tick)
        if self._goodput:
            self._goodput.observe(tick)

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
        self._is_draining = True
        self.metrics.drains.inc()
        for connection in list(self._connections):
            if connection.is_waiting:
                connection.shut_down()
        drain_s = self._config.limits.drain_s
        if self._rest:
            self._rest.take_no_more()
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

    def _process_vosk_request(self, websocket: ServerConnection, request: Request) -> Response | None:
        return self._doorkeeper.open(cast(StreamSocket, websocket), request, VOSK)

    def _reload_tokens(self) -> None:
        for tokens in (self._tokens, self._operator_tokens):
            if tokens:
                try:
                    tokens.reload()
                except OptionError as error:
                    _log.error("%s; the tokens stay as they were", error)

    def _fitting(self) -> int | None:
        """Streams that there are slots for, and time, as far as is known."""
        limits = [self._hub.batcher.n_slots if self._hub else None]
        limits.append(self._goodput.capacity if self._goodput else None)
        return min((limit for limit in limits if limit is not None), default=None)

    def _problem(self) -> str | None:
        """What is wrong with the server, for whoever restarts it."""
        if self._hub and not self._hub.batcher.n_lanes:
            return "no process of the model is running"
        if self._hub and (age_s := self._hub.batcher.tick_age_s) > _STUCK_S:
            return f"the model has not come back for {age_s:.0f} s"
        return None

    def _queued_s(self) -> float:
        return sum(live.queued_s for live in self._registry)

    @property
    def _scheme(self) -> str:
        return "https" if self._tls else "http"

    @property
    def _websocket_scheme(self) -> str:
        return "wss" if self._tls else "ws"

    def _authority(self, port: int) -> str:
        host = self._config.host or "localhost"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port(listener: WebsocketServer) -> int:
    port: int = listener.sockets[0].getsockname()[1]
    return port


def _select_subprotocol(websocket: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Take what the path's protocol wants; a client that offers something else is let in without any."""
    wanted = cast(StreamSocket, websocket).subprotocols_wanted
    return next((each for each in offered if each in wanted), None)


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


def _listen_problem(error: OSError, host: str, port: int, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop the other program or choose another {option}"
    reason = error.strerror or str(error)
    return f"cannot listen on {host} port {port} ({reason}); check --host and {option}"
