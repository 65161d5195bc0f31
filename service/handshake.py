"""Answers every HTTP request on a port: a websocket handshake, the browser page, health or metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import parse_qs

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from service.auth import ANYBODY, Tokens, is_allowed_origin
from service.connection import StreamSocket
from service.http import (
    RETRY_AFTER,
    asset_response,
    json_response,
    load_page,
    metrics_response,
    text_response,
    unavailable,
)
from service.metrics import Metrics
from service.protocol.dialect import BadRequest, Dialect, Opening
from service.registry import Registry
from service.routes import ROUTES, Query, Refusal, Route, authorization, header
from service.throttle import Throttle

_PATHS = ", ".join(ROUTES)
DEBUG_PATH = "/debug/sessions"


class Doorkeeper:
    """Decides about each request before a websocket is opened.

    Attributes:
        closed_because: Why new sessions are refused and the server is not ready; None while it is.
        opening: What every client's protocol is told of this server.
    """

    def __init__(
        self,
        *,
        tokens: Tokens | None,
        operator_tokens: Tokens | None,
        allow_origins: tuple[str, ...],
        registry: Registry,
        throttle: Throttle,
        metrics: Metrics,
        health: Callable[[], str | None],
    ) -> None:
        """Read the browser page; be closed until told otherwise.

        Args:
            tokens: Who may stream; None lets everybody in.
            operator_tokens: Who may see what runs; None shows it to nobody.
            allow_origins: Foreign web pages that may.
            registry: Where places are reserved.
            throttle: How often a key may begin.
            metrics: What /metrics tells, and where refusals are counted.
            health: Tells what is wrong with the process; None while nothing is.
        """
        self.closed_because: str | None = "loading"
        self.opening = Opening()
        self._tokens = tokens
        self._operator_tokens = operator_tokens
        self._allow_origins = allow_origins
        self._registry = registry
        self._throttle = throttle
        self._metrics = metrics
        self._health = health
        self._page = load_page()
        self._plain: dict[str, Callable[[], Response]] = {
            "/healthz": self._healthz,
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
        elif path == DEBUG_PATH and self._operator_tokens:
            response = self._show_sessions(self._operator_tokens, request.headers)
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
        key = self.admit(
            origin=header(headers, "Origin"),
            host=header(headers, "Host"),
            keys=route.keys(headers, query),
            key_hint=route.key_hint,
        )
        decision = key if isinstance(key, Refusal) else self._decide(route, key, headers, query)
        if header(headers, "Upgrade").lower() != "websocket":
            # Browsers hide why a handshake failed; a page learns it by asking again without one.
            text = f"{path} is for websockets; docs/protocol.md says how to use it"
            is_open = Refusal(HTTPStatus.UPGRADE_REQUIRED, "upgrade", text, (("Upgrade", "websocket"),))
            return route.respond(decision if isinstance(decision, Refusal) else is_open)
        if isinstance(key, str) and not isinstance(decision, Refusal):
            is_resuming = decision.is_resumable and self._is_resuming(query, key)
            if is_resuming or not (too_often := self.too_often(key)):
                websocket.key, websocket.dialect = key, decision
                websocket.subprotocols_wanted = route.subprotocols
                if route.message_bytes:
                    websocket.limit_messages(route.message_bytes)
                if not is_resuming:
                    websocket.place = self._registry.reserve(key, n_streams=decision.n_streams)
                return None
            decision = too_often
        assert isinstance(decision, Refusal)
        self.count(decision)
        return route.respond(decision)

    def _healthz(self) -> Response:
        if problem := self._health():
            return unavailable(problem)
        n_more = 0 if self.closed_because else self._registry.headroom
        return text_response(HTTPStatus.OK, f"ok\nroom for {n_more} more streams")

    def _show_sessions(self, tokens: Tokens, headers: Headers) -> Response:
        if tokens.key_of(authorization(headers, "Bearer")) is None:
            text = "an operator's token is needed: Authorization: Bearer TOKEN"
            return text_response(HTTPStatus.UNAUTHORIZED, text, {"WWW-Authenticate": "Bearer"})
        return json_response(HTTPStatus.OK, {"sessions": [live.describe() for live in self._registry]})

    def _readyz(self) -> Response:
        if self.closed_because:
            return unavailable(self.closed_because)
        return text_response(HTTPStatus.OK, "ready")

    def _decide(self, route: Route, key: str, headers: Headers, query: Query) -> Dialect | Refusal:
        """What the client is going to speak, or why it would be refused."""
        lower = {name.lower(): header(headers, name) for name in headers}
        try:
            dialect = route.open_dialect(replace(self.opening, query=query, headers=lower))
        except BadRequest as error:
            return Refusal(HTTPStatus.BAD_REQUEST, error.code or "bad request", str(error))
        if dialect.is_resumable and self._is_resuming(query, key):
            return dialect  # the session has a place already, and a server that drains lets it go on
        if closed := self.closed():
            return closed
        return self.no_room(key, n_streams=dialect.n_streams) or dialect

    def admit(self, *, origin: str, host: str, keys: Sequence[str], key_hint: str) -> str | Refusal:
        """Tell who somebody is, or why they may not use the server.

        Args:
            origin: The request's Origin header, empty if it has none.
            host: Its Host header.
            keys: That the request shows.
            key_hint: How to show one.

        Returns:
            The name of their key, by which their streams are counted.
        """
        if not is_allowed_origin(origin, host=host, allowed=self._allow_origins):
            text = f"pages of {origin} may not connect; start the server with --allow-origin {origin}"
            return Refusal(HTTPStatus.FORBIDDEN, "origin", text)
        if self._tokens is None:
            return ANYBODY
        key = self._tokens.key_of(keys)
        unknown = Refusal(HTTPStatus.UNAUTHORIZED, "token", key_hint, (("WWW-Authenticate", "Bearer"),))
        return unknown if key is None else key

    def closed(self) -> Refusal | None:
        """Tell why nobody may use the server now; None if they may."""
        reason = self.closed_because
        return _unavailable(reason, f"the server is {reason}") if reason else None

    def no_room(self, key: str, *, n_streams: int = 1) -> Refusal | None:
        """Tell that there is no place; None if there is one.

        Args:
            key: Whose it would be.
            n_streams: How many it is for.
        """
        if not self._registry.has_share(key, n_streams=n_streams):
            text = "this key has as many streams as it may have; end one or try again later"
            return Refusal(HTTPStatus.TOO_MANY_REQUESTS, "key streams", text, tuple(RETRY_AFTER.items()))
        if not self._registry.has_room(n_streams=n_streams):
            return _unavailable("full", "all places are taken; try again later")
        return None

    def too_often(self, key: str) -> Refusal | None:
        """Count a beginning; tell that there were too many in the last minute, None if there were not.

        Args:
            key: Whose it is.
        """
        wait_s = self._throttle.admit(key, now=time.monotonic())
        if not wait_s:
            return None
        text = f"this key has begun too often; try again in {wait_s:g} s"
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, "key rate", text, (("Retry-After", f"{wait_s:g}"),))

    def count(self, refusal: Refusal) -> None:
        """Count a refusal in the metrics.

        Args:
            refusal: Why.
        """
        self._metrics.refused.labels(refusal.reason).inc()

    def _is_resuming(self, query: Query, key: str) -> bool:
        return any(self._registry.find(token, key=key) for token in query.get("resume_token", []))


def _unavailable(reason: str, text: str) -> Refusal:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, reason, text, tuple(RETRY_AFTER.items()))
