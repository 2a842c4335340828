"""The stored offsets: how far one consumer is with one topic, moved in the transactions that store its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel.stream.positions import Fenced, Move

#: Where there is no offset yet, or retention overtook it, the beginning is stored.
_POSITIONS = """
INSERT INTO stream_offsets AS known (consumer, topic, partition, next_offset)
SELECT $1, $2, partition, beginning FROM unnest($3::int[], $4::bigint[]) AS asked (partition, beginning)
 ORDER BY partition
ON CONFLICT (consumer, topic, partition)
DO UPDATE SET next_offset = greatest(known.next_offset, excluded.next_offset)
RETURNING partition, next_offset
"""

_REACHED = "SELECT partition, next_offset FROM stream_offsets WHERE consumer = $1 AND topic = $2"

#: Moves each offset only from where it was expected to be: a process that lost its partition moves nothing.
_MOVE = """
UPDATE stream_offsets AS known SET next_offset = move.next, updated_at = clock_timestamp()
  FROM unnest($3::int[], $4::bigint[], $5::bigint[]) AS move (partition, expected, next)
 WHERE known.consumer = $1 AND known.topic = $2 AND known.partition = move.partition
   AND known.next_offset = move.expected
RETURNING known.partition
"""


class StoredOffsets:
    """The rows of ``stream_offsets`` of one consumer of one topic. Raises the database's errors as they are."""

    def __init__(self, *, consumer: str, topic: str) -> None:
        self._consumer = consumer
        self._topic = topic

    async def positions(self, conn: Any, beginnings: Mapping[int, int]) -> dict[int, int]:
        """Return the next offset of each partition; its beginning where none, or an older one, was stored."""
        rows = await conn.fetch(_POSITIONS, self._consumer, self._topic, list(beginnings), list(beginnings.values()))
        return {row["partition"]: row["next_offset"] for row in rows}

    async def reached(self, conn: Any) -> dict[int, int]:
        """Return the next offset of every partition, whichever process has it."""
        return dict(await conn.fetch(_REACHED, self._consumer, self._topic))

    async def move(self, conn: Any, moves: Sequence[Move]) -> None:
        """Move offsets in the caller's transaction. Raises Fenced when one is not where it was expected."""
        moved = await conn.fetch(
            _MOVE, self._consumer, self._topic,
            [move.partition for move in moves], [move.expected for move in moves], [move.next for move in moves],
        )  # fmt: skip
        if len(moved) != len(moves):
            raise Fenced(f"{len(moves) - len(moved)} of {len(moves)} partitions moved elsewhere")
