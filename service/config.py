"""The server's settings: frozen, and checked where they are built."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from asr.errors import OptionError
from service.stream_settings import StreamSettings

# The widest chunk is 1 s and a window's first one twice that: a queue must hold more below its low mark.
_MIN_QUEUE_S = 5.0
_MIN_MESSAGE_BYTES = 1024


@dataclass(frozen=True)
class Limits:
    """What one client may use. Times are in seconds.

    Attributes:
        max_streams: At a time; each has a slot of the batcher. A session has one, or one for each channel.
        target_latency_ms: From a sample's arrival to the answer to its chunk: no more streams are let in than
            can keep it, as far as the server has measured. None lets in max_streams.
        key_streams: Of one key, at a time; None is as many as there are.
        key_starts: Of one key, handshakes and recordings in a minute; a session that goes on is none. None is
            any number.
        message_bytes: Of one websocket message.
        queue_s: Audio received and not yet recognised, above which the server stops reading.
        idle_s: Without a message from the client.
        session_s: Length of a session.
        resume_s: How long a session outlives its connection.
        start_s: From the handshake to the start message.
        drain_s: How long running sessions may go on when the server shuts down.
        ping_s: Without a sign of life before the server asks for one, and again until it gives up.
    """

    max_streams: int = 8
    target_latency_ms: float | None = None
    key_streams: int | None = None
    key_starts: int | None = None
    message_bytes: int = 1 << 20
    queue_s: float = 10.0
    idle_s: float = 60.0
    session_s: float = 4 * 3600.0
    resume_s: float = 60.0
    start_s: float = 10.0
    drain_s: float = 30.0
    ping_s: float = 20.0

    def __post_init__(self) -> None:
        """Check every value."""
        least = {
            "max_streams": 1,
            "key_streams": 1,
            "key_starts": 1,
            "message_bytes": _MIN_MESSAGE_BYTES,
            "queue_s": _MIN_QUEUE_S,
        }
        least |= {"resume_s": 0, "drain_s": 0}
        for name in (each.name for each in fields(self)):
            value, low = getattr(self, name), least.get(name)
            if value is None:
                continue
            is_valid = value > 0 if low is None else value >= low
            if not (is_valid and math.isfinite(value)):
                expected = "more than 0" if low is None else f"at least {low:g}"
                raise OptionError(f"{name} is {value:g}; expected {expected}")


@dataclass(frozen=True)
class ServerConfig:
    """How a server listens and whom it lets in.

    Attributes:
        host: Address to listen on.
        port: 0 is any free one.
        vosk_port: For vosk-server's protocol; None is not to offer it.
        rest_port: For OpenAI's REST interface; None is not to offer it.
        upload_bytes: Of one recording that is sent there.
        limits: What one client may use.
        defaults: Stream settings for what a client leaves out.
        token_file: One token a line; None lets everybody in.
        operator_token_file: The same for whoever may see what runs; None shows it to nobody.
        no_auth: Listening beyond this machine without tokens is meant.
        tls_cert: Certificate chain, PEM.
        tls_key: Its private key, PEM.
        allow_origins: Origins of web pages that may connect besides the server's own; ``*`` is any.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    vosk_port: int | None = None
    rest_port: int | None = None
    upload_bytes: int = 25 << 20
    limits: Limits = field(default_factory=Limits)
    defaults: StreamSettings = field(default_factory=StreamSettings)
    token_file: Path | None = None
    operator_token_file: Path | None = None
    no_auth: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allow_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what belongs together."""
        for name, port in (("port", self.port), ("vosk_port", self.vosk_port), ("rest_port", self.rest_port)):
            if port is not None and not 0 <= port <= 65535:
                raise OptionError(f"{name} is {port}; expected 0 to 65535")
        if self.upload_bytes < 1:
            raise OptionError(f"upload_bytes is {self.upload_bytes}; expected at least 1")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise OptionError("TLS needs both a certificate and its key; give --tls-cert and --tls-key")
        if self.token_file is not None and self.no_auth:
            raise OptionError("--token-file and --no-auth contradict each other; leave one out")
        if not is_loopback(self.host) and self.token_file is None and not self.no_auth:
            raise OptionError(
                f"'{self.host or '*'}' can be reached from other machines; "
                "add --token-file FILE, or --no-auth to let everybody in"
            )
        for origin in self.allow_origins:
            _check_origin(origin)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address.

    Args:
        host: Name or IP address.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_origin(origin: str) -> None:
    if origin != "*" and not re.fullmatch(r"https?://[^/?#\s]+", origin):
        raise OptionError(f"origin '{origin}' is none; expected something like https://example.com, or *")
