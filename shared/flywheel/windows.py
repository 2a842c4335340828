"""Windows: a window is the UTC hour in which a trajectory *started*, written ``2026-11-23T04``."""

from __future__ import annotations

from datetime import UTC, datetime

#: Times beyond are a broken clock's, and what reads them (nanoseconds in 64 bits, year 1 minus an offset) breaks too.
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)

_FORMAT = "%Y-%m-%dT%H"


def window_of(started: datetime) -> str:
    """Return the window id of a trajectory that started at ``started``.

    Raises ValueError for a time without an offset: local time is how windows go wrong.
    """
    if started.tzinfo is None:
        raise ValueError("a window needs a time with a UTC offset")
    return started.astimezone(UTC).strftime(_FORMAT)
