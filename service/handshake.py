"""Answers every HTTP request on the port: a websocket handshake, the browser page, health or metrics."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import parse_qs

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from service.auth import Tokens, is_allowed_origin
from service.connection import StreamSocket
from service.http import (
    STREAM_PATH,
    asset_response,
    load_page,
    metrics_response,
    text_response,
    unavailable,
)
from service.metrics import Metrics
from service.registry import Registry

_BEARER = "Bearer "


class Doorkeeper:
    """Decides about each request before a websocket is opened.

    Attributes:
        closed_because: Why new sessions are refused and the server is not ready; None while it is.
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
        """Answer a request.

        Args:
            websocket: Gets a place if the answer is None.
            request: The request.

        Returns:
            None to open a websocket.
        """
        # Before version 17 websockets itself turns away everything but GET.
        method = getattr(request, "method", "GET")
        if method not in ("GET", "HEAD"):
            text = f"{method} is not supported; use GET"
            return text_response(HTTPStatus.METHOD_NOT_ALLOWED, text, Allow="GET, HEAD")
        path, _, query = request.path.partition("?")
        if path == STREAM_PATH:
            response = self._handshake(websocket, request.headers, parse_qs(query))
        elif asset := self._page.get(path):
            response = asset_response(asset)
        elif plain := self._plain.get(path):
            response = plain()
        else:
            response = text_response(HTTPStatus.NOT_FOUND, f"nothing is here; audio streams to {STREAM_PATH}")
        if response and method == "HEAD":
            response.body = b""  # Content-Length stays that of GET
        return response

    def _readyz(self) -> Response:
        if self.closed_because:
            return unavailable(self.closed_because)
        return text_response(HTTPStatus.OK, "ready")

    def _handshake(
        self, websocket: StreamSocket, headers: Headers, query: dict[str, list[str]]
    ) -> Response | None:
        refusal = self._refusal(headers, query)
        if _value(headers, "Upgrade").lower() != "websocket":
            # Browsers hide why a handshake failed; a page learns it by asking again without one.
            text = f"{STREAM_PATH} is for websockets; docs/protocol.md says how to use it"
            is_open = text_response(HTTPStatus.UPGRADE_REQUIRED, text, Upgrade="websocket")
            return refusal[1] if refusal else is_open
        if refusal:
            reason, response = refusal
            self._metrics.refused.labels(reason).inc()
            return response
        if not self._is_resuming(query):
            websocket.place = self._registry.reserve()
        return None

    def _refusal(self, headers: Headers, query: dict[str, list[str]]) -> tuple[str, Response] | None:
        """Why a stream would be refused, in a word and as an answer; None if it would not."""
        origin, host = _value(headers, "Origin"), _value(headers, "Host")
        if not is_allowed_origin(origin, host=host, allowed=self._allow_origins):
            text = f"pages of {origin} may not connect; start the server with --allow-origin {origin}"
            return "origin", text_response(HTTPStatus.FORBIDDEN, text)
        if self._tokens and not self._tokens.accept(_token(_value(headers, "Authorization"), query)):
            text = "a token is needed: Authorization: Bearer TOKEN, or ?token=TOKEN"
            return "token", text_response(HTTPStatus.UNAUTHORIZED, text, WWW_Authenticate="Bearer")
        if self._is_resuming(query):
            return None  # the session has a place already, and a server that drains lets it go on
        if self.closed_because:
            return self.closed_because, unavailable(f"the server is {self.closed_because}")
        if self._registry.is_full:
            return "full", unavailable("all places are taken; try again later")
        return None

    def _is_resuming(self, query: dict[str, list[str]]) -> bool:
        return any(self._registry.find(token) for token in query.get("resume_token", []))


def _value(headers: Headers, name: str) -> str:
    """Return a header's value, empty if it is not there; a repeated one is no valid value of any."""
    return ", ".join(headers.get_all(name))


def _token(authorization: str, query: dict[str, list[str]]) -> str:
    if authorization.startswith(_BEARER):
        return authorization[len(_BEARER) :].strip()
    return query.get("token", [""])[0]
