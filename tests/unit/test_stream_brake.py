"""The brake: when it is pulled, what it holds back, and how it is released."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.errors import PoisonError, TransientError
from flywheel.health import Health
from flywheel.retry import Stopped
from flywheel.storage.brakes import BrakeState
from flywheel.stream import brake as brake_module
from flywheel.stream.brake import Brake, Revoked
from flywheel.stream.positions import Item
from flywheel.stream.record import Record
from flywheel.stream.share import DeadShare
from flywheel.topics import EVENTS

Dead = list[tuple[int, str]]


def bad(*indices: int) -> Dead:
    return [(index, "schema") for index in indices]


def test_the_share_is_judged_only_when_the_window_is_full() -> None:
    share = DeadShare(0.5, 10)
    assert share.judge(9, bad(*range(9))) is None
    share.observe(9, bad(*range(9)))
    trip = share.judge(1, [])
    assert trip is not None
    assert (trip.share, trip.records, trip.causes) == (0.9, 10, {"schema": 9})


def test_a_share_at_the_limit_passes_and_old_records_are_forgotten() -> None:
    share = DeadShare(0.5, 10)
    for dead in (bad(*range(5)), bad(*range(5, 10))):
        assert share.judge(10, dead) is None
        share.observe(10, dead)
    assert share.share == 0.5
    share.observe(10, [])
    assert share.share == 0.0


def test_a_limit_of_one_never_pulls_it() -> None:
    assert DeadShare(1.0, 10).judge(100, bad(*range(100))) is None


def test_it_says_what_the_dead_letters_were() -> None:
    trip = DeadShare(0.5, 10).judge(10, [(0, "schema"), *((n, "not_json") for n in range(1, 8))])
    assert str(trip) == ("80% of the last 10 records are dead letters (not_json 7, schema 1), above the limit of 50%")


@given(
    st.integers(1, 12), st.floats(0.05, 1), st.lists(st.lists(st.booleans(), max_size=20), min_size=1, max_size=6)
)  # fmt: skip
def test_it_judges_as_if_each_record_were_looked_at(window: int, limit: float, batches: list[list[bool]]) -> None:
    share, recent = DeadShare(limit, window), deque[bool](maxlen=window)
    for batch in batches:
        expected = False
        for dead in batch:
            recent.append(dead)
            expected |= len(recent) == window and sum(recent) > limit * window
        dead = bad(*(n for n, one in enumerate(batch) if one))
        assert (share.judge(len(batch), dead) is not None) == expected
        if expected:  # who is released begins with an empty window
            share.clear()
            recent.clear()
            continue
        share.observe(len(batch), dead)
        assert share.share == (sum(recent) / len(recent) if recent else 0.0)


class Table:
    """The brakes of one consumer on one topic, as the database keeps them: the contract of ``Kept``."""

    def __init__(self) -> None:
        self.state = BrakeState()
        self.pulled: list[tuple[str, dict[str, int], Sequence[dict[str, Any]]]] = []
        self.away = False

    async def read(self) -> BrakeState:
        self._answer()
        return self.state

    async def pull(
        self, known: int, reason: str, share: float, records: int, causes: dict[str, int],
        examples: Sequence[dict[str, Any]],
    ) -> None:  # fmt: skip
        self._answer()
        if self.state.id <= known and not self.state.on:
            self.state = BrakeState(self.state.id + 1, True, reason)
            self.pulled.append((reason, causes, examples))

    async def spend(self, brake: int, records: int) -> bool:
        self._answer()
        state = self.state
        self.state = BrakeState(state.id, state.on, state.reason, max(0, state.allowance - records))
        return state.allowance > 0

    def release(self, allowance: int = 0) -> None:
        self.state = BrakeState(self.state.id, False, self.state.reason, allowance)

    def _answer(self) -> None:
        if self.away:
            raise TransientError("away", retry_after=0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brake_module, "_LOOK_PAUSED_S", 0.001)


def items(good: int, dead: int) -> list[Item[None]]:
    made = [Item[None](Record(EVENTS.name, 0, n, None, b"x", (), 0)) for n in range(good + dead)]
    for item in made[good:]:
        item.poison = PoisonError("not_json", "no JSON")
    return made


class World:
    def __init__(self, table: Table | None = None) -> None:
        self.table = table or Table()
        self.health = Health()
        self.stop = asyncio.Event()
        self.ours = True
        self.brake = Brake(self.table, DeadShare(0.5, 10), EVENTS, self.health, beat="loop")

    async def handle(self, batch: list[Item[None]]) -> None:
        await self.brake.permit(batch, stop=self.stop, ours=lambda: self.ours)
        self.brake.settle(batch)

    def start(self, batch: list[Item[None]]) -> asyncio.Task[None]:
        return asyncio.create_task(self.handle(batch))

    async def paused(self) -> str:
        while not (problems := self.health.ready_report().problems.get(f"brake {EVENTS.name}")):
            await asyncio.sleep(0)
        return problems


async def test_it_pauses_before_what_tripped_it_is_handled_and_goes_on_when_released() -> None:
    world = World()
    await world.handle(items(10, 0))
    batch = world.start(items(0, 8))
    assert "60% of the last 10 records" in await world.paused()
    ((_, causes, examples),) = world.table.pulled
    assert causes == {"not_json": 6}
    assert examples[0] == {"partition": 0, "offset": 0, "reason": "not_json", "message": "no JSON"}
    assert not batch.done()
    world.table.release()
    await batch
    assert world.health.ready_report().ok


async def test_a_process_that_starts_while_it_is_on_is_paused_whatever_comes() -> None:
    table = Table()
    table.state = BrakeState(7, True, "as another saw it")
    world = World(table)
    batch = world.start(items(3, 0))
    assert "as another saw it" in await world.paused()
    table.release()
    await batch


async def test_the_window_starts_empty_after_a_release_by_whomever_it_was_pulled() -> None:
    world = World()
    await world.handle(items(5, 5))
    world.table.state = BrakeState(1, False, "came and went while we were asleep")
    await world.handle(items(0, 5))  # would have made it ten of ten
    assert world.table.pulled == []


async def test_what_a_release_allows_is_neither_judged_nor_counted() -> None:
    world = World()
    world.table.state = BrakeState(3, False, "", allowance=25)
    for _ in range(3):
        await world.handle(items(0, 10))
    assert world.table.state.allowance == 0
    batch = world.start(items(0, 10))
    await world.paused()
    assert [reason for reason, _, _ in world.table.pulled] == [
        "100% of the last 10 records are dead letters (not_json 10), above the limit of 50%"
    ]
    world.stop.set()
    with pytest.raises(Stopped):
        await batch


async def test_what_the_database_refuses_is_judged_with_the_rest_of_its_batch() -> None:
    world = World()
    batch = items(10, 0)
    await world.brake.permit(batch, stop=world.stop, ours=lambda: True)
    for item in batch[:6]:
        item.poison = PoisonError("conflict", "other bytes")
    again = asyncio.create_task(world.brake.permit(batch, stop=world.stop, ours=lambda: True))
    assert "conflict 6" in await world.paused()
    world.table.release()
    await world.paused()  # the whole batch is still more than half poison: nothing of it is buried unasked
    world.stop.set()
    with pytest.raises(Stopped):
        await again


async def test_while_the_database_is_away_it_pauses_all_the_same_and_is_kept_afterwards() -> None:
    world = World()
    await world.handle(items(10, 0))
    world.table.away = True
    batch = world.start(items(0, 8))
    while "postgres" not in world.health.ready_report().problems:
        await asyncio.sleep(0)
    assert not batch.done()
    world.table.away = False
    await world.paused()
    assert world.table.state.on
    world.table.release()
    await batch


async def test_partitions_that_go_elsewhere_take_their_records_along() -> None:
    world = World()
    batch = world.start(items(0, 10))
    await world.paused()
    world.ours = False
    with pytest.raises(Revoked):
        await batch


async def test_two_processes_that_pull_it_at_once_are_released_at_once() -> None:
    table = Table()
    worlds = [World(table), World(table)]
    batches = [world.start(items(2, 8)) for world in worlds]
    for world in worlds:
        await world.paused()
    assert len(table.pulled) == 1
    table.release(allowance=100)
    await asyncio.gather(*batches)
