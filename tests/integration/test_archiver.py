"""Recorder and archiver as processes, on the real Kafka, Postgres and S3: from published events to verified batches.

The archiver reaches S3 through a gate, so that tests can kill it at a chosen moment. Each test has its own channel.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from flywheel.batches import read_batch
from flywheel.events import Failure, Reward, RewardKind
from flywheel.naming import batch_manifest
from flywheel.outcomes import Outcome, Rule
from flywheel.settings import Connections
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.follow import follow
from flywheel.stream.producer import Producer
from flywheel.topics import OUTCOMES, TRAJECTORIES
from tests.support.archive import PART, World, expected_bytes, groups, play, published
from tests.support.gate import Gate
from tests.support.processes import ServiceProcess, ServiceProcesses
from tests.support.waiting import eventually
from tests.support.world import unique

pytestmark = pytest.mark.stack

RULES = {
    "FLYWHEEL_ARCHIVER_MIN_TRAJECTORIES": "6",
    "FLYWHEEL_ARCHIVER_MIN_GROUPS": "2",
    "FLYWHEEL_ARCHIVER_MIN_GROUP_SIZE": "2",
    "FLYWHEEL_ARCHIVER_GROUP_SETTLE_S": "3600",
    "FLYWHEEL_ARCHIVER_PART_TRAJECTORIES": str(PART),
    "FLYWHEEL_ARCHIVER_CHECK_INTERVAL_S": "0.2",
}


@pytest_asyncio.fixture(scope="module")
async def gate(connections: Connections) -> AsyncIterator[Gate]:
    url = urlsplit(connections.s3)
    assert url.hostname
    assert url.port
    async with Gate(url.hostname, url.port) as gate:
        yield gate


@pytest_asyncio.fixture(scope="module")
async def archiver(service_process: ServiceProcesses, gate: Gate) -> ServiceProcess:
    await service_process("recorder", FLYWHEEL_RECORDER_IDLE_CLOSE_S="8").start()
    return await service_process("archiver", FLYWHEEL_S3=f"http://{gate.address}", **RULES).start()


@pytest_asyncio.fixture(scope="module")
async def world(
    connections: Connections, object_store: S3ObjectStore, gate: Gate, archiver: ServiceProcess
) -> AsyncIterator[World]:
    producer = Producer(connections.kafka)
    await producer.start()
    yield World(connections, object_store, producer, gate)
    await producer.stop()


@pytest.fixture
def channel() -> str:
    return unique("channel")


async def test_closed_trajectories_become_one_verified_batch_announced_once(world: World, channel: str) -> None:
    plays = groups(channel)
    await world.publish(plays)
    batch = await world.one_batch(channel)
    manifest, events = world.read(batch)
    assert events == published(plays)
    assert [file.trajectories for file in manifest.files] == [4, 2]
    assert manifest.counts.groups == 2
    assert manifest.policy_versions == {"1.0.0": 12}
    assert manifest.rule == batch["rule"]
    assert manifest.rule.startswith("ready: 6 whole-group trajectories (at least 6) in 2 groups")
    (message,) = await world.announced(channel)
    assert (message.batch_id, message.manifest_sha256) == (batch["batch_id"], batch["manifest_sha256"])
    assert (message.trajectories, message.groups, message.rule) == (6, 2, manifest.rule)


async def test_a_group_waits_until_the_last_attempt_it_declared_has_ended(world: World, channel: str) -> None:
    plays = groups(channel)
    await world.publish(plays[:-1])
    await world.announced(channel)  # judged meanwhile, another channel's batch was made
    assert await world.batches(channel) == []
    await world.publish(plays[-1:])
    assert world.read(await world.one_batch(channel))[1] == published(plays)


async def test_what_is_not_trained_on_never_enters_and_holds_up_nobody(
    world: World, channel: str, archiver: ServiceProcess
) -> None:
    names = [unique("g"), unique("g")]
    fit = [play(channel, name, 7) for name in names for _ in range(3)]
    unfit = [
        events
        for name in names
        for events in (
            play(channel, name, 7, split="held_out"),
            play(channel, name, 7, status="error", failure=Failure.INFRASTRUCTURE),
            play(channel, name, 7, steps=0),
        )
    ]
    failed = [play(channel, name, 7, status="error", failure=Failure.AGENT) for name in names]
    await world.publish([*unfit, *fit, *failed])
    assert world.read(await world.one_batch(channel))[1] == published([*fit, *failed])
    ids = [events[0].trajectory_id for events in unfit]
    assert await world.query("SELECT 1 FROM archive_queue WHERE trajectory_id = ANY($1)", ids) == []
    metrics = archiver.get("/metrics")[1]
    for reason in ("held_out", "infrastructure", "no_steps"):
        assert f'flywheel_archiver_skipped_total{{reason="{reason}"}} 2.0' in metrics


async def test_a_silent_attempt_is_given_up_and_its_late_end_waits_alone(world: World, channel: str) -> None:
    plays = groups(channel, size=4)
    silent = plays[-1]
    await world.publish([*plays[:-1], silent[:-1]])
    assert world.read(await world.one_batch(channel))[1] == published(plays[:-1])
    await world.publish([silent[-1:]])
    sql = "SELECT batch_id FROM archive_queue WHERE trajectory_id = $1"
    (row,) = await eventually(lambda: world.query(sql, silent[0].trajectory_id))
    assert row["batch_id"] is None


async def test_a_revision_after_the_batch_is_noted_and_changes_nothing(world: World, channel: str) -> None:
    plays = groups(channel)
    await world.publish(plays)
    batch = await world.one_batch(channel)
    first = plays[0]
    common: dict[str, Any] = {"trajectory_id": first[0].trajectory_id, "agent_id": "agent"}
    await world.publish([[Reward(**common, seq=len(first), reward_kind=RewardKind.OUTCOME, value=1.0)]])
    sql = "SELECT revision FROM archive_queue WHERE trajectory_id = $1 AND latest_revision = 2"
    (row,) = await eventually(lambda: world.query(sql, first[0].trajectory_id))
    assert row["revision"] == 1
    assert await world.batches(channel) == [batch]
    assert world.read(batch)[1] == published(plays)


async def test_rows_carry_what_outcomes_gave_and_one_that_comes_after_the_batch_changes_nothing_in_it(
    world: World, channel: str
) -> None:
    scenario = unique("s")
    plays = [[e.model_copy(update={"scenario_id": scenario}) if e.seq == 0 else e for e in p] for p in groups(channel)]
    first = Outcome(scenario_id=scenario, subject="m", source="oracle", rules=[Rule(value=2.0)])
    await world.producer.send_and_wait(OUTCOMES.name, first.key, first.dump())
    await eventually(lambda: world.query("SELECT 1 FROM outcomes WHERE key = $1", scenario))
    await world.publish(plays)
    batch = await world.one_batch(channel)

    def totals() -> set[float | None]:
        _, rows = read_batch(world.store, batch["manifest"], batch["manifest_sha256"])
        return {row.total_reward for row in rows}

    assert totals() == {2 * 0.5 + 2 * 2.0}
    corrected = first.model_copy(update={"revision": 2, "rules": [Rule(value=-1.0)]})
    await world.producer.send_and_wait(OUTCOMES.name, corrected.key, corrected.dump())
    sql = "SELECT 1 FROM archive_queue WHERE batch_id = $1 AND latest_revision = 2 AND revision = 1"

    async def noted() -> bool:
        return len(await world.query(sql, batch["batch_id"])) == len(plays)

    await eventually(noted)
    assert await world.batches(channel) == [batch]
    assert totals() == {5.0}


async def test_repeated_messages_make_no_second_batch_and_garbage_is_a_dead_letter(world: World, channel: str) -> None:
    plays = groups(channel)
    await world.publish(plays)
    await world.one_batch(channel)
    ids = {events[0].trajectory_id.encode() for events in plays}
    again: list[tuple[bytes, bytes]] = []
    async with aclosing(follow(world.connections.kafka, TRAJECTORIES.name, from_beginning=True)) as records:
        async for record in records:
            if record.key in ids and record.value:
                again.append((record.key, record.value))
                if len(again) == len(ids):
                    break
    for key, value in again:
        await world.producer.send_and_wait(TRAJECTORIES.name, key.decode(), b"\x00 garbage")
        await world.producer.send_and_wait(TRAJECTORIES.name, key.decode(), value)
    assert len(await world.announced(channel)) == 1
    assert len(await world.batches(channel)) == 1
    dead = 0
    async with aclosing(follow(world.connections.kafka, TRAJECTORIES.dead, from_beginning=True)) as records:
        async for record in records:
            dead += record.key in ids
            if dead == len(ids):
                break


async def test_killed_between_decision_and_writing_the_batch_completes_once_with_the_same_bytes(
    world: World, channel: str, archiver: ServiceProcess
) -> None:
    world.gate.mode = "frozen"
    plays = groups(channel)
    await world.publish(plays)
    batch = await world.one_batch(channel, "building")
    expected, sha256 = await expected_bytes(world, batch)
    archiver.kill()
    assert not world.store.exists(batch_manifest(batch["batch_id"]))
    world.gate.open()
    await archiver.start()
    ready = await world.one_batch(channel)
    assert (ready["batch_id"], ready["manifest_sha256"]) == (batch["batch_id"], sha256)
    assert {
        info.key: world.store.get(info.key) for info in world.store.list(f"batches/{batch['batch_id']}/")
    } == expected
    assert [message.manifest_sha256 for message in await world.announced(channel)] == [sha256]
    assert await world.batches(channel, "building") == []


async def test_killed_between_the_manifest_and_ready_the_batch_stays_as_it_was_written(
    world: World, channel: str, archiver: ServiceProcess
) -> None:
    world.gate.mode, world.gate.after = "mute", re.compile(rb"PUT \S+/manifest\.json ")
    plays = groups(channel)
    await world.publish(plays)
    batch = await world.one_batch(channel, "building")
    manifest = batch_manifest(batch["batch_id"])
    await eventually(lambda: world.store.exists(manifest))
    archiver.kill()
    written = world.store.get(manifest)
    first = plays[0]
    common: dict[str, Any] = {"trajectory_id": first[0].trajectory_id, "agent_id": "agent"}
    await world.publish([[Reward(**common, seq=len(first), reward_kind=RewardKind.OUTCOME, value=1.0)]])
    sql = "SELECT 1 FROM trajectories WHERE trajectory_id = $1 AND revision = 2"
    await eventually(lambda: world.query(sql, first[0].trajectory_id))
    world.gate.open()
    await archiver.start()
    ready = await world.one_batch(channel)
    assert world.store.get(manifest) == written
    assert world.read(ready)[1] == published(plays)
    assert json.loads(written)["batch_id"] == batch["batch_id"]
    assert len(await world.announced(channel)) == 1


async def test_while_the_store_is_away_it_is_unready_and_alive_and_goes_on_when_it_is_back(
    world: World, channel: str, archiver: ServiceProcess
) -> None:
    world.gate.mode = "closed"
    world.gate.break_off()
    plays = groups(channel)
    await world.publish(plays)
    await eventually(lambda: archiver.get("/readyz")[0] == 503)
    assert "object store" in archiver.get("/readyz")[1]
    assert archiver.get("/healthz")[0] == 200
    assert await world.batches(channel) == []
    world.gate.open()
    assert world.read(await world.one_batch(channel))[1] == published(plays)
    await archiver.wait_ready()


async def test_two_archivers_make_each_batch_once(
    world: World, archiver: ServiceProcess, service_process: ServiceProcesses
) -> None:
    channels = [unique("channel") for _ in range(4)]
    async with service_process("archiver", **RULES):
        await world.publish([play for channel in channels for play in groups(channel)])
        batches = [await world.one_batch(channel) for channel in channels]
        assert [message.batch_id for message in await world.announced(channels[0])] == [batches[0]["batch_id"]]
    for channel, batch in zip(channels, batches, strict=True):
        assert await world.batches(channel) == [batch]
        assert world.read(batch)[0].counts.trajectories == 6
