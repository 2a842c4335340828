"""Structured logs: one JSON object a line on standard output, with what is bound to the task (trajectory, batch,
version).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from flywheel import tracing

#: Libraries that talk too much; they speak from this level on.
_QUIET = {
    "aiokafka": logging.WARNING,
    "aiohttp.access": logging.WARNING,
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    "asyncio": logging.WARNING,
    "urllib3": logging.WARNING,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
}


def configure(service: str, level: str = "info") -> None:
    """Send every log of this process, the libraries' too, through one JSON renderer. ``level``: debug, info,
    warning, error.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _traced,
        _named(service),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _readable,
            structlog.processors.JSONRenderer(sort_keys=False, default=str),
        ],
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(max(quiet, root.level))


def _named(service: str) -> Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]:
    """Return what puts the service's name on every line: those of the libraries' own threads too."""

    def name(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        line["service"] = service
        return line

    return name


def _traced(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Say in which trace a line was written, where there is one."""
    line.update(tracing.ids())
    return line


def _readable(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put what people look for first at the front of the line."""
    front = {key: line.pop(key) for key in ("timestamp", "level", "service", "event") if key in line}
    return {**front, **line}


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module; events are short phrases, everything that varies is a keyword."""
    return structlog.stdlib.get_logger(name)


bound = structlog.contextvars.bound_contextvars
"""Context manager: binds keywords (trajectory_id, batch_id, version) to every log line of the current task."""


class Seldom:
    """Says when something that happens often may be logged again: once in ``every_s`` seconds."""

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._last: float | None = None

    def due(self) -> bool:
        """Return whether it may be logged now, and take it that it is."""
        now = time.monotonic()
        if self._last is not None and now - self._last < self._every_s:
            return False
        self._last = now
        return True
