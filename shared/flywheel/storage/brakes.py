"""The table ``brakes``: which consumers are paused because of dead letters, why, and who released them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from flywheel.storage.postgres import Connection

_LATEST = """SELECT id, released_at IS NULL AS "on", reason, allowance FROM brakes
              WHERE consumer = $1 AND topic = $2 ORDER BY id DESC LIMIT 1"""

#: Not when a newer one came and went meanwhile: that one was judged by what the release forgave.
_PULL = """INSERT INTO brakes (consumer, topic, reason, share, records, causes, examples)
           SELECT $1, $2, $4, $5, $6, $7::jsonb, $8::jsonb
            WHERE NOT EXISTS (SELECT 1 FROM brakes WHERE consumer = $1 AND topic = $2 AND id > $3)
           ON CONFLICT (consumer, topic) WHERE released_at IS NULL DO NOTHING"""

_SPEND = "UPDATE brakes SET allowance = greatest(0, allowance - $2) WHERE id = $1 AND allowance > 0"

_ON = """SELECT id, consumer, topic, since, reason, share, records, causes::text, examples::text FROM brakes
          WHERE released_at IS NULL ORDER BY topic, consumer"""

_RELEASE = """UPDATE brakes SET released_at = clock_timestamp(), released_by = $2, allowance = $3
               WHERE id = $1 AND released_at IS NULL"""


@dataclass(frozen=True, slots=True)
class BrakeState:
    """The latest brake of one consumer on one topic; id 0: there was never one."""

    id: int = 0
    on: bool = False
    reason: str = ""
    allowance: int = 0


@dataclass(frozen=True, slots=True)
class Brake:
    """A brake that is on, as a person is shown it."""

    id: int
    consumer: str
    topic: str
    since: datetime
    reason: str
    share: float
    records: int
    causes: dict[str, int]
    examples: list[dict[str, Any]]


class Brakes:
    """The brake of one consumer on one topic. Raises the database's errors as they are."""

    def __init__(self, pool: asyncpg.Pool, *, consumer: str, topic: str) -> None:
        self._pool = pool
        self._consumer = consumer
        self._topic = topic

    async def read(self) -> BrakeState:
        """Return how it is."""
        row = await self._pool.fetchrow(_LATEST, self._consumer, self._topic)
        return BrakeState(**row) if row else BrakeState()

    async def pull(
        self, known: int, reason: str, share: float, records: int, causes: dict[str, int],
        examples: Sequence[dict[str, Any]],
    ) -> None:  # fmt: skip
        """Put it on, unless it is, or one newer than ``known`` has been released meanwhile."""
        await self._pool.execute(
            _PULL, self._consumer, self._topic, known, reason, share, records, json.dumps(causes),
            json.dumps(list(examples)),
        )  # fmt: skip

    async def spend(self, brake: int, records: int) -> bool:
        """Take so many records off what its release allowed; return False when nothing was left of that."""
        return await self._pool.execute(_SPEND, brake, records) == "UPDATE 1"


async def brakes_on(conn: Connection) -> list[Brake]:
    """Return every brake that is on."""
    rows = [dict(row) for row in await conn.fetch(_ON)]
    return [
        Brake(**{**row, "causes": json.loads(row["causes"]), "examples": json.loads(row["examples"])}) for row in rows
    ]


async def release(conn: Connection, brake: int, by: str, allowance: int) -> bool:
    """Release a brake: its consumers go on, the next ``allowance`` records unjudged. False when it was not on."""
    return await conn.execute(_RELEASE, brake, by, allowance) == "UPDATE 1"
