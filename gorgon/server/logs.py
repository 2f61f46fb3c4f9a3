"""Log lines with the id of the request that they belong to, as text or as JSON.

No line holds prompt or answer unless ``log_prompts`` is on.
"""

from __future__ import annotations

import contextvars
import json
import logging
from typing import Literal

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


class TextFormatter(logging.Formatter):
    """One line to read."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname).1s %(name)s [%(request_id)s]: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        record.request_id = request_id.get()
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": request_id.get(),
        }
        facts = getattr(record, "facts", None)
        line |= {"message": record.getMessage()} if facts is None else {"message": "request"}
        line |= facts or {}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up(form: Literal["text", "json"]) -> None:
    """Use this format for everything that is logged."""
    formatter = JsonFormatter() if form == "json" else TextFormatter()
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)
