"""When a day's time is over. Pure."""

from __future__ import annotations

import pytest

from flywheel.days import today
from flywheel.settings import ArchiverSettings
from flywheel.storage import days
from services.archiver.days import overdue
from tests.support.days import days_ago


def test_a_day_is_overdue_once_its_youngest_event_is() -> None:
    def known(ago: int, state: str = "open") -> days.Day:
        return days.Day(days_ago(ago), state, *(None,) * 9)

    listed = [known(40, "dropped"), known(33, "sealed"), known(31), known(30), known(-1)]
    assert [day.day for day in overdue(listed, 30, today())] == [days_ago(33), days_ago(31)]
    assert overdue(listed, None, today()) == []


def test_retention_below_that_of_the_topic_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"must be more than 7 days: flywheel.events is kept for so long"):
        ArchiverSettings(retention_days=7)
    assert ArchiverSettings(retention_days=8).retention_days == 8
