"""The server's log: lines for people, or JSON objects for machines. No audio and no text of anybody."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

LOG_FORMATS = ("text", "json")
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


def configure_logs(log_format: str) -> None:
    """Log to standard error.

    Args:
        log_format: One of :data:`LOG_FORMATS`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger("websockets").setLevel(logging.WARNING)
