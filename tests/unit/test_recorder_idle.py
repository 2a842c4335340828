"""How long a scenario may be silent: the most specific pattern comes first, and wildcards are only * and ?."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from flywheel.settings import RecorderSettings
from services.recorder.idle import Horizon, IdleRules


def test_the_most_specific_pattern_comes_first() -> None:
    rules = IdleRules(
        900, {"*": 1, "market-*": 2, "market-?": 3, "market-7": 4, "*-fast": 5, "a*b*cdefg": 6, "abcdefg*": 7}
    )
    patterns, seconds = rules.ranked()
    assert patterns == ["market-7", "abcdefg%", "market-%", "market-_", "a%b%cdefg", "%-fast", "%"]
    assert seconds == [4, 7, 2, 3, 6, 5, 1]
    assert rules.shortest_s == 1


def test_without_rules_there_is_only_the_default() -> None:
    assert IdleRules(900).ranked() == ([], [])
    assert IdleRules(900).shortest_s == 900


def test_what_sql_takes_for_a_wildcard_is_meant_as_it_is() -> None:
    assert IdleRules(1, {r"100%_\*": 2}).ranked()[0] == [r"100\%\_\\%"]


def test_the_setting_is_json_and_no_silence_is_too_short_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_RECORDER_IDLE_CLOSE_BY_SCENARIO", '{"market-*": 30, "chess": 2.5}')
    assert RecorderSettings.load().idle_close_by_scenario == {"market-*": 30, "chess": 2.5}
    with pytest.raises(ValidationError):
        RecorderSettings(idle_close_by_scenario={"market-*": 0})


def test_the_horizon_is_the_last_look_whose_ends_are_stored_everywhere() -> None:
    horizon = Horizon()
    assert horizon.look(1.0, {0: 5, 1: 3}, {0: 5, 1: 2}) is None
    assert horizon.look(2.0, {0: 9, 1: 3}, {0: 8, 1: 3}) == 1.0
    assert horizon.look(3.0, {0: 9, 1: 4}, {0: 8, 1: 4}) == 1.0
    assert horizon.look(4.0, {0: 99, 1: 4}, {0: 50, 1: 4}) == 3.0  # never caught up, and yet it moves


def test_the_horizon_stays_while_one_partition_is_stuck_and_takes_no_more_room() -> None:
    horizon = Horizon()
    assert horizon.look(0.0, {0: 1, 1: 1}, {0: 1, 1: 1}) == 0.0
    for second in range(1, 5_000):
        assert horizon.look(second, {0: second, 1: 2}, {0: second, 1: 1}) == 0.0
    assert len(horizon._looks) <= 1_000
    assert horizon.look(5_000, {0: 5_000, 1: 2}, {0: 5_000, 1: 2}) == 1_000.0


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e12, 0, -1])
def test_a_silence_that_no_clock_can_reckon_with_is_refused_at_the_start(seconds: float) -> None:
    with pytest.raises(ValidationError):
        RecorderSettings(idle_close_s=seconds)
    with pytest.raises(ValidationError):
        RecorderSettings(idle_close_by_scenario={"never-*": seconds})
