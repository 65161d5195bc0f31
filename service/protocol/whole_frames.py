"""Uncompressed audio of clients that cut it anywhere: samples are put together again."""

from __future__ import annotations


class WholeFrames:
    """Cuts a byte stream at the ends of sample frames."""

    def __init__(self, bytes_per_frame: int | None) -> None:
        """Start without bytes.

        Args:
            bytes_per_frame: Bytes of one sample of every channel; None where any byte is one.
        """
        self._size = bytes_per_frame or 1
        self._rest = b""

    def add(self, data: bytes) -> bytes:
        """Take the next bytes.

        Args:
            data: Any number of them.

        Returns:
            Whole sample frames; what is left over comes with the next call.
        """
        data = self._rest + data
        n_whole = len(data) - len(data) % self._size
        self._rest = data[n_whole:]
        return data[:n_whole]
