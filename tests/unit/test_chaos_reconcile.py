"""The books of a storm: exact when all is well, and nothing that goes wrong is overlooked, or called something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.late import plan, values
from tests.chaos.ledger import Entry, Ledger, read_ledger
from tests.chaos.reconcile import DeadLetter, EventRow, Evidence, TrajectoryRow, Verdict, reconcile, tallies
from tests.chaos.traffic import Recipe, sendings

START = datetime(2026, 11, 23, 4, 0, tzinfo=UTC)
SENT = [s.entry for s in sendings(Recipe(seed=3, producer=0, start=START, events=1500, conflicts=0.02, poison=0.02))]


class Found(NamedTuple):
    """Evidence that can be tampered with."""

    events: list[EventRow]
    trajectories: list[TrajectoryRow]
    dead: list[DeadLetter]
    announced: dict[str, set[int]]


def perfect(sent: list[Entry]) -> Found:
    """What a faultless recorder leaves."""
    good = {entry.name: entry for entry in sent if not entry.reason}
    expected = tallies(good.values())
    return Found(
        [EventRow(name, e.sha256, e.trajectory_id, e.seq) for name, e in good.items()],
        [TrajectoryRow(trajectory_id, 1, tally) for trajectory_id, tally in expected.items()],
        [DeadLetter(e.name, e.reason, e.sha256) for e in {e.name: e for e in sent if e.reason}.values()],
        {trajectory_id: {1} for trajectory_id in expected},
    )


def judge(found: Found) -> Verdict:
    return reconcile(SENT, Evidence(*found))


def test_a_faultless_recorder_is_found_faultless() -> None:
    verdict = judge(perfect(SENT))
    assert verdict.ok
    assert (verdict.lost, verdict.twice, verdict.dead_again) == (0, 0, 0)
    assert verdict.sent == verdict.recorded == sum(entry.what == "event" for entry in SENT)
    assert verdict.dead == verdict.injected
    assert set(verdict.injected) >= {"conflict", "not_json", "nul", "no_value", "too_large"}


def test_a_dead_letter_may_come_again_and_is_counted_once() -> None:
    found = perfect(SENT)
    found.dead.append(found.dead[0])
    verdict = judge(found)
    assert verdict.ok
    assert verdict.dead_again == 1
    assert verdict.dead == verdict.injected


def _recount(found: Found, **change: int) -> None:
    row = found.trajectories[0]
    tally = replace(row.tally, **{name: getattr(row.tally, name) + by for name, by in change.items()})
    found.trajectories[0] = replace(row, tally=tally)


TAMPERED: dict[str, Callable[[Found], object]] = {
    "lost": lambda f: f.events.pop(),
    "stored twice": lambda f: f.events.append(f.events[5]),
    "seq stored twice": lambda f: f.events.append(replace(f.events[5], event_id="another")),
    "stored but never sent": lambda f: f.events.append(EventRow("another", "", "t", 0)),
    "stored with other contents": lambda f: f.events.append(replace(f.events.pop(), sha256="other")),
    "lost before the dead letters": lambda f: f.dead.pop(),
    "dead but good": lambda f: f.dead.append(DeadLetter(None, "schema", "digest")),
    "dead for another reason": lambda f: f.dead.append(replace(f.dead.pop(), reason="bug")),
    "dead with other contents": lambda f: f.dead.append(replace(f.dead.pop(), sha256="other")),
    "trajectory lost": lambda f: f.announced.pop(f.trajectories.pop().trajectory_id),
    "trajectory stored twice": lambda f: f.trajectories.append(f.trajectories[0]),
    "trajectory never sent": lambda f: f.trajectories.append(replace(f.trajectories[0], trajectory_id="t", revision=0)),
    "counted twice": lambda f: _recount(f, events=1),
    "trajectory with other figures": lambda f: _recount(f, steps=-1),
    "final revision not announced": lambda f: f.announced.pop(f.trajectories[0].trajectory_id),
    "announced a revision that is not stored": lambda f: f.announced[f.trajectories[0].trajectory_id].add(2),
    "announced but not stored": lambda f: f.announced.update(nobody={1}),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_whatever_is_wrong_is_found_under_its_name(what: str) -> None:
    found = perfect(SENT)
    TAMPERED[what](found)
    verdict = judge(found)
    assert not verdict.ok
    assert what in verdict.examples()


@given(lost=st.sets(st.integers(0, 1400), max_size=30), again=st.sets(st.integers(0, 1400), max_size=30))
@settings(max_examples=25, deadline=None)
def test_lost_and_twice_are_exactly_as_many_as_there_are(lost: set[int], again: set[int]) -> None:
    found = perfect(SENT)
    kept = [row for n, row in enumerate(found.events) if n not in lost]
    doubled = [found.events[n] for n in again - lost]
    verdict = judge(found._replace(events=kept + doubled))
    assert (verdict.lost, verdict.twice) == (len(lost), len(again - lost))
    assert verdict.ok == (not lost and not again)


def test_what_was_never_acknowledged_is_not_missed() -> None:
    unacknowledged = SENT[-1].name
    found = perfect([entry for entry in SENT if entry.name != unacknowledged])
    acknowledged = [entry for entry in SENT if entry.name != unacknowledged]
    assert reconcile(acknowledged, Evidence(*found)).ok


def test_a_ledger_reads_back_what_was_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.tsv")
    for entry in SENT:
        ledger.acknowledged(entry)
    ledger.close()
    assert list(read_ledger(tmp_path / "ledger.tsv")) == SENT


def test_late_rewards_are_expected_of_every_step_and_a_missing_or_doubled_one_is_found() -> None:
    late = values(outcome for outcomes in plan(seed=3, rounds=40) for outcome in outcomes)
    good = [entry for entry in SENT if not entry.reason]
    expected = tallies({entry.name: entry for entry in good}.values(), late)
    assert any(tally.outcome_count > tally.steps for tally in expected.values())
    found = perfect(SENT)
    rows = [TrajectoryRow(trajectory_id, 1, tally) for trajectory_id, tally in expected.items()]
    assert reconcile(SENT, Evidence(*found._replace(trajectories=rows)), late).ok
    victim = next(n for n, row in enumerate(rows) if row.tally.outcome_count)
    for changes, name in (
        ({"outcome_count": rows[victim].tally.outcome_count + 1}, "counted twice"),
        ({"outcome_sum": 99.0}, "trajectory with other figures"),
        ({"outcome_count": 0}, "trajectory with other figures"),
    ):
        spoilt = [*rows]
        spoilt[victim] = replace(rows[victim], tally=replace(rows[victim].tally, **changes))
        verdict = reconcile(SENT, Evidence(*found._replace(trajectories=spoilt)), late)
        assert verdict.wrong[name]
