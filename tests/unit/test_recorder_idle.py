"""How long a scenario may be silent: the most specific pattern comes first, and wildcards are only * and ?."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from flywheel.settings import RecorderSettings
from services.recorder.idle import IdleRules


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
