"""Work that takes its time keeps its loop alive; what comes of it is passed on."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from flywheel import retry
from flywheel.health import Health
from flywheel.retry import beating
from services.recorder.outcomes.app import Outcomes
from services.recorder.outcomes.store import Pending


class Ticks(Health):
    """Health that says when a loop has ticked so many times."""

    def __init__(self, enough: int) -> None:
        super().__init__()
        self.names: list[str] = []
        self.enough = asyncio.Event()
        self._enough = enough

    def beat(self, name: str, **_: Any) -> None:
        self.names.append(name)
        if len(self.names) >= self._enough:
            self.enough.set()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_BEAT_S", 0.001)


async def test_a_loop_ticks_while_its_work_takes_its_time() -> None:
    health = Ticks(5)

    async def work() -> str:
        await health.enough.wait()
        return "done"

    async with asyncio.timeout(30):
        assert await beating(work(), health=health, beat="loop") == "done"
    assert set(health.names) == {"loop"}


async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise KeyError("why")

    with pytest.raises(KeyError):
        await beating(work(), health=Health(), beat="loop")


async def test_who_gives_up_ends_the_work() -> None:
    health, ended = Ticks(2), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(beating(work(), health=health, beat="loop"))
    async with asyncio.timeout(30):
        await health.enough.wait()
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled() and ended.is_set()


class Frozen:
    """The storage of outcomes in a database that answers nothing until it is thawed."""

    def __init__(self) -> None:
        self.thawed = asyncio.Event()

    async def pending(self) -> Pending:
        await self.thawed.wait()
        return Pending(0, 0.0)


async def test_the_loop_that_applies_outcomes_lives_while_the_database_is_frozen() -> None:
    store, health, stop = Frozen(), Ticks(5), asyncio.Event()
    applying = asyncio.create_task(Outcomes(cast(Any, store), cast(Any, None), health).apply(stop))
    async with asyncio.timeout(30):
        await health.enough.wait()
        assert set(health.names) == {"apply"} and not applying.done()
        stop.set()
        store.thawed.set()
        await applying
