"""Any interleaving of a trajectory's events and its outcomes, on a real database, gives the same rows."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel.events import Event, Step, TrajectoryEnded, TrajectoryStarted, dump
from flywheel.exact import decimal_text, exact_sum
from flywheel.messages import TrajectoryClosed
from flywheel.outcomes import Outcome, RewardEntry
from flywheel.storage.postgres import connect
from flywheel.storage.rewards import reward_entries
from flywheel.stream.record import Record
from flywheel.topics import EVENTS
from flywheel.trajectory import assemble
from services.recorder.aggregate import aggregate
from services.recorder.decode import decode
from services.recorder.ledger.judging import WHOLE, Judgment
from services.recorder.store import prepare
from tests.support.judged import Transactions
from tests.support.play import deliveries, outcomes, plays
from tests.support.world import unique

pytestmark = pytest.mark.stack

_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module")
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await connect(database, init=prepare)
    yield pool
    await pool.close()


def record(value: bytes) -> Record:
    return Record(EVENTS.name, 0, 0, None, value, (), 0)


def apart(events: list[Event]) -> tuple[list[Event], list[dict[str, str]]]:
    """Move events to scenarios and hours that no other example has; return what outcomes may be about there."""
    number = next(_numbers)
    moved = [
        event.model_copy(
            update={"time": event.time + timedelta(days=number)}
            | ({"scenario_id": f"{event.scenario_id}-{number}"} if isinstance(event, TrajectoryStarted) else {})
        )
        for event in events
    ]
    hours = sorted({event.time.strftime("%Y-%m-%dT%H") for event in moved})
    return moved, [{"scenario_id": f"s-{n}-{number}"} for n in (1, 2)] + [{"window_id": hour} for hour in hours]


def expected(events: list[Event], found: list[Outcome]) -> list[RewardEntry]:
    """What the ledger has to hold, by the set of events and outcomes alone."""
    newest = {one.about: one for one in sorted(found, key=lambda one: one.revision)}
    whole = assemble(events)
    places = (("scenario", whole.scenario_id), ("window", whole.window_id))
    judgment = Judgment(one for about, one in newest.items() if about[:2] in places)
    for event in sorted(events, key=lambda event: (event.seq, event.event_id.int)):
        if isinstance(event, Step):
            judgment.show(event.step, event.action and event.action.model_dump())
    entries = [
        RewardEntry(step=None if key.step == WHOLE else key.step, value=value, **key.about._asdict())
        for key, value in judgment.entries().items()
    ]
    return sorted(entries, key=lambda entry: entry.order)


@given(st.data())
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_any_interleaving_of_events_outcomes_and_applying_gives_the_same_rows(
    pool: asyncpg.Pool, data: st.DataObject
) -> None:
    name, recorder = unique("t"), Transactions(pool)
    events, abouts = apart(data.draw(plays(name)))
    found = data.draw(outcomes(abouts))
    batches: list[tuple[str, list[Any]]] = [("events", batch) for batch in data.draw(deliveries(events))]
    batches += [("outcomes", batch) for batch in data.draw(deliveries(found))]
    batches += [("apply", [])] * data.draw(st.integers(0, 3))
    for what, batch in data.draw(st.permutations(batches)):
        match what:
            case "events":
                await recorder.store(batch)
            case "outcomes":
                await recorder.publish(batch)
            case _:
                await recorder.outcomes.apply_some()
    await recorder.apply()

    row, want = await recorder.row(name), expected(events, found)
    async with pool.acquire() as conn:
        assert (await reward_entries(conn, [name]))[name] == want
    whole = assemble(events, entries=want, revision=row["revision"])
    assert (row["outcome_count"], row["outcome_sum"]) == (len(want), exact_sum(entry.value for entry in want))
    assert row["total_reward"] == whole.total_reward
    (merged,) = aggregate(decode(record(dump(event))).delta for event in events)
    assert (row["reward_sum"], row["reward_count"]) == (Decimal(decimal_text(merged.reward_sum)), merged.reward_count)
    assert (row["scenario_id"], row["window_id"]) == (whole.scenario_id, whole.window_id)
    assert row["status"] == ended(events)
    assert (row["revision"] > 0) == (whole.ended_at is not None)

    # Both topics from the start, once more: nothing changes, nothing is announced.
    announced = await pool.fetchval("SELECT count(*) FROM outbox WHERE key = $1", name)
    await recorder.store(events)
    await recorder.publish(found)
    assert await recorder.apply() == []
    assert await recorder.row(name) == row
    assert await pool.fetchval("SELECT count(*) FROM outbox WHERE key = $1", name) == announced
    last = await pool.fetchrow("SELECT value FROM outbox WHERE key = $1 ORDER BY id DESC LIMIT 1", name)
    if row["revision"]:
        assert last is not None
        message = TrajectoryClosed.parse(last["value"])
        assert (message.revision, message.total_reward) == (row["revision"], row["total_reward"])


def ended(events: list[Event]) -> str:
    ends = [event for event in events if isinstance(event, TrajectoryEnded)]
    return max(ends, key=lambda e: (e.seq, e.event_id.int)).status if ends else "open"
