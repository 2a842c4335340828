"""Where a consumer's time goes: one thing at a time, added up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flywheel import metrics


class Stopwatch:
    """Counts the seconds that a topic's consumer spends on each thing; of nested ones the innermost counts.

    :meth:`flush` now and then, so that what lasts shows while it lasts.
    """

    def __init__(self, topic: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._topic = topic
        self._clock = clock
        self._what: str | None = None
        self._since = clock()

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the time within as spent on this."""
        outer = self._what
        self._turn(what)
        try:
            yield
        finally:
            self._turn(outer)

    def flush(self) -> None:
        """Add what has passed since the last turn."""
        self._turn(self._what)

    def _turn(self, what: str | None) -> None:
        now = self._clock()
        if self._what is not None:
            metrics.BLOCKED.labels(self._topic, self._what).inc(max(0.0, now - self._since))
        self._what, self._since = what, now
