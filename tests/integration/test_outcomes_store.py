"""Outcomes on a real database: the ledger is what the newest outcomes say of the stored steps, whatever came when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from flywheel import metrics
from flywheel.events import Reward, RewardKind, Step, dump
from flywheel.outcomes import Rule
from flywheel.storage.postgres import connect, transient
from flywheel.stream.positions import Fenced, Move, Rejected
from flywheel.stream.record import Record
from flywheel.topics import EVENTS
from services.recorder import store as event_store
from services.recorder.decode import decode
from services.recorder.ledger import store as ledger_store
from services.recorder.ledger.store import exclude, share
from services.recorder.outcomes import store as outcome_store
from services.recorder.store import prepare
from tests.support.judged import Transactions, outcome, played
from tests.support.recording import envelope
from tests.support.world import unique

pytestmark = pytest.mark.stack


@pytest_asyncio.fixture(scope="module")
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await connect(database, init=prepare)
    yield pool
    await pool.close()


def record(value: bytes) -> Record:
    return Record(EVENTS.name, 0, 0, None, value, (), 0)


@pytest.fixture
def recorder(pool: asyncpg.Pool) -> Transactions:
    return Transactions(pool)


async def test_a_correction_replaces_and_a_retraction_removes(recorder: Transactions) -> None:
    name, scenario = unique("t"), unique("s")
    await recorder.store(played(name, scenario, reward=0.5))
    assert (await recorder.row(name))["total_reward"] == 1.5
    buy = Rule(action="buy", parameters={"market": "m-1"}, value=1.0)
    totals = []
    corrected = buy.model_copy(update={"value": -2.0})
    for revision, rules in ((1, [buy]), (2, [corrected]), (3, [])):
        one = outcome(*rules, scenario_id=scenario, revision=revision, retracted=not rules)
        await recorder.publish([one])
        (message,) = await recorder.apply()
        totals.append((message.revision, message.total_reward))
    assert totals == [(2, 4.5), (3, -4.5), (4, 1.5)]
    assert await recorder.publish([outcome(buy, scenario_id=scenario)]) == {"overtaken": 1}
    assert await recorder.apply() == []


async def test_a_correction_that_changes_nothing_for_a_trajectory_does_not_revise_it(recorder: Transactions) -> None:
    name, scenario = unique("t"), unique("s")
    await recorder.store(played(name, scenario))
    buy, sell = Rule(action="buy", value=1.0), Rule(action="sell", value=1.0)
    await recorder.publish([outcome(buy, scenario_id=scenario)])
    assert [message.revision for message in await recorder.apply()] == [2]
    await recorder.publish([outcome(buy, sell, scenario_id=scenario, revision=2)])
    assert await recorder.apply() == []
    assert (await recorder.row(name))["revision"] == 2


async def test_without_any_reward_there_is_no_total_and_an_entry_of_zero_is_one(recorder: Transactions) -> None:
    name, scenario = unique("t"), unique("s")
    await recorder.store(played(name, scenario))
    assert (await recorder.row(name))["total_reward"] is None
    await recorder.publish([outcome(Rule(value=0.0, scope="trajectory"), scenario_id=scenario)])
    await recorder.apply()
    assert (await recorder.row(name))["total_reward"] == 0.0
    assert await recorder.entries(name) == [(None, 0.0)]


async def test_a_walk_over_many_trajectories_goes_on_where_it_died_and_takes_no_more_than_its_portion(
    recorder: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_store, "_TRAJECTORIES_AT_ONCE", 7)
    monkeypatch.setattr(outcome_store, "_ENTRIES_AT_ONCE", 10)
    scenario = unique("s")
    names = [unique("t") for _ in range(25)]
    for name in names:
        await recorder.store(played(name, scenario))
    await recorder.publish([outcome(Rule(value=1.0), scenario_id=scenario)])
    done: list[str] = []
    while (some := await Transactions(recorder.pool).outcomes.apply_some()) is not None:  # another process each time
        assert len(some) <= 4  # 3 steps each: the fourth reaches 10
        done += [message.trajectory_id for message in some]
    assert sorted(done) == sorted(names)
    assert {(await recorder.row(name))["total_reward"] for name in names} == {3.0}


async def test_a_correction_in_the_middle_of_a_walk_reaches_what_was_walked_already(
    recorder: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_store, "_TRAJECTORIES_AT_ONCE", 3)
    scenario = unique("s")
    names = [unique("t") for _ in range(8)]
    for name in names:
        await recorder.store(played(name, scenario))
    await recorder.publish([outcome(Rule(value=1.0), scenario_id=scenario)])
    await recorder.outcomes.apply_some()
    await recorder.publish([outcome(Rule(value=2.0), scenario_id=scenario, revision=2)])
    await recorder.apply()
    assert {(await recorder.row(name))["total_reward"] for name in names} == {6.0}
    assert (await recorder.outcomes.pending()).count == 0


async def test_many_outcomes_of_one_window_are_applied_in_one_walk(recorder: Transactions) -> None:
    scenario = unique("s")
    await recorder.store(played(unique("t"), scenario))
    for number in range(20):
        await recorder.publish([outcome(Rule(value=1.0), scenario_id=scenario, subject=f"m-{number}")])
    (message,) = await recorder.apply()
    assert (message.revision, message.total_reward) == (2, 60.0)


async def test_an_outcome_and_a_step_stored_at_the_same_time_do_not_miss_each_other(recorder: Transactions) -> None:
    name, scenario = unique("t"), unique("s")
    async with recorder.pool.acquire() as conn, conn.transaction():
        await share(conn)  # a batch of events is being written
        publishing = asyncio.create_task(recorder.publish([outcome(Rule(value=1.0), scenario_id=scenario)]))
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not await recorder.pool.fetchval(locks):
            assert not publishing.done()
    await publishing
    await recorder.store(played(name, scenario))
    assert (await recorder.row(name))["total_reward"] == 3.0


async def test_an_outcome_does_not_hold_up_events_behind_a_batch_that_hangs(
    recorder: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_store, "_PATIENCE_S", 0.05)
    name, scenario = unique("t"), unique("s")
    async with recorder.pool.acquire() as conn, conn.transaction():
        await share(conn)  # of a process that the network cut off
        with pytest.raises(asyncpg.LockNotAvailableError) as caught:
            await recorder.publish([outcome(Rule(value=1.0), scenario_id=scenario)])
        assert transient(caught.value)
        await recorder.store(played(name, scenario))
    assert (await recorder.row(name))["status"] == "completed"


async def test_who_falls_silent_while_it_holds_events_up_is_ended_by_the_server(
    recorder: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_store, "_SILENCE_MS", 300)
    name = unique("t")
    async with recorder.pool.acquire() as conn:
        cut_off = conn.transaction()
        await cut_off.start()
        await exclude(conn, 1.0)  # and nothing more is heard of it
        await asyncio.wait_for(recorder.store(played(name, unique("s"))), 30)
        assert (await recorder.row(name))["status"] == "completed"
        with pytest.raises(Exception) as caught:
            await conn.execute("SELECT 1")
        assert transient(caught.value)


async def test_a_connection_is_given_up_by_the_server_when_the_network_cuts_it_off(database: str) -> None:
    wanted = {
        "tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3",
        "tcp_user_timeout": "30000", "idle_in_transaction_session_timeout": "60000",
    }  # fmt: skip
    async with await connect(database, idle_in_transaction_s=60) as pool:
        query = "SELECT name, reset_val FROM pg_settings WHERE name = ANY($1::text[])"
        assert dict(await pool.fetch(query, list(wanted))) == wanted
    async with await connect(database) as pool:
        assert await pool.fetchval("SHOW idle_in_transaction_session_timeout") == "0"


async def test_entries_are_counted_once_they_are_committed(
    recorder: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written() -> float:
        return metrics.OUTCOME_ENTRIES.labels("written")._value.get()  # pyright: ignore[reportAttributeAccessIssue]

    async def fail(*_: object) -> None:
        raise OSError("the network is gone")

    scenario, before = unique("s"), written()
    await recorder.publish([outcome(Rule(value=1.0), scenario_id=scenario)])
    with monkeypatch.context() as patch:
        patch.setattr(event_store, "announce", fail)
        with pytest.raises(OSError):
            await recorder.store(played(unique("t"), scenario))
    assert written() == before
    await recorder.store(played(unique("t"), scenario))
    assert written() == before + 3
    await recorder.publish([outcome(Rule(value=2.0), scenario_id=scenario, revision=2)])
    with monkeypatch.context() as patch:
        patch.setattr(outcome_store, "announce", fail)
        with pytest.raises(OSError):
            await recorder.apply()
    assert written() == before + 3
    await recorder.apply()
    assert written() == before + 6


async def test_a_conflict_names_the_record_and_nothing_is_written(recorder: Transactions) -> None:
    scenario = unique("s")
    one = outcome(Rule(value=1.0), scenario_id=scenario)
    await recorder.publish([one])
    with pytest.raises(Rejected) as caught:
        await recorder.publish([one.model_copy(update={"subject": "m-2"}), one.model_copy(update={"rules": []})])
    assert {at: why.reason for at, why in caught.value.reasons.items()} == {(0, 1): "conflict"}
    assert await recorder.pool.fetchval("SELECT count(*) FROM outcomes WHERE key = $1", scenario) == 1


async def test_a_process_that_lost_its_partition_writes_nothing(recorder: Transactions) -> None:
    assert await recorder.outcomes.positions({0: 3}) == {0: 3}
    with pytest.raises(Fenced):
        await recorder.outcomes.write([], [Move(0, 0, 9)])
    assert await recorder.outcomes.positions({0: 0}) == {0: 3}


async def test_numbers_at_the_edge_of_doubles_are_recorded_and_read(recorder: Transactions) -> None:
    name, scenario = unique("t"), unique("s")
    events = played(name, scenario, steps=4)
    steps = [
        event.model_copy(update={"reward": reward})
        for event, reward in zip(events[1:5], [1.7e308, 1.7e308, -1.7e308, -1.7e308], strict=True)
    ]
    await recorder.store([events[0], *steps[:2]])
    assert (await recorder.row(name))["total_reward"] is None  # beyond every double; the sum is not lost
    await recorder.store(steps[2:])
    assert (await recorder.row(name))["total_reward"] == 0.0
    tiny = dump(Step(**envelope(name, 9), step=9, reward=0.125)).replace(b"0.125", b"1e-400")  # 0 to a float
    await recorder.events.write([decode(record(tiny))], [])
    ledger = await recorder.pool.fetch(
        "SELECT step, kind, value, origin FROM reward_ledger WHERE trajectory_id = $1 ORDER BY step", name
    )
    assert [tuple(row) for row in ledger][-1] == (9, "immediate", 0.0, "step")
    assert await recorder.pool.fetchval("SELECT reward FROM steps WHERE trajectory_id = $1 AND step = 9", name) == 0.0


async def test_the_ledger_unites_steps_events_and_outcomes(recorder: Transactions) -> None:
    name, scenario = unique("t"), unique("s")
    judged = Reward(**envelope(name, 9), reward_kind=RewardKind.JUDGE, value=7.0, name="style", source="judge-1")
    await recorder.store([*played(name, scenario, steps=1, reward=0.5), judged])
    await recorder.publish([outcome(Rule(value=1.0), scenario_id=scenario)])
    await recorder.apply()
    ledger = await recorder.pool.fetch(
        "SELECT step, kind, name, value, source, subject, origin FROM reward_ledger WHERE trajectory_id = $1"
        " ORDER BY value",
        name,
    )
    assert [tuple(row) for row in ledger] == [
        (0, "immediate", "reward", 0.5, None, None, "step"),
        (0, "outcome", "outcome", 1.0, "oracle", "m-1", "outcome"),
        (None, "judge", "style", 7.0, "judge-1", None, "event"),
    ]
