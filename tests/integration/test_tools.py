"""``flywheel generate`` and ``flywheel validate`` on the real stack, through the command line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.support.command import Command, Done
from tests.support.processes import ServiceProcesses
from tests.support.world import rows

pytestmark = pytest.mark.stack

START = "2026-03-01T04:50:00"


@pytest_asyncio.fixture(scope="module")
async def flywheel(environment: dict[str, str], service_process: ServiceProcesses) -> AsyncIterator[Command]:
    async with service_process("recorder"):
        yield Command(environment)


@pytest_asyncio.fixture(scope="module")
async def generated(flywheel: Command) -> Done:
    """Rough traffic: late, repeated and out of order."""
    return await flywheel(
        "generate", "--groups", "6", "--group-size", "8", "--tokens", "200", "--seed", "3", "--start", START,
        "--late", "0.05", "--duplicates", "0.1", "--shuffles", "0.2", "--failures", "0.2", "--errors", "0.1", "--wait",
    )  # fmt: skip


async def test_generated_traffic_is_stored_once_whatever_its_order(generated: Done, database: str) -> None:
    assert generated.status == 0, generated.out + generated.err
    assert "48 trajectories" in generated.out
    assert "reconciled" in generated.out
    (row,) = await rows(database, "SELECT count(*), sum(missing) AS missing FROM trajectories")
    assert (row["count"], row["missing"]) == (48, 0)


async def test_publishing_the_same_seed_again_changes_nothing(
    flywheel: Command, generated: Done, database: str
) -> None:
    before = await rows(database, "SELECT trajectory_id, revision, events, total_reward FROM trajectories ORDER BY 1")
    again = await flywheel(
        "generate", "--groups", "6", "--tokens", "200", "--seed", "3", "--start", START, "--failures", "0.2",
        "--errors", "0.1", "--wait",
    )  # fmt: skip
    # One more, of another seed: once it is stored, the repeats before it have passed.
    other = await flywheel(
        "generate", "--trajectories", "1", "--seed", "4", "--start", START, "--tokens", "50", "--wait"
    )
    assert (again.status, other.status) == (0, 0), again.err + other.err
    after = await rows(
        database,
        "SELECT trajectory_id, revision, events, total_reward FROM trajectories"
        " WHERE starts_with(trajectory_id, 'gen-3-') ORDER BY 1",
    )
    assert [tuple(r) for r in after] == [tuple(r) for r in before]


async def test_validate_passes_what_the_generator_made(flywheel: Command, generated: Done) -> None:
    report = await flywheel("validate", "--json", "--prefix", "gen-3-")
    assert report.status == 0, report.out + report.err
    verdicts = {entry["check"]: entry["verdict"] for entry in json.loads(report.out)}
    assert set(verdicts.values()) == {"PASS"}


async def test_validate_says_no_data_of_a_window_without_any(flywheel: Command, generated: Done) -> None:
    report = await flywheel("validate", "--window", "1999-01-01T00")
    assert report.status == 0
    assert "no data" in report.out
    assert "PASS  " not in report.out
    assert (await flywheel("validate", "--window", "1999-01-01T00", "--strict")).status == 1


async def test_validate_names_what_was_changed_behind_the_recorders_back(
    flywheel: Command, generated: Done, database: str
) -> None:
    connection = await asyncpg.connect(database)
    try:
        spoilt = await connection.fetchval("SELECT min(trajectory_id) FROM trajectories WHERE steps > 1")
        await connection.execute(
            "UPDATE trajectories SET window_id = '1999-01-01T00', steps = steps + 1 WHERE trajectory_id = $1", spoilt
        )
        await connection.execute("DELETE FROM events WHERE trajectory_id = $1 AND kind = 'step' AND step = 0", spoilt)
        report = await flywheel("validate", "--json")
    finally:
        await connection.close()
    assert report.status == 1
    failed: dict[str, Any] = {entry["check"]: entry for entry in json.loads(report.out) if entry["verdict"] == "FAIL"}
    assert set(failed) == {"no_gaps", "window_right", "aggregates_agree"}
    assert all(entry["offending"] == 1 and spoilt in entry["examples"][0] for entry in failed.values())
