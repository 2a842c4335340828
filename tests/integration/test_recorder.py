"""The recorder on the real stack: every event in exactly one place, whatever is sent, in whatever order."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from flywheel.events import Reward, RewardKind, TrajectoryEnded, dump, parse
from flywheel.messages import TrajectoryClosed
from flywheel.settings import Connections
from flywheel.stream.producer import Producer
from flywheel.topics import EVENTS, MAX_EVENT_BYTES, TRAJECTORIES
from flywheel.trajectory import assemble
from tests.support.processes import ServiceProcess, ServiceProcesses
from tests.support.recording import STARTED, envelope, publish, read, trajectory
from tests.support.waiting import eventually

pytestmark = pytest.mark.stack


@pytest_asyncio.fixture(scope="module")
async def recorder(service_process: ServiceProcesses) -> ServiceProcess:
    return await service_process("recorder", FLYWHEEL_RECORDER_IDLE_CLOSE_S="3600").start()


@pytest_asyncio.fixture(scope="module")
async def producer(connections: Connections) -> AsyncIterator[Producer]:
    producer = Producer(connections.kafka)
    await producer.start()
    yield producer
    await producer.stop()


@pytest_asyncio.fixture(scope="module")
async def db(connections: Connections) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(connections.postgres, min_size=1, max_size=2) as pool:
        yield pool


async def row_of(db: asyncpg.Pool, trajectory_id: str, **wanted: Any) -> asyncpg.Record:
    async def look() -> asyncpg.Record | None:
        row = await db.fetchrow("SELECT * FROM trajectories WHERE trajectory_id = $1", trajectory_id)
        return row if row and all(row[key] == value for key, value in wanted.items()) else None

    row = await eventually(look)
    assert row is not None
    return row


async def announcements(connections: Connections, trajectory_id: str, count: int) -> list[TrajectoryClosed]:
    async def look() -> list[TrajectoryClosed]:
        seen = 1
        while True:  # as many as there are: others' announcements lie between ours
            try:
                records = await read(connections.kafka, TRAJECTORIES.name, seen, within=2)
            except TimeoutError:
                return []
            messages = [TrajectoryClosed.parse(r.value) for r in records if r.key == trajectory_id.encode()]
            if len(messages) >= count:
                return messages
            seen += 1

    return await eventually(look)


async def dead_letter(connections: Connections, key: str) -> Any:
    """Return the dead letter with that key, waiting for it."""
    seen = 1
    while True:
        records = await read(connections.kafka, EVENTS.dead, seen)
        if records[-1].key == key.encode():
            return records[-1]
        seen += 1


async def test_events_become_rows_and_one_announced_trajectory(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool, connections: Connections
) -> None:
    events = trajectory("plain")
    await publish(producer, events)
    row = await row_of(db, "plain", status="completed")
    assert (row["events"], row["missing"], row["revision"]) == (len(events), 0, 1)
    assert (row["steps"], row["llm_calls"], row["untrainable_calls"], row["rewards"]) == (3, 3, 0, 1)
    assert (row["total_reward"], row["reward_count"], row["final_pnl"]) == (1.5, 3, 1.25)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (9, 6)
    assert (row["scenario_id"], row["group_id"], row["window_id"]) == ("s-1", "g-1", "2026-11-23T04")
    bodies = await db.fetch("SELECT body FROM events WHERE trajectory_id = 'plain' ORDER BY seq")
    assert [body["body"].encode() for body in bodies] == [dump(event) for event in events]
    (message,) = await announcements(connections, "plain", 1)
    assert (message.revision, message.status, message.total_reward, message.steps) == (1, "completed", 1.5, 3)


async def test_the_row_agrees_with_the_assembled_trajectory_whatever_the_order_and_repeats(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool
) -> None:
    events = trajectory("shuffled", steps=20)
    sent = events + random.Random(3).choices(events, k=30)
    random.Random(4).shuffle(sent)
    for first in range(0, len(sent), 20):
        await publish(producer, sent[first : first + 20])
    row = await row_of(db, "shuffled", events=len(events))
    whole = assemble(events, revision=row["revision"])
    for column in ("agent_id", "scenario_id", "group_id", "window_id", "status", "failure", "started_at", "ended_at"):
        assert row[column] == getattr(whole, column), column
    assert row["total_reward"] == whole.total_reward
    assert (row["steps"], row["llm_calls"]) == (len(whole.steps), len(list(whole.all_llm_calls())))


async def test_a_late_event_revises_and_announces_again(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool, connections: Connections
) -> None:
    events = trajectory("late")
    await publish(producer, events)
    await row_of(db, "late", revision=1)
    outcome = Reward(**envelope("late", len(events), reward_kind=RewardKind.OUTCOME, value=2.0))
    await publish(producer, [outcome])
    row = await row_of(db, "late", revision=2)
    assert (row["status"], row["total_reward"]) == ("completed", 3.5)
    await publish(producer, [outcome])  # a duplicate is no revision
    await publish(producer, trajectory("after-late"))
    await row_of(db, "after-late", revision=1)
    messages = await announcements(connections, "late", 2)
    assert [(m.revision, m.total_reward) for m in messages] == [(1, 1.5), (2, 3.5)]
    assert (await row_of(db, "late"))["revision"] == 2


async def test_a_start_that_arrives_late_settles_the_columns_and_the_window(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool
) -> None:
    start, *rest = trajectory("headless")
    later = STARTED + timedelta(hours=2)
    await publish(producer, [event.model_copy(update={"time": later}) for event in rest])
    row = await row_of(db, "headless", revision=1)
    assert (row["window_id"], row["scenario_id"], row["missing"]) == ("2026-11-23T06", None, 1)
    await publish(producer, [start])
    row = await row_of(db, "headless", revision=2)
    assert (row["window_id"], row["scenario_id"], row["started_at"]) == ("2026-11-23T04", "s-1", STARTED)


async def test_a_hole_in_seq_stays_visible(recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool) -> None:
    events = trajectory("holed")
    await publish(producer, events[:2] + events[4:])
    row = await row_of(db, "holed", revision=1)
    assert row["missing"] == 2


async def test_an_error_without_a_stated_cause_is_infrastructures_when_a_call_failed_so(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool, connections: Connections
) -> None:
    end = TrajectoryEnded(**envelope("broken", 2), status="error", error="no answer")
    call = parse(dump(trajectory("broken")[1]).replace(b'"model":"tiny"', b'"model":"tiny","failure":"infrastructure"'))
    await publish(producer, [trajectory("broken")[0], end, call])
    assert (await row_of(db, "broken", events=3))["failure"] == "infrastructure"
    assert (await announcements(connections, "broken", 1))[-1].failure == "infrastructure"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("g-null", None, "no_value"),
        ("g-text", b"hello", "not_json"),
        ("g-latin", b'{"kind": "step", "x": "\xe9"}', "not_json"),
        ("g-kind", b'{"kind": "dream"}', "unknown_kind"),
        ("g-schema", b'{"kind": "step", "seq": -1}', "schema"),
        ("g-nul", dump(trajectory("g-nul")[0]).replace(b'"s-1"', b'"s-1","note":"a\\u0000b"'), "nul"),
        ("g-large", b'"' + b"x" * (10 * 1024 * 1024) + b'"', "too_large"),
    ],
)
async def test_garbage_goes_to_the_dead_letters_with_the_reason_and_the_rest_flows(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool, connections: Connections,
    key: str, value: bytes | None, reason: str,
) -> None:  # fmt: skip
    await producer.send_and_wait(EVENTS.name, key, value, {"origin": "a test"})
    await publish(producer, trajectory(f"after-{key}"))
    await row_of(db, f"after-{key}", revision=1)
    letter = await dead_letter(connections, key)
    assert letter.value == value
    assert (letter.header("flywheel-reason"), letter.header("flywheel-topic")) == (reason, EVENTS.name)
    assert letter.header("origin") == "a test"
    assert letter.header("flywheel-offset") is not None and letter.header("flywheel-partition") is not None


async def test_an_event_of_the_largest_size_is_recorded(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool
) -> None:
    start = trajectory("large")[0]
    room = MAX_EVENT_BYTES - len(dump(start)) - len(',"note":""')
    body = (
        dump(start)[:-1] + b',"note":"' + random.Random(5).randbytes(room // 2).hex().encode().ljust(room, b"x") + b'"}'
    )
    assert len(body) == MAX_EVENT_BYTES
    await producer.send_and_wait(EVENTS.name, "large", body)
    await row_of(db, "large", events=1)
    assert await db.fetchval("SELECT octet_length(body) FROM events WHERE trajectory_id = 'large'") == MAX_EVENT_BYTES


async def test_a_known_id_with_other_bytes_is_a_conflict_and_changes_nothing(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool, connections: Connections
) -> None:
    events = trajectory("doubted")
    await publish(producer, events)
    before = await row_of(db, "doubted", revision=1)
    other = dump(events[2]).replace(b'"reward":0.5', b'"reward":99')
    await producer.send_and_wait(EVENTS.name, "contradiction", other)
    letter = await dead_letter(connections, "contradiction")
    assert (letter.value, letter.header("flywheel-reason")) == (other, "conflict")
    assert await row_of(db, "doubted") == before


async def test_a_value_the_database_refuses_is_singled_out(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool, connections: Connections
) -> None:
    await db.execute("ALTER TABLE trajectories ADD CONSTRAINT tried CHECK (trajectory_id <> 'refused')")
    refused = trajectory("refused")[:1]
    await publish(producer, [*trajectory("beside-refused"), *refused])
    await row_of(db, "beside-refused", revision=1)
    assert (await dead_letter(connections, "refused")).header("flywheel-reason") == "database"
    assert await db.fetchval("SELECT count(*) FROM events WHERE trajectory_id = 'refused'") == 0


async def test_rewards_that_are_together_beyond_every_number_are_recorded_and_have_no_total(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool
) -> None:
    events = trajectory("vast", steps=1)
    vast = [Reward(**envelope("vast", 9 + n, reward_kind=RewardKind.OUTCOME, value=1.7e308)) for n in (0, 1)]
    await publish(producer, [*events, *vast])
    row = await row_of(db, "vast", events=len(events) + 2)
    assert (row["total_reward"], row["reward_count"]) == (None, 3)


async def test_replaying_the_topic_from_the_start_changes_nothing(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool
) -> None:
    await publish(producer, trajectory("last"))
    await row_of(db, "last", revision=1)
    reached = await db.fetch("SELECT topic, partition, next_offset FROM stream_offsets ORDER BY 1, 2")
    assert await recorder.stop() == 0
    digest = "SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {} AS t"
    before = [await db.fetchval(digest.format(table)) for table in ("events", "trajectories")]

    await db.execute("UPDATE stream_offsets SET next_offset = 0")
    await recorder.start()

    async def caught_up() -> bool:
        return await db.fetch("SELECT topic, partition, next_offset FROM stream_offsets ORDER BY 1, 2") == reached

    await eventually(caught_up)
    assert [await db.fetchval(digest.format(table)) for table in ("events", "trajectories")] == before


async def test_a_trajectory_that_goes_silent_is_closed_as_incomplete(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool, service_process: ServiceProcesses
) -> None:
    await publish(producer, trajectory("silent")[:-1])
    await row_of(db, "silent", status="open")
    assert await recorder.stop() == 0
    async with service_process("recorder", FLYWHEEL_RECORDER_IDLE_CLOSE_S="0.5"):
        row = await row_of(db, "silent", status="incomplete")
        assert (row["revision"], row["total_reward"]) == (1, 1.5)
        assert row["closed_at"] is not None
        await publish(producer, trajectory("silent")[-1:])  # the end comes after all
        assert (await row_of(db, "silent", status="completed"))["revision"] == 2
