"""Retention that is told to stop while it reads an archived day."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flywheel import archive, naming
from flywheel.health import Health
from flywheel.settings import ArchiverSettings
from flywheel.storage.memory import MemoryObjectStore
from flywheel.storage.postgres import connect
from services.archiver.days import DayKeeper
from tests.support.days import days_ago, make, state, store_settled

pytestmark = pytest.mark.stack

SETTINGS = ArchiverSettings(retention_days=30)
OLD = days_ago(40)


class Read(MemoryObjectStore):
    """Notes every file that is read, and calls ``seen`` then."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []
        self.seen: Callable[[], object] = lambda: None

    def download(self, key: str, path: Any) -> None:
        super().download(key, path)
        self.read.append(key)
        self.seen()


async def test_a_stop_waits_for_no_more_than_one_file_and_the_next_try_reads_each_once(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_PART_EVENTS", 1)
    pool = await connect(database)
    await make(pool, OLD)
    await store_settled(pool, "t", OLD)
    objects, stop = Read(), asyncio.Event()
    loop = asyncio.get_running_loop()
    files = [naming.day_data(OLD, number) for number in range(4)]

    async def stop_now() -> None:
        stop.set()

    objects.seen = lambda: asyncio.run_coroutine_threadsafe(stop_now(), loop).result()
    await DayKeeper(pool, objects, SETTINGS, Health()).run(stop)  # written, and stopped while it is read back
    assert (objects.read, (await state(pool, OLD)).state) == (files[:1], "sealed")
    stop.clear()
    await DayKeeper(pool, objects, SETTINGS, Health()).run(stop)  # found whole, and stopped while that is read
    assert (objects.read, (await state(pool, OLD)).state) == (files[:1] * 2, "sealed")
    objects.read.clear()
    objects.seen = lambda: None
    await DayKeeper(pool, objects, SETTINGS, Health()).cycle()
    assert (objects.read, (await state(pool, OLD)).state) == (files, "dropped")
    await pool.close()
