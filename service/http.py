"""Plain HTTP on the websocket's port: the browser page, health, metrics, and refusals of handshakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from websockets.datastructures import Headers
from websockets.http11 import Response

STREAM_PATH = "/v1/stream"
RETRY_AFTER = {"Retry-After": "5"}  # seconds

_PAGE_FOLDER = Path(__file__).parent / "page"
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_TEXT = "text/plain; charset=utf-8"
_PAGE_HEADERS = {
    # The page needs nothing but its own files and its own server's websocket.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",  # a token may stand in the address
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Asset:
    """A file of the browser page."""

    body: bytes
    content_type: str


def load_page() -> dict[str, Asset]:
    """Return the browser page's files by path; ``/`` is index.html. Nothing else is ever read or served."""
    assets = {
        f"/{file.name}": Asset(file.read_bytes(), _CONTENT_TYPES[file.suffix])
        for file in sorted(_PAGE_FOLDER.iterdir())
        if file.suffix in _CONTENT_TYPES
    }
    if "/index.html" in assets:
        assets["/"] = assets["/index.html"]
    return assets


def asset_response(asset: Asset) -> Response:
    """Answer with a file of the page and the headers that fence it in.

    Args:
        asset: The file.
    """
    return response(HTTPStatus.OK, asset.body, content_type=asset.content_type, headers=_PAGE_HEADERS)


def metrics_response(page: bytes) -> Response:
    """Answer with metrics.

    Args:
        page: In Prometheus' text format.
    """
    return response(HTTPStatus.OK, page, content_type=CONTENT_TYPE_LATEST)


def text_response(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a line of text.

    Args:
        status: The HTTP status.
        text: What was wrong and what to do, or ``ok``.
        headers: More headers.
    """
    return response(status, f"{text}\n".encode(), content_type=_TEXT, headers=headers)


def json_response(
    status: HTTPStatus, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with JSON.

    Args:
        status: The HTTP status.
        body: An object.
        headers: More headers.
    """
    return response(status, json.dumps(body).encode(), content_type="application/json", headers=headers)


def unavailable(text: str) -> Response:
    """Answer with 503 and when to try again.

    Args:
        text: Why.
    """
    return text_response(HTTPStatus.SERVICE_UNAVAILABLE, text, RETRY_AFTER)


def response(
    status: HTTPStatus, body: bytes, *, content_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer and close the connection, as websockets takes one request on each.

    Args:
        status: The HTTP status.
        body: All of it.
        content_type: Its media type.
        headers: More headers.
    """
    fields = {
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        "Connection": "close",
        "X-Content-Type-Options": "nosniff",
        **(headers or {}),
    }
    return Response(status.value, status.phrase, Headers(fields), body)
