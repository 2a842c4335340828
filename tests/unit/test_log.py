"""What happens often is logged seldom."""

from __future__ import annotations

import pytest

from flywheel import log
from flywheel.log import Seldom


def test_what_happens_all_the_time_is_due_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    seldom = Seldom(60.0)
    assert [seldom.due() for _ in range(3)] == [True, False, False]
    now = 64.9
    assert not seldom.due()
    now = 65.0
    assert [seldom.due() for _ in range(2)] == [True, False]
