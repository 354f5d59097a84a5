"""What a coordinator and a site say, for machines: one JSON object a line, by the standard library's logging.

```json
{"time": "2026-11-22T13:05:09.120Z", "level": "info", "event": "round", "message": "round 3/8", "job": "hearts", "round": 3}
```

`time`, `level`, `event` and `message` are always there, and rounds count from 1 as in what people are shown. What a network may
have written is escaped: a line is ASCII and never more than one.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

_NAME = "atoll"


class Lines(logging.Formatter):
    """A record as a line of JSON. Fields come from `tell`; what other packages log has the logger's name as its event.

    >>> record = logging.makeLogRecord(
    ...     {"name": "grpc", "msg": "lost %s", "args": ("it",), "levelname": "WARNING", "created": 0.0}
    ... )
    >>> Lines().format(record)
    '{"time": "1970-01-01T00:00:00.000Z", "level": "warning", "event": "grpc", "message": "lost it"}'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Without an end of line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said: dict[str, Any] = {"time": at, "level": record.levelname.lower()}
        said["event"] = getattr(record, "event", record.name)
        said["message"] = record.getMessage()
        said |= getattr(record, "fields", {})
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(_plain(said), default=str, allow_nan=False)


def _plain(value: Any) -> Any:
    """Without NaN and infinity, of which JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value


def begin(stream: TextIO | None = None) -> None:
    """From here on everything that is logged, and every warning, goes to `stream` (standard output) as JSON."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # of other packages
    logging.getLogger(_NAME).setLevel(logging.INFO)
    logging.captureWarnings(True)


def begun() -> bool:
    """This process logs as JSON."""
    return any(isinstance(handler.formatter, Lines) for handler in logging.getLogger().handlers)


def tell(event: str, message: str, level: str = "info", **fields: Any) -> None:
    """Log what happened; fields that are None are left out."""
    known = {name: value for name, value in fields.items() if value is not None}
    logging.getLogger(_NAME).log(getattr(logging, level.upper()), "%s", message, extra={"event": event, "fields": known})
