"""Answers every HTTP request on a port: a websocket handshake, the browser page, health or metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import parse_qs

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from service.auth import Tokens, is_allowed_origin
from service.connection import StreamSocket
from service.http import (
    RETRY_AFTER,
    asset_response,
    load_page,
    metrics_response,
    text_response,
    unavailable,
)
from service.metrics import Metrics
from service.protocol.dialect import BadRequest, Dialect, Opening
from service.registry import Registry
from service.routes import ROUTES, Query, Refusal, Route, header

_PATHS = ", ".join(ROUTES)


class Doorkeeper:
    """Decides about each request before a websocket is opened.

    Attributes:
        closed_because: Why new sessions are refused and the server is not ready; None while it is.
        opening: What every client's protocol is told of this server.
    """

    def __init__(
        self, *, tokens: Tokens | None, allow_origins: tuple[str, ...], registry: Registry, metrics: Metrics
    ) -> None:
        """Read the browser page; be closed until told otherwise.

        Args:
            tokens: Who may stream; None lets everybody in.
            allow_origins: Foreign web pages that may.
            registry: Where places are reserved.
            metrics: What /metrics tells, and where refusals are counted.
        """
        self.closed_because: str | None = "loading"
        self.opening = Opening()
        self._tokens = tokens
        self._allow_origins = allow_origins
        self._registry = registry
        self._metrics = metrics
        self._page = load_page()
        self._plain: dict[str, Callable[[], Response]] = {
            "/healthz": lambda: text_response(HTTPStatus.OK, "ok"),
            "/readyz": self._readyz,
            "/metrics": lambda: metrics_response(metrics.page()),
        }

    def answer(self, websocket: StreamSocket, request: Request) -> Response | None:
        """Answer a request to the server's port.

        Args:
            websocket: Gets a place and its dialect if the answer is None.
            request: The request.

        Returns:
            None to open a websocket.
        """
        # Before version 17 websockets itself turns away everything but GET.
        method = getattr(request, "method", "GET")
        if method not in ("GET", "HEAD"):
            text = f"{method} is not supported; use GET"
            return text_response(HTTPStatus.METHOD_NOT_ALLOWED, text, {"Allow": "GET, HEAD"})
        path = request.path.partition("?")[0]
        if route := ROUTES.get(path):
            response = self.open(websocket, request, route)
        elif asset := self._page.get(path):
            response = asset_response(asset)
        elif plain := self._plain.get(path):
            response = plain()
        else:
            response = text_response(HTTPStatus.NOT_FOUND, f"nothing is here; audio streams to {_PATHS}")
        if response and method == "HEAD":
            response.body = b""  # Content-Length stays that of GET
        return response

    def open(self, websocket: StreamSocket, request: Request, route: Route) -> Response | None:
        """Answer a request for a websocket.

        Args:
            websocket: Gets a place and its dialect if the answer is None.
            request: The request.
            route: What is spoken there.

        Returns:
            None to open it.
        """
        path, _, text = request.path.partition("?")
        query, headers = parse_qs(text, keep_blank_values=True), request.headers
        decision = self._decide(route, headers, query)
        if header(headers, "Upgrade").lower() != "websocket":
            # Browsers hide why a handshake failed; a page learns it by asking again without one.
            text = f"{path} is for websockets; docs/protocol.md says how to use it"
            is_open = Refusal(HTTPStatus.UPGRADE_REQUIRED, "upgrade", text, (("Upgrade", "websocket"),))
            return route.respond(decision if isinstance(decision, Refusal) else is_open)
        if isinstance(decision, Refusal):
            self._metrics.refused.labels(decision.reason).inc()
            return route.respond(decision)
        websocket.dialect, websocket.subprotocols_wanted = decision, route.subprotocols
        if route.message_bytes:
            websocket.limit_messages(route.message_bytes)
        if not (decision.is_resumable and self._is_resuming(query)):
            websocket.place = self._registry.reserve()
        return None

    def _readyz(self) -> Response:
        if self.closed_because:
            return unavailable(self.closed_because)
        return text_response(HTTPStatus.OK, "ready")

    def _decide(self, route: Route, headers: Headers, query: Query) -> Dialect | Refusal:
        """What the client is going to speak, or why it would be refused."""
        origin, host = header(headers, "Origin"), header(headers, "Host")
        keys = route.keys(headers, query)
        if stranger := self.stranger(origin=origin, host=host, keys=keys, key_hint=route.key_hint):
            return stranger
        lower = {name.lower(): header(headers, name) for name in headers}
        try:
            dialect = route.open_dialect(replace(self.opening, query=query, headers=lower))
        except BadRequest as error:
            return Refusal(HTTPStatus.BAD_REQUEST, error.code or "bad request", str(error))
        if dialect.is_resumable and self._is_resuming(query):
            return dialect  # the session has a place already, and a server that drains lets it go on
        if closed := self.closed():
            return closed
        return self.no_room() if self._registry.is_full else dialect

    def stranger(self, *, origin: str, host: str, keys: Sequence[str], key_hint: str) -> Refusal | None:
        """Tell why somebody may not use the server; None if they may.

        Args:
            origin: The request's Origin header, empty if it has none.
            host: Its Host header.
            keys: That the request shows.
            key_hint: How to show one.
        """
        if not is_allowed_origin(origin, host=host, allowed=self._allow_origins):
            text = f"pages of {origin} may not connect; start the server with --allow-origin {origin}"
            return Refusal(HTTPStatus.FORBIDDEN, "origin", text)
        if self._tokens and not any(self._tokens.accept(key) for key in keys):
            return Refusal(HTTPStatus.UNAUTHORIZED, "token", key_hint, (("WWW-Authenticate", "Bearer"),))
        return None

    def closed(self) -> Refusal | None:
        """Tell why nobody may use the server now; None if they may."""
        reason = self.closed_because
        return _unavailable(reason, f"the server is {reason}") if reason else None

    def no_room(self) -> Refusal:
        """Tell that all places are taken."""
        return _unavailable("full", "all places are taken; try again later")

    def _is_resuming(self, query: Query) -> bool:
        return any(self._registry.find(token) for token in query.get("resume_token", []))


def _unavailable(reason: str, text: str) -> Refusal:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, reason, text, tuple(RETRY_AFTER.items()))
