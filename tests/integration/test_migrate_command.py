"""``python -m flywheel.storage``, which the cluster's migration job runs, on a real and empty database."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from flywheel.errors import EXIT_FATAL
from flywheel.storage import __main__ as command
from flywheel.storage import postgres
from tests.support.processes import ROOT
from tests.support.world import unique, with_database


async def migrate(dsn: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flywheel.storage", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=ROOT, env={**os.environ, "FLYWHEEL_POSTGRES": dsn, "PYTHONPATH": f"{ROOT / 'shared'}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def names() -> list[str]:
    return sorted(Path(path).name for path in (ROOT / "migrations").glob("*.sql"))


async def test_it_applies_what_is_new_and_then_nothing(database: str) -> None:
    name = unique("migrated").replace("-", "_")
    conn = await asyncpg.connect(database)
    try:
        await conn.execute(f"CREATE DATABASE {name}")
        status, out, _ = await migrate(with_database(database, name))
        assert (status, out.splitlines()) == (0, [f"applied {each}" for each in names()])
        assert await migrate(with_database(database, name)) == (0, "nothing to apply\n", "")
    finally:
        await conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await conn.close()


async def test_a_database_that_is_not_there_is_an_error_in_words(database: str) -> None:
    status, out, err = await migrate(with_database(database, "nowhere"))
    assert (status, out) == (EXIT_FATAL, "")
    assert "Postgres refuses us" in err and "Traceback" not in err


SLOW = [("1_slow.sql", "CREATE TABLE slow (); SELECT pg_sleep(2)"), ("2_next.sql", "CREATE TABLE next ()")]


@pytest_asyncio.fixture
async def empty(database: str) -> AsyncIterator[str]:
    """URL of a database without anything."""
    name = unique("empty").replace("-", "_")
    conn = await asyncpg.connect(database)
    await conn.execute(f"CREATE DATABASE {name}")
    yield with_database(database, name)
    await conn.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await conn.close()


async def test_a_migration_takes_its_time_and_others_wait_for_it(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_migrations", lambda: iter(SLOW))
    monkeypatch.setattr(postgres, "_COMMAND_TIMEOUT_S", 1.0)
    pool, other = await postgres.connect(empty), await postgres.connect(empty)
    try:
        with pytest.raises(TimeoutError):
            await pool.execute("SELECT pg_sleep(2)")
        applied = await asyncio.gather(postgres.migrate(pool), postgres.migrate(other))
        assert sorted(applied) == [[], ["1_slow.sql", "2_next.sql"]]
        assert await pool.fetchval("SELECT count(*) FROM slow") == 0
    finally:
        pool.terminate()
        other.terminate()


async def test_a_migration_that_is_never_done_is_named_and_leaves_nothing(
    empty: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(postgres, "_migrations", lambda: iter(SLOW))
    monkeypatch.setattr(postgres, "_MIGRATION_TIMEOUT_S", 0.5)
    assert await command.run(empty) == EXIT_FATAL
    assert capsys.readouterr().err == "migration 1_slow.sql: not done within 0.5 s\n"
    conn = await asyncpg.connect(empty)
    assert await conn.fetchval("SELECT to_regclass('slow')") is None
    await conn.close()


async def test_a_database_that_is_silent_is_an_error_in_words(
    empty: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(postgres, "_COMMAND_TIMEOUT_S", 1.0)
    conn = await asyncpg.connect(empty)
    await conn.execute(
        "BEGIN; CREATE TABLE schema_migrations (name text PRIMARY KEY, digest text, applied_at timestamptz)"
    )
    assert await command.run(empty) == EXIT_FATAL  # behind an open transaction that makes the same table
    assert capsys.readouterr().err == "Postgres did not answer in time\n"
    await conn.close()
