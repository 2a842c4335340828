"""Keeps a library from repeating itself in the logs, while what it complains of lasts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

AGAIN_S: Final = 60.0

#: Different messages that are told apart: a library's own texts, a bounded number.
_KNOWN = 200


class Sparing(logging.Filter):
    """Lets a message (its text before its values are filled in) through once in ``AGAIN_S`` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this one is written."""
        if record.levelno < logging.WARNING:
            return True
        now, text = self._clock(), str(record.msg)
        last, kept_back = self._said.get(text, (None, 0))
        if last is not None and now - last < AGAIN_S:
            self._said[text] = (last, kept_back + 1)
            return False
        if kept_back:
            record.msg, record.args = f"{record.getMessage()} ({kept_back} more like this since)", None
        if len(self._said) >= _KNOWN:
            self._said.clear()
        self._said[text] = (now, 0)
        return True


def spare(names: Iterable[str]) -> None:
    """Have these loggers speak this way; once, however often it is called."""
    for name in names:
        logger = logging.getLogger(name)
        if not any(isinstance(known, Sparing) for known in logger.filters):
            logger.addFilter(Sparing())
