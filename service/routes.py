"""The websocket paths: which protocol each speaks, how a client shows its key, how a refusal looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.headers import parse_subprotocol
from websockets.http11 import Response

from service.http import STREAM_PATH, json_response, text_response
from service.protocol import deepgram, native, openai_realtime, vosk
from service.protocol.dialect import OpenDialect

Query = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Refusal:
    """Why there is no websocket.

    Attributes:
        status: The HTTP status.
        reason: In a word or two, for metrics: ``token``, ``origin``, ``full``, ``loading`` ...
        text: What was wrong and what to do.
        headers: More of the response's headers.
    """

    status: HTTPStatus
    reason: str
    text: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Route:
    """How clients are spoken to on one path.

    Attributes:
        open_dialect: Makes the connection's dialect, or refuses what the address asks for.
        keys: The keys that a request shows, in any of the protocol's ways.
        respond: A refusal as the protocol's clients read it.
        key_hint: How to show a key.
        subprotocols: Websocket subprotocols to take if one is offered.
        message_bytes: Of one message, where the protocol says so; None is the server's limit.
    """

    open_dialect: OpenDialect
    keys: Callable[[Headers, Query], list[str]]
    respond: Callable[[Refusal], Response]
    key_hint: str
    subprotocols: tuple[str, ...] = ()
    message_bytes: int | None = None


def header(headers: Headers, name: str) -> str:
    """Return a header's value, empty if it is not there; a repeated one is no valid value of any.

    Args:
        headers: Of a request.
        name: In any case.
    """
    return ", ".join(headers.get_all(name))


def text_refusal(refusal: Refusal) -> Response:
    """Refuse with a line of text.

    Args:
        refusal: Why.
    """
    return text_response(refusal.status, refusal.text, headers=dict(refusal.headers))


def authorization(headers: Headers, *schemes: str) -> list[str]:
    """Return the key of the Authorization header, if its scheme is one of some.

    Args:
        headers: Of a request.
        schemes: Such as ``Bearer``, in any case.
    """
    scheme, _, key = header(headers, "Authorization").partition(" ")
    return [key.strip()] if scheme.lower() in (each.lower() for each in schemes) else []


def _offered(headers: Headers) -> list[str]:
    """Return the subprotocols that a request offers, none where they cannot be read.

    Args:
        headers: Of a request.
    """
    try:
        return [
            str(each)
            for value in headers.get_all("Sec-WebSocket-Protocol")
            for each in parse_subprotocol(value)
        ]
    except InvalidHeader:
        return []


def _native_keys(headers: Headers, query: Query) -> list[str]:
    return authorization(headers, "Bearer") or list(query.get("token", [""])[:1])


def openai_refusal(refusal: Refusal) -> Response:
    """Refuse as OpenAI does.

    Args:
        refusal: Why.
    """
    return json_response(refusal.status, {"error": openai_error(refusal)}, dict(refusal.headers))


def openai_error(refusal: Refusal) -> dict[str, Any]:
    """Return a refusal as OpenAI's error object.

    Args:
        refusal: Why.
    """
    codes = {"token": "invalid_api_key", "origin": "forbidden"}
    codes |= dict.fromkeys(("full", "key streams", "key rate"), "rate_limit_exceeded")
    code = codes.get(refusal.reason, refusal.reason.replace(" ", "_"))
    kind = "server_error" if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return {"message": refusal.text, "type": kind, "param": None, "code": code}


OPENAI_KEY_HINT = "incorrect API key; use one of the server's tokens: Authorization: Bearer TOKEN"
_OPENAI_KEY = "openai-insecure-api-key."


def _openai_keys(headers: Headers, query: Query) -> list[str]:
    # Browsers cannot set headers for a websocket; they offer the key as a subprotocol.
    offered = [each[len(_OPENAI_KEY) :] for each in _offered(headers) if each.startswith(_OPENAI_KEY)]
    return authorization(headers, "Bearer") or offered


def deepgram_refusal(refusal: Refusal) -> Response:
    """Refuse as Deepgram does.

    Args:
        refusal: Why.
    """
    codes = {"token": "INVALID_AUTH"} | dict.fromkeys(
        ("full", "key streams", "key rate"), "TOO_MANY_REQUESTS"
    )
    code = codes.get(refusal.reason, refusal.reason.upper().replace(" ", "_"))
    request_id = str(uuid4())
    body = {"err_code": code, "err_msg": refusal.text, "request_id": request_id}
    # Their websocket clients show headers where they hide bodies. Parts of the text may be the client's own.
    shown = "".join(each if " " <= each <= "~" else "?" for each in refusal.text)
    headers = {"dg-error": shown, "dg-request-id": request_id, **dict(refusal.headers)}
    return json_response(refusal.status, body, headers)


_DEEPGRAM_SCHEMES = ("token", "bearer")


def _deepgram_keys(headers: Headers, query: Query) -> list[str]:
    # Browsers offer the scheme and the key as two subprotocols.
    offered = _offered(headers)
    pair = offered[1:2] if offered[:1] and offered[0].lower() in _DEEPGRAM_SCHEMES else []
    return authorization(headers, *_DEEPGRAM_SCHEMES) or pair


ROUTES: dict[str, Route] = {
    STREAM_PATH: Route(
        native.open_dialect,
        _native_keys,
        text_refusal,
        "a token is needed: Authorization: Bearer TOKEN, or ?token=TOKEN",
    ),
    "/v1/realtime": Route(
        openai_realtime.open_dialect,
        _openai_keys,
        openai_refusal,
        f"{OPENAI_KEY_HINT}, or the websocket subprotocol {_OPENAI_KEY}TOKEN",
        subprotocols=("realtime",),
        message_bytes=openai_realtime.MAX_MESSAGE_BYTES,
    ),
    "/v1/listen": Route(
        deepgram.open_dialect,
        _deepgram_keys,
        deepgram_refusal,
        "Invalid credentials. Use one of the server's tokens: Authorization: Token TOKEN, or the websocket "
        "subprotocols token, TOKEN.",
        subprotocols=_DEEPGRAM_SCHEMES,
    ),
}

# A port of its own, whatever the path: its clients know none.
VOSK = Route(
    vosk.open_dialect,
    _native_keys,
    text_refusal,
    "a token is needed: ws://HOST:PORT/?token=TOKEN, or Authorization: Bearer TOKEN",
)
