"""What readers see of trajectories whose events retention has put away: where they are, never an empty trajectory."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from flywheel.events import Status
from flywheel.health import Health
from flywheel.messages import TrajectoryClosed
from flywheel.settings import ArchiverSettings
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.producer import Producer
from flywheel.stream.record import Record
from flywheel.topics import TRAJECTORIES
from services.archiver import store as archiver_store
from services.archiver.app import Archiver
from services.archiver.days import DayKeeper
from tests.support.days import dated, days_ago, make, state, store_settled
from tests.support.processes import ROOT, ServiceProcess, service_environment
from tests.support.recorded import play, store_play
from tests.support.web import api, get

pytestmark = pytest.mark.stack

OLD = days_ago(40)
MANIFEST = f"events/{OLD}/manifest.json"


async def flywheel(environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line: status, output, errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flywheel.cli.main", *arguments, cwd=ROOT, env=service_environment(environment),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest_asyncio.fixture(scope="module")
async def put_away(pool: asyncpg.Pool, object_store: S3ObjectStore) -> None:
    """``gone`` played on a day that was dropped; ``half`` began on it and ended the day after, which is kept."""
    await make(pool, OLD, days_ago(1))
    await store_settled(pool, "gone", OLD)
    events = play("half", agent="half")
    await store_play(pool, [*dated(events[:2], OLD), *dated(events[2:], days_ago(1))])
    await pool.execute("UPDATE trajectories SET last_ingested_at = '2020-01-01', closed_at = '2020-01-01'")
    await store_settled(pool, "kept", days_ago(1))
    await DayKeeper(pool, object_store, ArchiverSettings(retention_days=30), Health()).cycle()
    assert (await state(pool, OLD)).state == "dropped"


@pytest.mark.usefixtures("put_away")
@pytest.mark.parametrize("name", ["gone", "half"])
async def test_the_gateway_says_where_the_events_are(gateway: ServiceProcess, name: str) -> None:
    for address in (f"/api/v1/trajectories/{name}", f"/api/v1/trajectories/{name}/events"):
        answer = await get(gateway, address)
        assert answer.status == 410
        problem = json.loads(answer.text)
        assert MANIFEST in problem["detail"]
        assert answer.headers["content-type"] == "application/problem+json"
    page = await get(gateway, f"/trajectories/{name}")
    assert (page.status, MANIFEST in page.text) == (410, True)
    listed = (await api(gateway, "trajectories", agent=name))["items"]
    assert [(row["trajectory_id"], row["events"]) for row in listed] == [(name, 4)]


@pytest.mark.usefixtures("put_away")
async def test_what_is_whole_is_read_as_ever_and_exports_count_what_they_leave_out(gateway: ServiceProcess) -> None:
    assert (await api(gateway, "trajectories/kept"))["event_count"] == 4
    assert (await get(gateway, "/api/v1/trajectories/never")).status == 404
    export = await get(gateway, "/api/v1/export/trajectories.jsonl")
    assert [json.loads(line)["metadata"]["trajectory_id"] for line in export.text.splitlines()] == ["kept"]
    assert export.headers["x-flywheel-archived"] == "2"


@pytest.mark.usefixtures("put_away")
async def test_validation_takes_it_for_no_damage_and_verifies_the_archive(environment: dict[str, str]) -> None:
    _, out, err = await flywheel(environment, "validate", "--archive", "--json")
    checks = {check["check"]: check for check in json.loads(out)}
    assert checks["no_gaps"]["looked_at"] == 1
    assert [check["examples"] for check in checks.values() if "gone" in str(check) or "half" in str(check)] == []
    assert (checks["days_verify"]["verdict"], checks["days_verify"]["looked_at"]) == ("PASS", 1)
    assert "2 trajectories not looked at" in err


@pytest.mark.usefixtures("put_away")
async def test_the_days_are_listed(environment: dict[str, str]) -> None:
    status, out, _ = await flywheel(environment, "events", "days", "--json")
    listed = {day["day"]: day for day in json.loads(out)}
    old = listed[str(OLD)]
    assert (old["state"], old["events"], old["manifest"]) == ("dropped", 6, MANIFEST)
    assert listed[str(days_ago(1))]["database_bytes"] > 0
    assert status == 0
    _, out, _ = await flywheel(environment, "events", "days")
    assert f"{OLD}  dropped" in out


@pytest_asyncio.fixture
async def archiver(pool: asyncpg.Pool, connections: Any, object_store: S3ObjectStore) -> AsyncIterator[Archiver]:
    producer = Producer(connections.kafka)
    await producer.start()
    relay = OutboxRelay(pool, producer)
    yield Archiver(pool, object_store, relay, ArchiverSettings(), Health())
    await producer.close()


@pytest.mark.usefixtures("put_away")
async def test_a_trajectory_that_is_no_longer_whole_is_not_trained_on(pool: asyncpg.Pool, archiver: Archiver) -> None:
    for name in ("half", "kept"):
        message = TrajectoryClosed(
            trajectory_id=name, revision=2, status=Status.COMPLETED, split="train", agent_id="a",
            window_id="2026-11-23T04", steps=1, llm_calls=1, missing=0, closed_at=datetime.now(UTC),
        )  # fmt: skip
        await archiver.on_trajectories([Record(TRAJECTORIES.name, 0, 0, name.encode(), message.dump(), (), 0)])
    assert [row["trajectory_id"] for row in await pool.fetch("SELECT trajectory_id FROM archive_queue")] == ["kept"]
    # Should one have been queued before its day went: it is left out of its batch, not cut short.
    await pool.execute(
        "INSERT INTO archive_queue (trajectory_id, revision, channel, group_id, latest_revision)"
        " VALUES ('half', 1, 'default', 'g', 1)"
    )
    await pool.execute("UPDATE archive_queue SET batch_id = 'b'")
    async with pool.acquire() as conn:
        found = [row.member.trajectory_id async for rows in archiver_store.rows_of(conn, "b") for row in rows]
    assert found == ["kept"]
