"""What an events loop and its sink tell each other: decoded records, and how far a transaction moves the stored
offsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from flywheel.errors import PoisonError
from flywheel.stream.record import Record

Value = TypeVar("Value")


@dataclass(slots=True)
class Item(Generic[Value]):
    """A record and what it decoded to, or why it is a dead letter; ``buried`` once the broker has that."""

    record: Record
    value: Value | None = None
    poison: PoisonError | None = None
    buried: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """A stored offset goes from ``expected`` to ``next``: the first record of the partition that is not durable."""

    partition: int
    expected: int
    next: int


def caught_up(reached: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    """Return whether the stored offsets ``reached`` are at the end of every partition of a topic."""
    return all(reached.get(number, 0) >= end for number, end in ends.items())


class Fenced(Exception):  # noqa: N818 - not an error: the partition has another owner now
    """A stored offset is not what it was expected to be: somebody else went on from there. Nothing was written."""


class Rejected(Exception):  # noqa: N818 - not an error: an answer that names records
    """Nothing was written, because these records, by (partition, offset), can never be."""

    def __init__(self, reasons: dict[tuple[int, int], PoisonError]) -> None:
        super().__init__(f"{len(reasons)} records")
        self.reasons = reasons


class Sink(Protocol[Value]):
    """Where an events loop writes. The offsets live in the same place as what came of the records."""

    def decode(self, record: Record) -> Value:
        """Decode one record, purely. Raises PoisonError."""
        ...

    async def positions(self, beginnings: Mapping[int, int]) -> dict[int, int]:
        """Return the stored offset of each partition; store and return its beginning where there is none, or an
        older one.
        """
        ...

    async def write(self, items: Sequence[Item[Value]], moves: Sequence[Move]) -> None:
        """Write items (none of them poison) and move the offsets, in one transaction. Idempotent by the items' own ids.

        Raises Fenced, Rejected, TransientError; and database errors as they are.
        """
        ...


@dataclass(slots=True)
class Span:
    """The first and the last of some records of one partition, which are in order."""

    first: Record
    last: Record


def spans_of(items: Iterable[Item[Value]]) -> dict[int, Span]:
    """Return from where to where ``items``, in order within each partition, go, by partition."""
    spans: dict[int, Span] = {}
    for item in items:
        record = item.record
        span = spans.get(record.partition)
        if span is None:
            spans[record.partition] = Span(record, record)
        else:
            span.last = record
    return spans


def moves_of(spans: Mapping[int, Span], stored: Mapping[int, int]) -> list[Move]:
    """Return how far records move the offsets, by partition."""
    return [Move(number, stored[number], span.last.offset + 1) for number, span in sorted(spans.items())]
