"""Storage of outcomes, and of how far they are applied to the trajectories that they judge."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from flywheel.messages import TrajectoryClosed
from flywheel.stream.positions import Move, Rejected
from services.recorder.announcing import announce
from services.recorder.ledger.store import Changes, Judged, bring_in_line, exclude, readable
from services.recorder.offsets.store import StoredOffsets
from services.recorder.outcomes import statements as sql
from services.recorder.outcomes.decode import Choice, Decoded, choose

#: Trajectories judged in one transaction, and the entries (steps times outcomes) that they may get together; one alone
#: may get more.
_TRAJECTORIES_AT_ONCE = 200
_ENTRIES_AT_ONCE = 5000

#: Longest wait for batches of events that are being stored: everybody's next batch waits behind it.
_PATIENCE_S = 0.2
_MOST_PATIENCE_S = 5.0

#: What this release cannot read is put off for so long, in seconds: an upgraded recorder takes it, or a correction
#: comes.
_PUT_OFF_S = 30.0


@dataclass(frozen=True, slots=True)
class Pending:
    """What is left to apply: how many scenarios and windows, and how long the oldest waits, in seconds."""

    count: int
    oldest_s: float


class OutcomeStore:
    """The tables ``outcomes``, ``outcome_work``, ``reward_entries``, for one consumer of one topic."""

    def __init__(self, pool: asyncpg.Pool, *, consumer: str, topic: str) -> None:
        self._pool = pool
        self._offsets = StoredOffsets(consumer=consumer, topic=topic)
        self._put_off: dict[Judged, float] = {}
        self._patience_s = _PATIENCE_S

    async def positions(self, beginnings: Mapping[int, int]) -> dict[int, int]:
        """Return the next offset of each partition; its beginning where none, or an older one, was stored."""
        return await self._offsets.positions(self._pool, beginnings)

    async def write(self, outcomes: Sequence[Decoded], moves: Sequence[Move]) -> Choice:
        """Store what is newer than what is stored, with the offsets and what is to be applied: all of it, or nothing.

        Raises Rejected for those that contradict what is stored, Fenced when the offsets are not where they were
        expected.
        """
        try:
            choice = await self._write(outcomes, moves)
        except asyncpg.LockNotAvailableError:  # more patience next time: batches of events may take long here
            self._patience_s = min(2 * self._patience_s, _MOST_PATIENCE_S)
            raise
        self._patience_s = _PATIENCE_S
        for one in choice.newest:
            self._put_off.pop(one[:2], None)
        return choice

    async def _write(self, outcomes: Sequence[Decoded], moves: Sequence[Move]) -> Choice:
        async with self._pool.acquire() as conn, conn.transaction():
            await exclude(conn, self._patience_s)
            await self._offsets.move(conn, moves)
            about = sorted({one.about for one in outcomes})
            known = await conn.fetch(sql.KNOWN, *zip(*about, strict=True)) if about else []
            choice = choose(
                outcomes,
                {about[row["place"] - 1]: (row["revision"], row["digest"]) for row in known},
            )
            if choice.reasons:
                raise Rejected(choice.reasons)
            if choice.newest:
                await conn.executemany(sql.STORE, [_row(one) for one in choice.newest.values()])
                judged = sorted({one.about[:2] for one in choice.newest.values()})
                await conn.execute(sql.QUEUE, *zip(*judged, strict=True))
        return choice

    async def apply_some(self) -> list[TrajectoryClosed] | None:
        """Apply outcomes to the next portion of trajectories, in one transaction; return what it revised.

        None when nothing is left that another process is not at. Whoever dies in between is resumed by the next one.
        What this release cannot read is left for later, and for others.
        """
        changes = Changes()
        async with self._pool.acquire() as conn, conn.transaction():
            put_off = self._still_put_off()
            work = await conn.fetchrow(sql.NEXT_WORK, [scope for scope, _ in put_off], [key for _, key in put_off])
            if work is None:
                return None
            outcomes = await readable(conn, work["scope"], work["key"])
            if outcomes is None:
                self._put_off[work["scope"], work["key"]] = time.monotonic() + _PUT_OFF_S
                return []
            if not work["after"]:  # we begin now: whatever was queued for the same before is applied with it
                await conn.execute(sql.COALESCE, work["scope"], work["key"], work["id"])
            page = await conn.fetch(
                sql.PAGE[work["scope"]], work["key"], work["after_time"], work["after"], _TRAJECTORIES_AT_ONCE
            )
            portion = _portion(page, outcomes)
            revised: list[TrajectoryClosed] = []
            if portion:
                rows = await conn.fetch(sql.LOCK, portion)
                changes = await bring_in_line(conn, rows, revise=True)
                revised = await announce(conn, [row for row in changes.rows if row["revision"]])
            if len(portion) == len(page) < _TRAJECTORIES_AT_ONCE:
                await conn.execute("DELETE FROM outcome_work WHERE id = $1", work["id"])
            else:
                last = page[len(portion) - 1]
                await conn.execute(sql.REACHED, work["id"], last["first_ingested_at"], last["trajectory_id"])
        changes.count()
        return revised

    async def pending(self) -> Pending:
        """Return what is left to apply."""
        row = await self._pool.fetchrow(sql.PENDING)
        assert row is not None  # an aggregate always has one row
        return Pending(*row)

    def _still_put_off(self) -> list[Judged]:
        now = time.monotonic()
        self._put_off = {judged: until for judged, until in self._put_off.items() if until > now}
        return list(self._put_off)


def _portion(page: Sequence[Mapping[str, Any]], outcomes: int) -> list[str]:
    entries = 0
    for count, row in enumerate(page, 1):
        entries += row["steps"] * max(1, outcomes)
        if entries >= _ENTRIES_AT_ONCE:
            return [row["trajectory_id"] for row in page[:count]]
    return [row["trajectory_id"] for row in page]


def _row(one: Decoded) -> tuple[Any, ...]:
    outcome = one.outcome
    return (
        *one.about, outcome.outcome_id, outcome.revision, outcome.retracted, outcome.time, one.digest, one.partition,
        one.offset, one.body,
    )  # fmt: skip
