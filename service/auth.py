"""Who may connect: bearer tokens from a file, and the origins of web pages."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from asr.errors import OptionError

ANYBODY = "anybody"  # the key of all clients where no tokens are asked for


class Tokens:
    """The tokens of a file: one a line, blank lines and lines that begin with # left out."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Args:
            path: Read again by :meth:`reload`.

        Raises:
            OptionError: The file cannot be read or has no token.
        """
        self._path = path
        self.reload()

    def reload(self) -> None:
        """Read the file again; on an error the tokens stay as they were.

        Raises:
            OptionError: As when it was first read.
        """
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise OptionError(f"token file {self._path} cannot be read: {reason}") from error
        stripped = (line.strip() for line in lines)
        tokens = [line.encode() for line in stripped if line and not line.startswith("#")]
        if not tokens:
            raise OptionError(f"token file {self._path} has no token; write one on a line of its own")
        self._tokens = tokens

    def accept(self, token: str) -> bool:
        """Tell whether a token is one of the file's, in a time that does not tell how much of it is right.

        Args:
            token: What a client gave.
        """
        given = token.encode(errors="replace")
        matches = [hmac.compare_digest(given, each) for each in self._tokens]
        return any(matches)

    def key_of(self, tokens: Iterable[str]) -> str | None:
        """Name the first token that is accepted, in a way that does not give it away.

        Args:
            tokens: What a client gave.

        Returns:
            The start of its SHA-256, the same as long as the token is; None if none is accepted.
        """
        accepted = next((token for token in tokens if self.accept(token)), None)
        return hashlib.sha256(accepted.encode()).hexdigest()[:12] if accepted is not None else None


def is_allowed_origin(origin: str, *, host: str, allowed: Iterable[str]) -> bool:
    """Tell whether a web page may connect; other programs send no origin.

    Without this check any page in a user's browser could use a server on the user's own machine.

    Args:
        origin: The request's Origin header, empty if it has none.
        host: Its Host header: the server's own pages come from there.
        allowed: Other origins, or ``*`` for all.
    """
    if not origin or "*" in allowed:
        return True
    is_own = origin.lower().partition("://")[2] == host.lower()
    return is_own or origin.lower() in (each.lower() for each in allowed)
