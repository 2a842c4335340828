"""``python -m flywheel.storage``, which the cluster's migration job runs, on a real and empty database."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import asyncpg

from flywheel.errors import EXIT_FATAL
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
