"""The recorder's transaction on a real database: the merge in SQL is the merge in Python, and offsets fence."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel.events import Event, dump
from flywheel.health import Health
from flywheel.settings import RecorderSettings
from flywheel.storage.postgres import connect, migrate
from flywheel.stream.events_loop import EventsLoop
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.positions import Fenced, Move, Rejected
from flywheel.stream.record import Record
from flywheel.topics import EVENTS
from services.recorder.aggregate import aggregate
from services.recorder.app import close_silent
from services.recorder.decode import Decoded, decode
from services.recorder.statements import upsert_arguments
from services.recorder.store import Store, prepare
from tests.support.play import deliveries, plays
from tests.support.recording import trajectory
from tests.support.waiting import eventually
from tests.support.world import unique

pytestmark = pytest.mark.stack

COMPARED = (
    "agent_id", "first_event_at", "seq_max", "events", "steps", "llm_calls", "untrainable_calls",
    "infrastructure_failures", "provider_accesses", "rewards", "reward_sum", "reward_count", "prompt_tokens",
    "completion_tokens", "start_seq", "start_event_id", "started_at", "scenario_id", "group_id", "group_size",
    "episode_id", "split", "channel", "model_version", "end_seq", "end_event_id", "ended_at", "status",
    "stated_failure", "error",
    "final_balance", "final_pnl",
)  # fmt: skip


@pytest_asyncio.fixture(scope="module")
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await connect(database, init=prepare)
    yield pool
    await pool.close()


def decoded(events: Sequence[Event], first_offset: int = 0) -> list[Decoded]:
    return [
        decode(Record(EVENTS.name, 0, first_offset + n, None, dump(event), (), 0)) for n, event in enumerate(events)
    ]


async def fresh_store(pool: asyncpg.Pool) -> Store:
    return Store(pool, consumer=unique("consumer"), topic=EVENTS.name)


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_any_interleaving_duplication_and_batching_gives_the_same_row_as_the_pure_merge(
    pool: asyncpg.Pool, data: st.DataObject
) -> None:
    name = unique("t")
    events = data.draw(plays(name))
    store = await fresh_store(pool)
    for batch in data.draw(deliveries(events)):
        await store.write(decoded(batch), [])
    row = await pool.fetchrow("SELECT * FROM trajectories WHERE trajectory_id = $1", name)
    assert row is not None
    (pure,) = aggregate(event.delta for event in decoded(events))
    (_, *want, _) = (column[0] for column in upsert_arguments([pure], {}))
    want[COMPARED.index("reward_sum")] = Decimal(want[COMPARED.index("reward_sum")])
    want[COMPARED.index("split")] = want[COMPARED.index("split")] or "train"
    want[COMPARED.index("status")] = want[COMPARED.index("status")] or "open"
    assert [row[column] for column in COMPARED] == want
    assert (row["revision"] > 0) == (pure.end is not None)
    assert row["window_id"] == (pure.start.started_at if pure.start else pure.first_event_at).strftime("%Y-%m-%dT%H")


@given(st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_every_column_of_an_event_is_stored_as_the_event_says(pool: asyncpg.Pool, data: st.DataObject) -> None:
    events = {event.event_id: event for event in data.draw(plays(unique("t")))}
    await (await fresh_store(pool)).write(decoded(list(events.values()), 2**40), [])
    rows = await pool.fetch("SELECT * FROM events WHERE event_id = ANY($1)", list(events))
    assert {row["src_offset"] for row in rows} == {2**40 + n for n in range(len(events))}
    for row in rows:
        event = events[row["event_id"]]
        assert row["body"].encode() == dump(event)
        assert row["digest"] == hashlib.blake2b(dump(event), digest_size=16).digest()
        assert (row["step"], row["src_partition"]) == (getattr(event, "step", None), 0)
        for name in ("trajectory_id", "seq", "kind", "agent_id", "time"):
            assert row[name] == getattr(event, name)


async def test_a_repeated_batch_changes_nothing(pool: asyncpg.Pool) -> None:
    name, store = unique("t"), await fresh_store(pool)
    batch = decoded(trajectory(name))
    first = await store.write(batch, [])
    assert (len(first.inserted), first.duplicates, len(first.announced)) == (len(batch), 0, 1)
    before = await pool.fetchrow("SELECT * FROM trajectories WHERE trajectory_id = $1", name)
    again = await store.write(batch, [])
    assert (again.inserted, again.duplicates, again.announced) == ([], len(batch), [])
    assert await pool.fetchrow("SELECT * FROM trajectories WHERE trajectory_id = $1", name) == before


async def test_a_conflict_names_the_record_and_writes_nothing(pool: asyncpg.Pool) -> None:
    name, store = unique("t"), await fresh_store(pool)
    events = trajectory(name)
    await store.write(decoded(events[:1]), [])
    changed = events[0].model_copy(update={"time": events[0].time.replace(year=2025)})
    with pytest.raises(Rejected) as caught:
        await store.write(decoded([*events[1:], changed], first_offset=10), [])
    assert {at: why.reason for at, why in caught.value.reasons.items()} == {(0, 10 + len(events) - 1): "conflict"}
    assert await pool.fetchval("SELECT count(*) FROM events WHERE trajectory_id = $1", name) == 1


async def test_a_duplicate_that_follows_a_conflict_within_a_batch_is_no_conflict(pool: asyncpg.Pool) -> None:
    name, store = unique("t"), await fresh_store(pool)
    (original, *_) = events = trajectory(name)
    await store.write(decoded(events), [])
    changed = original.model_copy(update={"time": original.time.replace(year=2025)})
    with pytest.raises(Rejected) as caught:
        await store.write(decoded([changed, original, changed], first_offset=100), [])
    assert set(caught.value.reasons) == {(0, 100), (0, 102)}
    written = await store.write(decoded([original], first_offset=101), [])
    assert (written.inserted, written.duplicates) == ([], 1)


async def test_a_process_that_lost_its_partition_writes_nothing(pool: asyncpg.Pool) -> None:
    name, store = unique("t"), await fresh_store(pool)
    assert await store.positions({0: 0, 1: 5}) == {0: 0, 1: 5}
    events = trajectory(name)
    await store.write(decoded(events[:3]), [Move(0, 0, 3)])
    with pytest.raises(Fenced):  # the zombie still believes in offset 0
        await store.write(decoded(events), [Move(0, 0, 9)])
    assert await store.positions({0: 0, 1: 5}) == {0: 3, 1: 5}
    assert await pool.fetchval("SELECT events FROM trajectories WHERE trajectory_id = $1", name) == 3


async def test_a_stored_offset_that_retention_overtook_moves_to_the_beginning(pool: asyncpg.Pool) -> None:
    store = await fresh_store(pool)
    await store.positions({0: 3})
    assert await store.positions({0: 8}) == {0: 8}
    assert await store.positions({0: 1}) == {0: 8}


async def test_announcements_commit_with_the_rows(pool: asyncpg.Pool) -> None:
    store, names = await fresh_store(pool), [unique("t") for _ in range(3)]
    batch = [event for name in names for event in trajectory(name)]
    random.Random(1).shuffle(batch)
    written = await store.write(decoded(batch), [])
    assert {message.trajectory_id for message in written.announced} == set(names)
    queued: list[Any] = await pool.fetch("SELECT key FROM outbox WHERE key = ANY($1) ORDER BY id", names)
    assert [row["key"] for row in queued] == [message.trajectory_id for message in written.announced]


async def test_migrating_twice_applies_nothing_new(pool: asyncpg.Pool) -> None:
    assert await migrate(pool) == []


class _Looked(Store):
    """Counts how often it was asked how far the offsets are."""

    looks = 0

    async def reached(self) -> dict[int, int]:
        self.looks += 1
        return await super().reached()


async def test_nothing_is_closed_for_silence_while_events_wait_in_another_process_s_partition(
    pool: asyncpg.Pool,
) -> None:
    name = unique("t")
    store = _Looked(pool, consumer=unique("consumer"), topic=EVENTS.name)
    await store.positions({0: 5, 1: 2})
    await store.write(decoded(trajectory(name)[:1]), [])
    loop = cast(EventsLoop[Decoded], SimpleNamespace(ends=AsyncMock(return_value={0: 5, 1: 3})))
    relay = cast(OutboxRelay, SimpleNamespace(nudge=lambda: None))
    stop = asyncio.Event()
    closing = asyncio.create_task(
        close_silent(store, relay, loop, RecorderSettings(idle_close_s=0.2), health=Health(), stop=stop)
    )

    async def status() -> str:
        return await pool.fetchval("SELECT status FROM trajectories WHERE trajectory_id = $1", name)

    try:
        await eventually(lambda: store.looks > 10)  # half a second and more: it has long been silent
        assert await status() == "open"
        await store.positions({1: 3})

        async def closed() -> bool:
            return await status() == "incomplete"

        await eventually(closed)
    finally:
        stop.set()
        await closing
