"""The server's log: lines for people, or JSON objects for machines. No audio and no text of anybody."""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from logging.handlers import QueueHandler
from typing import Any

LOG_FORMATS = ("text", "json")
_STDERR = 2
_MAX_BACKLOG = 10_000  # records that wait to be written; beyond it they are dropped
_LAST_LINES_S, _POLL_S = 2.0, 0.01
_FIELDS = ("session", "key", "cause", "audio_s")  # what a record's ``extra`` may hold


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and the session if it concerns one."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record.

        Args:
            record: Any logger's.
        """
        at = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Backlog(QueueHandler):
    """Lets a thread write records: a pipe that nobody reads must not stop the event loop.

    The thread writes to the descriptor itself, so that a write that never returns holds no lock which the
    end of the process needs.
    """

    def __init__(self, formatter: logging.Formatter) -> None:
        """Begin to write.

        Args:
            formatter: Of the lines.
        """
        self._records: queue.Queue[logging.LogRecord] = queue.Queue(_MAX_BACKLOG)
        super().__init__(self._records)
        self._lines = formatter
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Leave the record as it is; the thread formats it.

        Args:
            record: Of arguments that do not change.
        """
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Keep the record, unless too many wait already.

        Args:
            record: Prepared.
        """
        with suppress(queue.Full):
            self._records.put_nowait(record)

    def drain(self) -> None:
        """Give the thread a moment for what is left."""
        give_up_at = time.monotonic() + _LAST_LINES_S
        while self._records.unfinished_tasks and time.monotonic() < give_up_at:
            time.sleep(_POLL_S)

    def _write(self) -> None:
        while True:
            record = self._records.get()
            with suppress(Exception):  # a line that cannot be written has nobody to be told to
                data = f"{self._lines.format(record)}\n".encode(errors="replace")
                while data:
                    data = data[os.write(_STDERR, data) :]
            self._records.task_done()


def configure_logs(log_format: str) -> None:
    """Log to standard error.

    Args:
        log_format: One of :data:`LOG_FORMATS`.
    """
    if logging.getLogger().hasHandlers():  # whoever embeds the server logs in their own way
        return
    lines = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    backlog = Backlog(JsonFormatter() if log_format == "json" else lines)
    atexit.register(backlog.drain)
    logging.basicConfig(handlers=[backlog], level=logging.INFO)
    logging.getLogger("websockets").setLevel(logging.WARNING)
