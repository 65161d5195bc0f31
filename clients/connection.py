"""Opening a connection to a server, and what its refusals and closings mean."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from asr.errors import OptionError
from clients.errors import ServerError, UnreachableError
from clients.messages import Ready, parse

STREAM_PATH = "/v1/stream"

_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
# A dead connection is noticed within their sum. A busy server answers late: a ping waits behind audio.
_PING_EVERY_S, _PING_TIMEOUT_S = 5.0, 20.0
_CLOSE_TIMEOUT_S = 1.0
# Codes after which there is nothing to go on with.
_CLOSE_CODES = {
    1002: "protocol_error",
    1007: "invalid_utf8",
    1008: "policy",
    1009: "message_too_big",
    4400: "bad_audio",
    4404: "unknown_resume_token",
    4408: "idle_timeout",
    4409: "taken_over",
    4410: "session_limit",
    4429: "too_many_errors",
    4500: "model_error",
}


class Server:
    """Where to connect and how."""

    def __init__(self, url: str, *, token: str | None, ssl_context: ssl.SSLContext | None) -> None:
        """Check the address.

        Args:
            url: See :class:`clients.streaming.StreamingClient`.
            token: The access token, if there is one.
            ssl_context: For wss, if not the system's.

        Raises:
            OptionError: The URL or the token cannot be used.
        """
        try:
            parts = urlsplit(url)
            usable = parts.scheme in _SCHEMES and parts.hostname and parts.port != 0
        except ValueError:  # a port that is no number, half an IPv6 address
            usable = False
        if not usable:
            raise OptionError(f"server is '{url}'; expected an address such as ws://127.0.0.1:8765")
        token = token and token.strip()
        if token is not None and not (token and token.isascii() and token.isprintable()):
            raise OptionError("the access token is empty or has letters that no token has; copy it again")
        path = parts.path if parts.path.strip("/") else STREAM_PATH
        self._parts = parts._replace(scheme=_SCHEMES[parts.scheme], path=path, fragment="")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._ssl = (ssl_context or ssl.create_default_context()) if self._parts.scheme == "wss" else None

    def __str__(self) -> str:
        """The address without its query and login, which may be secret."""
        host = self._parts.netloc.rpartition("@")[2]
        return f"{self._parts.scheme}://{host}{self._parts.path}"

    async def connect(self, start: dict[str, Any], *, timeout_s: float) -> tuple[ClientConnection, Ready]:
        """Open a connection and start or resume a stream.

        Args:
            start: The start message.
            timeout_s: Time for all of it.

        Returns:
            The connection, after its ``ready``.

        Raises:
            UnreachableError: No connection, or none that works.
            ServerError: The server refuses.
        """
        try:
            return await asyncio.wait_for(self._connect(start), timeout_s)
        except InvalidStatus as error:
            raise self._refusal(error) from error
        except (InvalidHandshake, InvalidURI, ImportError) as error:  # ImportError: a SOCKS proxy
            raise UnreachableError(f"no websocket at {self} ({error}); check the address") from error
        except ConnectionClosed as error:
            raise closing_error(error) or self._unreachable(str(error)) from error
        except asyncio.TimeoutError as error:
            raise self._unreachable(f"no answer within {timeout_s:g} s") from error
        except ssl.SSLCertVerificationError as error:
            raise UnreachableError(
                f"the certificate of {self} is not trusted ({error.verify_message}); "
                "name its issuer's file in SSL_CERT_FILE"
            ) from error
        except OSError as error:
            raise self._unreachable(_reason(error)) from error

    async def _connect(self, start: dict[str, Any]) -> tuple[ClientConnection, Ready]:
        query = parse_qsl(self._parts.query)
        if "resume_token" in start:
            query.append(("resume_token", start["resume_token"]))
        websocket = await connect(
            self._parts._replace(query=urlencode(query)).geturl(),
            additional_headers=self._headers,
            ssl=self._ssl,
            # A proxy of the environment leads out, not back to this machine.
            proxy=None if self._parts.hostname in _LOCAL_HOSTS else True,
            compression=None,  # audio hardly shrinks
            open_timeout=None,  # wait_for covers it
            ping_interval=_PING_EVERY_S,
            ping_timeout=_PING_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(websocket.close)
            await websocket.send(json.dumps(start))
            while True:
                _, message = parse(await websocket.recv())
                if isinstance(message, ServerError):
                    raise message
                if isinstance(message, Ready):
                    stack.pop_all()
                    return websocket, message

    def _unreachable(self, reason: str) -> UnreachableError:
        return UnreachableError(
            f"no server answers at {self} ({reason}); start one with 'foresound serve', or check the address"
        )

    def _refusal(self, error: InvalidStatus) -> ServerError:
        status = error.response.status_code
        code = f"http_{status}"
        if status == 401:
            text = "wants an access token, or another one; pass it with --token or FORESOUND_TOKEN"
        elif status == 503:
            wait_s = error.response.headers.get("Retry-After")
            again = f"in {wait_s} s" if wait_s else "later"
            text = f"is full, starting or shutting down; try again {again}"
        elif status == 404:
            text = f"has no stream there; the path is usually {STREAM_PATH}"
        else:
            text = "refuses the connection; check the address"
        return ServerError(f"the server at {self} {text} (HTTP {status})", code=code)


def closing_error(closed: ConnectionClosed) -> ServerError | None:
    """Return what a closed connection means, None where it may be opened again.

    Args:
        closed: As websockets raises it.
    """
    if closed.rcvd is None:
        return None
    code, reason = closed.rcvd.code, closed.rcvd.reason
    if code not in _CLOSE_CODES and not 4000 <= code < 5000:
        return None
    name = _CLOSE_CODES.get(code, f"closed_{code}")
    return ServerError(f"the server closed the stream: {reason or name} (code {code})", code=name)


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno).lower()  # asyncio's own text repeats the address
    return str(error.strerror or error)
