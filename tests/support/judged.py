"""Outcomes for the recorder's tests, and its transactions on them without a broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg

from flywheel.events import Action, Event, Step, TrajectoryEnded, TrajectoryStarted, dump
from flywheel.outcomes import Outcome, Rule
from flywheel.storage.rewards import reward_entries
from flywheel.stream.record import Record
from flywheel.topics import EVENTS, OUTCOMES
from services.recorder.decode import decode
from services.recorder.outcomes.decode import decode as decode_outcome
from services.recorder.outcomes.store import OutcomeStore
from services.recorder.store import Store
from tests.support.recording import envelope
from tests.support.world import unique


def outcome(*rules: Rule, **fields: Any) -> Outcome:
    """Return an outcome that an oracle published about ``m-1``."""
    return Outcome(**{"subject": "m-1", "source": "oracle", "rules": list(rules), **fields})


def played(name: str, scenario: str, *, steps: int = 3, reward: float | None = None) -> list[Event]:
    """A closed trajectory that buys in every step."""
    events: list[Event] = [TrajectoryStarted(**envelope(name, 0), scenario_id=scenario)]
    for step in range(steps):
        action = Action(name="buy", parameters={"market": "m-1", "n": step})
        events.append(Step(**envelope(name, step + 1), step=step, action=action, reward=reward))
    return [*events, TrajectoryEnded(**envelope(name, steps + 1))]


class Transactions:
    """The recorder's transactions, one at a time, as its loops make them."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.events = Store(pool, consumer=unique("consumer"), topic=EVENTS.name)
        self.outcomes = OutcomeStore(pool, consumer=unique("consumer"), topic=OUTCOMES.name)

    async def store(self, events: Sequence[Event]) -> None:
        """Store a batch of events."""
        records = [Record(EVENTS.name, 0, n, None, dump(event), (), 0) for n, event in enumerate(events)]
        await self.events.write([decode(record) for record in records], [])

    async def publish(self, outcomes: Sequence[Outcome]) -> Mapping[str, int]:
        """Store a batch of outcomes; return what became of them."""
        records = [Record(OUTCOMES.name, 0, n, None, one.dump(), (), 0) for n, one in enumerate(outcomes)]
        return (await self.outcomes.write([decode_outcome(record) for record in records], [])).counts

    async def apply(self) -> list[Any]:
        """Apply everything; return what was announced."""
        announced: list[Any] = []
        while (some := await self.outcomes.apply_some()) is not None:
            announced += some
        return announced

    async def row(self, trajectory_id: str) -> dict[str, Any]:
        """Return the row of a trajectory."""
        row = await self.pool.fetchrow("SELECT * FROM trajectories WHERE trajectory_id = $1", trajectory_id)
        assert row is not None
        return dict(row)

    async def entries(self, trajectory_id: str) -> list[tuple[int | None, float]]:
        """Return step and value of a trajectory's entries."""
        async with self.pool.acquire() as conn:
            found = await reward_entries(conn, [trajectory_id])
        return [(entry.step, entry.value) for entry in found[trajectory_id]]
