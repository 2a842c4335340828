"""How old the oldest record is that is not durable yet, by partition. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Partition = TypeVar("Partition", bound=Hashable)


class Ages(Generic[Partition]):
    """Times are in ms since 1970: records' stamps, and the looks at how far behind we are.

    Exact while the oldest record is in hand. Else it is at least as new as the last durable one, and as the last look
    that found us caught up: the answer is never too small by more than the time between two looks, unless neither is
    known yet; then the age counts from the first look.
    """

    def __init__(self) -> None:
        self._in_hand: dict[Partition, int] = {}
        self._bound: dict[Partition, int] = {}  # nothing that waits is older than this
        self._first: dict[Partition, int] = {}  # where that is unknown: the first look
        self._behind: dict[Partition, int] = {}

    def handling(self, oldest: Mapping[Partition, int]) -> None:
        """Say which batch is in hand: the stamp of its first record in each partition."""
        self._in_hand.update(oldest)

    def durable(self, latest: Mapping[Partition, int]) -> None:
        """Say that it is durable: the stamp of its last record in each partition."""
        for partition, stamp in latest.items():
            self._in_hand.pop(partition, None)
            self._bound[partition] = max(stamp, self._bound.get(partition, stamp))

    def abandoned(self) -> None:
        """Say that nothing is in hand any more."""
        self._in_hand.clear()

    def look(self, now_ms: int, behind: Mapping[Partition, int]) -> None:
        """Take note of how many records of each of our partitions are not durable; forget other partitions."""
        self._behind = dict(behind)
        self._bound = {partition: stamp for partition, stamp in self._bound.items() if partition in behind}
        self._bound |= {partition: now_ms for partition, records in behind.items() if not records}
        self._first = {partition: self._first.get(partition, now_ms) for partition in behind}

    def seconds(self, now_ms: int) -> dict[Partition, float]:
        """Return the age of the oldest record that is not durable, 0 where there is none, as the last look saw it."""
        return {
            partition: max(0, now_ms - self._since(partition)) / 1000 if records else 0.0
            for partition, records in self._behind.items()
        }

    def _since(self, partition: Partition) -> int:
        known = self._in_hand.get(partition, self._bound.get(partition))
        return self._first[partition] if known is None else known
