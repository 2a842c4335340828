"""Days and ids: a day is a range of UUIDv7, to the millisecond."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from flywheel.days import bounds, day_of, partition, today
from flywheel.ids import uuid7


@given(st.dates(min_value=date(1970, 1, 1), max_value=date(9000, 1, 1)), st.integers(0, 86_399_999), st.randoms())
def test_every_moment_of_a_day_lies_within_its_bounds(day: date, millisecond: int, random: object) -> None:
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(milliseconds=millisecond)
    milliseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    minted = UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | millisecond)
    first, after = bounds(day)
    assert first <= minted < after
    assert day_of(minted) == day
    assert bounds(day + timedelta(days=1))[0] == after


def test_an_id_minted_now_is_of_today() -> None:
    before = today()
    assert before <= (day_of(uuid7()) or date.min) <= today()


def test_ids_of_other_versions_and_of_impossible_times_are_of_no_day() -> None:
    assert day_of(uuid.uuid4()) is None
    assert day_of(uuid.uuid1()) is None
    assert day_of(UUID(int=(2**48 - 1) << 80 | 7 << 76)) is None


def test_the_name_of_a_partition_sorts_as_its_day() -> None:
    assert partition(date(2026, 1, 2)) == "events_20260102"
