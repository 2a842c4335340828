"""Recorders of two releases on one database: outcomes that only the newer can read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from flywheel.events import Step
from flywheel.outcomes import Outcome, Rule
from flywheel.storage.postgres import connect
from services.recorder.store import prepare
from tests.support.judged import Transactions, outcome, played
from tests.support.recording import envelope
from tests.support.world import unique

pytestmark = pytest.mark.stack


@pytest_asyncio.fixture
async def recorder(database: str) -> AsyncIterator[Transactions]:
    async with await connect(database, init=prepare) as pool:
        yield Transactions(pool)


async def newer(recorder: Transactions, one: Outcome) -> None:
    """Store an outcome as a recorder of the next release would."""
    await recorder.publish([one])
    new = json.dumps({**json.loads(one.dump()), "schema_version": 2, "weight": 0.5})
    await recorder.pool.execute("UPDATE outcomes SET body = $1 WHERE key = $2", new, one.key)


async def queued(recorder: Transactions, key: str) -> int:
    return await recorder.pool.fetchval("SELECT count(*) FROM outcome_work WHERE key = $1", key)


async def test_events_are_stored_beside_an_outcome_that_only_a_newer_release_can_read(recorder: Transactions) -> None:
    known, new, scenario = unique("t"), unique("t"), unique("s")
    await recorder.store(played(known, scenario, reward=0.5))
    await recorder.publish([outcome(Rule(value=1.0), scenario_id=scenario)])
    await recorder.apply()
    await newer(recorder, outcome(Rule(value=9.0), scenario_id=scenario, revision=2))
    await recorder.pool.execute("DELETE FROM outcome_work")
    await recorder.store([Step(**envelope(known, 9), step=9, reward=0.5)])
    await recorder.store(played(new, scenario))
    assert (await recorder.row(known))["total_reward"] == 5.0  # the entries are as they were, the step is there
    assert (await recorder.row(new))["total_reward"] is None
    assert await queued(recorder, scenario) == 1  # once

    await recorder.pool.execute(  # the upgrade
        "UPDATE outcomes SET body = $1 WHERE key = $2",
        outcome(Rule(value=9.0), scenario_id=scenario, revision=2).dump().decode(), scenario,
    )  # fmt: skip
    await recorder.apply()
    assert [(await recorder.row(name))["total_reward"] for name in (known, new)] == [38.0, 27.0]


async def test_what_is_queued_for_an_upgraded_recorder_is_not_taken_for_granted_while_that_is_at_it(
    recorder: Transactions,
) -> None:
    scenario = unique("s")
    await newer(recorder, outcome(Rule(value=1.0), scenario_id=scenario))
    async with recorder.pool.acquire() as conn, conn.transaction():
        assert await conn.fetchrow("SELECT 1 FROM outcome_work WHERE key = $1 FOR UPDATE", scenario)
        await recorder.store(played(unique("t"), scenario))  # it may have looked for trajectories a moment ago
    assert await queued(recorder, scenario) == 2
    await recorder.pool.execute("DELETE FROM outcome_work")


async def test_an_outcome_that_cannot_be_read_waits_and_others_are_applied(
    recorder: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, scenarios = [unique("t"), unique("t")], [unique("s"), unique("s")]
    for name, scenario in zip(names, scenarios, strict=True):
        await recorder.store(played(name, scenario))
    await newer(recorder, outcome(Rule(value=1.0), scenario_id=scenarios[0]))
    await recorder.publish([outcome(Rule(value=1.0), scenario_id=scenarios[1])])
    assert [message.trajectory_id for message in await recorder.apply()] == [names[1]]
    assert await recorder.outcomes.apply_some() is None  # it is not tried again at once
    assert await queued(recorder, scenarios[0]) == 1
    await recorder.publish([outcome(Rule(value=2.0), scenario_id=scenarios[0], revision=2)])
    assert [message.total_reward for message in await recorder.apply()] == [6.0]
    assert await queued(recorder, scenarios[0]) == 0


async def test_a_walk_leaves_trajectories_that_another_outcome_concerns_which_cannot_be_read(
    recorder: Transactions,
) -> None:
    name, scenario = unique("t"), unique("s")
    await recorder.store(played(name, scenario))
    window = (await recorder.row(name))["window_id"]
    await newer(recorder, outcome(Rule(value=1.0), window_id=window))
    await recorder.pool.execute("DELETE FROM outcome_work")
    try:
        await recorder.publish([outcome(Rule(value=1.0), scenario_id=scenario)])
        assert await recorder.apply() == []
        assert (await queued(recorder, scenario), await queued(recorder, window)) == (0, 1)
    finally:
        await recorder.pool.execute("DELETE FROM outcomes WHERE key = $1", window)
        await recorder.pool.execute("DELETE FROM outcome_work")
