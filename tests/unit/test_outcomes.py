"""The contract of outcomes, which of several holds, and sums that are exact."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.errors import PoisonError
from flywheel.exact import exact_sum, rounded_sum
from flywheel.outcomes import Outcome
from flywheel.stream.record import Record
from flywheel.topics import OUTCOMES
from services.recorder.ledger.cache import OutcomeCache
from services.recorder.outcomes.decode import Decoded, choose, decode

GOOD: dict[str, Any] = {
    "outcome_id": "01936a2b-0000-7000-8000-000000000000", "scenario_id": "market-1", "subject": "m-7",
    "source": "exchange", "time": "2026-11-25T12:00:00Z", "facts": {"resolved": "yes"},
    "rules": [{"action": "buy", "parameters": {"market": "m-7"}, "value": 1}],
}  # fmt: skip


def raw(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in {**GOOD, **changes}.items() if value is not ...}).encode()


def decoded(offset: int = 0, **changes: Any) -> Decoded:
    return decode(Record(OUTCOMES.name, 0, offset, None, raw(**changes), (), 0))


def test_an_outcome_reads_and_is_written_as_it_was() -> None:
    outcome = Outcome.parse(raw(facts={"note": None}))
    assert outcome.about == ("scenario", "market-1", "m-7", "outcome", "exchange")
    assert Outcome.parse(outcome.dump()) == outcome


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"window_id": "2026-11-23T04"}, "schema"),
        ({"scenario_id": ...}, "schema"),
        ({"scenario_id": ..., "window_id": "2026-11-23 04"}, "schema"),
        ({"outcome_id": ...}, "schema"),
        ({"time": ...}, "schema"),
        ({"time": "2026-11-25T12:00:00"}, "schema"),
        ({"source": ...}, "schema"),
        ({"revision": 0}, "schema"),
        ({"revision": "2"}, "schema"),
        ({"rules": [{"action": "buy"}]}, "schema"),
        ({"rules": [{"action": "buy", "value": "1"}]}, "schema"),
        ({"rules": [{"action": "buy", "value": True}]}, "schema"),
        ({"rules": [{"actoin": "buy", "value": 1}]}, "schema"),
        ({"rule": []}, "schema"),
        ({"rules": [{"value": 1, "new": 1}], "schema_version": 2}, "newer_schema"),
        ({"rules": [{"value": math.nan}]}, "schema"),
        ({"facts": {"price": math.inf}}, "not_json"),
        ({"facts": {"text": "\0"}}, "nul"),
        ({"rules": [{"value": 1, "parameters": {"\0": 1}}]}, "nul"),
        ({"facts": {"text": "x" * 256 * 2**10}}, "too_large"),
        ({"rules": [{"value": 1}] * 1001}, "schema"),
    ],
)
def test_what_is_no_outcome_is_refused_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PoisonError) as caught:
        decoded(**changes)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("value", "reason"), [(None, "no_value"), (b"{", "not_json"), (b"[]", "schema")])
def test_bytes_that_are_none_are_refused(value: bytes | None, reason: str) -> None:
    with pytest.raises(PoisonError) as caught:
        decode(Record(OUTCOMES.name, 0, 0, None, value, (), 0))
    assert caught.value.reason == reason


def test_the_largest_that_is_allowed_is_read() -> None:
    at_most = 256 * 2**10 - len(raw(facts={"text": ""}))
    assert decoded(facts={"text": "x" * at_most}).outcome.facts
    assert len(decoded(rules=[{"value": 1}] * 1000).outcome.rules) == 1000


def test_outcomes_that_were_read_are_kept_within_bounds_the_last_that_were_asked_for() -> None:
    bodies = [raw(subject=f"m-{n}", facts={"text": "x" * 1000}).decode() for n in range(100)]
    cache = OutcomeCache(100_000)
    for body in bodies:
        again = cache.read(body)
        assert cache.read(body) is again is not None
        cache.read(bodies[0])
        assert cache.taken <= 100_000
    first = cache.read(bodies[0])
    assert cache.read(bodies[0]) is first
    assert first is not None and first.about == decoded(subject="m-0").about
    large = OutcomeCache(10)
    assert large.read(bodies[0]) and large.taken == 0


def test_what_a_newer_release_stored_is_known_not_to_be_readable() -> None:
    body = raw(schema_version=2, weight=1).decode()
    cache = OutcomeCache(100_000)
    assert cache.read(body) is None
    assert cache.read(body) is None and cache.taken > 0


def test_a_backslash_before_u0000_is_no_nul() -> None:
    assert decoded(facts={"text": "\\u0000"}).outcome.facts == {"text": "\\u0000"}


def test_a_higher_revision_replaces_an_older_one_is_overtaken_the_same_is_a_duplicate() -> None:
    batch = [decoded(1, revision=2), decoded(2, revision=1, rules=[]), decoded(3, revision=2), decoded(4, revision=3)]
    choice = choose(batch, {})
    assert list(choice.newest.values()) == [batch[3]]
    assert choice.counts == {"new": 1, "overtaken": 1, "duplicate": 1, "correction": 1}
    again = choose(batch, {one.about: (one.outcome.revision, one.digest) for one in choice.newest.values()})
    assert (again.newest, again.counts) == ({}, {"overtaken": 3, "duplicate": 1})


def test_the_same_revision_with_other_contents_is_a_conflict_and_the_first_holds() -> None:
    batch = [decoded(1), decoded(2, rules=[]), decoded(3, outcome_id="01936a2b-0001-7000-8000-000000000000")]
    choice = choose(batch, {})
    assert {at: why.reason for at, why in choice.reasons.items()} == {(0, 2): "conflict"}
    assert choice.counts == {"new": 1, "duplicate": 1}


def test_a_retraction_is_a_revision_like_others() -> None:
    choice = choose([decoded(1), decoded(2, revision=2, retracted=True)], {})
    assert [one.outcome.retracted for one in choice.newest.values()] == [True]
    assert choice.counts == {"new": 1, "retraction": 1}


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=12), st.randoms())
def test_sums_are_exact_and_rounded_once_whatever_the_order(values: list[float], chance: Any) -> None:
    exact = sum(map(Fraction, values), Fraction(0))
    mixed = chance.sample(values, len(values))
    assert Fraction(exact_sum(mixed)) == exact
    try:
        want = float(exact)
    except OverflowError:
        want = math.inf if exact > 0 else -math.inf
    assert rounded_sum(mixed) == want
