"""Logging for every process: one JSON object a line, or readable lines for a person."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

FIELDS = ("job_id", "request_id", "runner_id", "step", "target", "code", "seconds", "status")


class JsonFormatter(logging.Formatter):
    """One JSON object per record; fields given by `extra=` under their own names."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {
            name: value for name in FIELDS if (value := getattr(record, name, None)) is not None
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def logs_json() -> bool:
    """Return whether this process logs for a machine to read."""
    return any(isinstance(each.formatter, JsonFormatter) for each in logging.getLogger().handlers)


def configure_logging(style: Literal["json", "text"] = "text", level: str = "INFO") -> None:
    """Send every log record of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if style == "json" else plain)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpx2", "httpcore", "openai", "aiosqlite", "alembic"):
        logging.getLogger(noisy).setLevel("WARNING")
