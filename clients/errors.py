"""What can go wrong between a client and a server.

ForesoundError
└── StreamingError            the stream to a server failed
    ├── UnreachableError      no connection could be opened
    ├── ConnectionLostError   an open stream lost its connection and could not get it back
    └── ServerError           the server refused the stream or ended it; ``code`` says why
"""

from __future__ import annotations

from asr.errors import ForesoundError


class StreamingError(ForesoundError):
    """A stream to a server failed; its text says what happened and what to do."""


class UnreachableError(StreamingError):
    """No connection to the server could be opened."""


class ConnectionLostError(StreamingError):
    """The connection was lost and could not be opened again in time."""


class ServerError(StreamingError):
    """The server refused the stream or ended it.

    Attributes:
        code: The protocol's code such as ``invalid_field`` or ``idle_timeout``, ``http_503`` where the
            server refused the connection, or ``bad_message`` where it broke the protocol.
        fatal: The server ended the stream; otherwise it ignored one message.
        field: The field that was wrong, if one was.
    """

    def __init__(self, message: str, *, code: str, fatal: bool = True, field: str | None = None) -> None:
        """Make an error.

        Args:
            message: What was wrong and what to do.
            code: See above.
            fatal: See above.
            field: See above.
        """
        super().__init__(message)
        self.code = code
        self.fatal = fatal
        self.field = field
