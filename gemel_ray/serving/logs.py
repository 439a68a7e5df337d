"""One JSON object a line: what was asked, how it ended, and the root cause of what failed. No text and no
picture of a request is ever written."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

NAME = "gemel_ray.serving"
log = logging.getLogger(NAME)


class AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def start() -> None:
    """JSON lines to standard error, once a process."""
    if log.handlers:
        return
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(AsJson())
    log.addHandler(stream)
    log.setLevel(logging.INFO)
    log.propagate = False


def told(level: int, message: str, cause: BaseException | None = None, **fields: object) -> None:
    """One line."""
    log.log(level, message, exc_info=cause, extra={"fields": fields})
