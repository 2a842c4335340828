"""Which day an event belongs to. Pure.

Ids are UUIDv7 (RFC 9562): the first 48 bits are milliseconds since 1970, so a day is a range of ids. Ids of another
version belong to no day. Days are UTC; they are the source's, by the clock that minted the id.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

_TIME_SHIFT = 80
_VERSION_7 = 7
_DAY = timedelta(days=1)


def day_of(event_id: UUID) -> date | None:
    """Return the UTC day in which the id was minted; None where the id does not say, or says an impossible one."""
    if event_id.int >> 76 & 0xF != _VERSION_7:
        return None
    try:
        return datetime.fromtimestamp((event_id.int >> _TIME_SHIFT) / 1000, UTC).date()
    except (OverflowError, ValueError, OSError):
        return None


def bounds(day: date) -> tuple[UUID, UUID]:
    """Return the first id of the day and the first id after it."""
    return _first(day), _first(day + _DAY)


def partition(day: date) -> str:
    """Return the name of the day's table."""
    return f"events_{day:%Y%m%d}"


def today() -> date:
    """Return the UTC day it is."""
    return datetime.now(UTC).date()


def _first(day: date) -> UUID:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return UUID(int=round(midnight.timestamp() * 1000) << _TIME_SHIFT)
