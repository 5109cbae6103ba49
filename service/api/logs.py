"""Log lines: JSON objects or plain text, on standard error, never with a request's text in them."""

import logging
import math
import time
from collections.abc import Callable
from logging import LogRecord
from typing import Any, Literal

import orjson

LOGGER = logging.getLogger("understudy")


def log_event(level: int, event: str, **fields: Any) -> None:
    """Log one event with its fields.

    Args:
        level: a level of `logging`.
        event: a short fixed name, such as `student_served`; what varies goes into `fields`.
    """
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, event, extra={"fields": fields})


def log_failure(event: str, error: BaseException, **fields: Any) -> None:
    """Log an unexpected error with its traceback."""
    LOGGER.error(event, exc_info=error, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, event, then the event's fields."""

    def format(self, record: LogRecord) -> str:
        """The line, without its newline."""
        line: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """`time level event field=value …`, for people."""

    def format(self, record: LogRecord) -> str:
        """The line, without its newline, unless a traceback follows."""
        fields = getattr(record, "fields", {})
        words = [_timestamp(record), record.levelname.lower().ljust(7), record.getMessage()]
        words += [f"{name}={_quoted(value)}" for name, value in fields.items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _timestamp(record: LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _quoted(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(character.isspace() for character in text) else text


def log_config(*, level: str, style: Literal["json", "text"]) -> dict[str, Any]:
    """The `logging.config` dictionary for the service and its HTTP server."""
    formatter = {"json": JsonFormatter, "text": TextFormatter}[style]
    ours = {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
    # the HTTP server's own chatter at start and stop is ours to tell
    servers = {"handlers": ["stderr"], "level": "WARNING", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "line"}},
        "loggers": {"understudy": ours, "service": ours, "uvicorn": servers, "asyncio": servers},
    }


class Rationed:
    """An event that may happen thousands of times a second: a line for the first, then one now and then with the count.

    Owner: event loop.
    """

    def __init__(self, event: str, *, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._event = event
        self._every_s = every_s
        self._clock = clock
        self._told: dict[tuple[object, ...], tuple[float, int]] = {}

    def tell(self, level: int, **fields: Any) -> None:
        """It happened; events with other fields are counted apart (their values come from configuration)."""
        key, now = tuple(fields.values()), self._clock()
        since, count = self._told.get(key, (-math.inf, 0))
        if now - since < self._every_s:
            self._told[key] = (since, count + 1)
            return
        self._told[key] = (now, 0)
        log_event(level, self._event, **fields, times=count + 1)
