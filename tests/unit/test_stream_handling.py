"""What becomes of batches: retries, bisection, and how far offsets move."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.errors import PoisonError, TransientError
from flywheel.health import Health
from flywheel.retry import LONGEST_DELAY_S, Stopped, backoff, retry_in_place
from flywheel.storage.postgres import data_error, transient
from flywheel.stream.dead import DeadLetters, dead_headers
from flywheel.stream.handling import as_poison, handle_batch
from flywheel.stream.positions import Item, Move, moves_of, spans_of
from flywheel.stream.record import Record
from flywheel.topics import EVENTS


class Collected:
    """Takes dead letters, as far as the bisection can tell."""

    def __init__(self) -> None:
        self.letters: list[tuple[Record, PoisonError]] = []

    async def put(self, record: Record, error: PoisonError, attempts: int = 1) -> None:
        self.letters.append((record, error))


def records(count: int, partition: int = 0) -> list[Record]:
    return [Record(EVENTS.name, partition, n, b"k", str(n).encode(), (), 0) for n in range(count)]


async def run(batch: Sequence[Record], bad: set[int], stop: asyncio.Event | None = None) -> tuple[list[int], list[int]]:
    dead, done = Collected(), []

    async def handler(part: Sequence[Record]) -> None:
        if any(record.offset in bad for record in part):
            raise PoisonError("bad", "a test says so")
        done.extend(record.offset for record in part)

    await handle_batch(
        batch, handler, dead=cast(DeadLetters, dead), health=Health(), check="db", stop=stop or asyncio.Event()
    )
    return done, [record.offset for record, _ in dead.letters]


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_exactly_the_bad_records_are_dead_letters_and_the_rest_is_handled_once_in_order(
    size: int, bad: set[int]
) -> None:
    done, dead = asyncio.run(run(records(size), bad))
    assert done == [n for n in range(size) if n not in bad]
    assert dead == sorted(n for n in bad if n < size)


async def test_a_transient_error_is_retried_with_readiness_false_until_it_passes() -> None:
    health, seen, left = Health(), [], 3

    async def work() -> str:
        nonlocal left
        if left:
            left -= 1
            seen.append(health.ready_report().ok)
            raise TransientError("away", retry_after=0.001)
        seen.append(health.ready_report().ok)
        return "done"

    assert await retry_in_place(work, health=health, check="db", stop=asyncio.Event()) == "done"
    assert seen == [False] * 4
    assert health.ready_report().ok


async def test_waiting_ends_when_the_service_is_asked_to_stop() -> None:
    stop = asyncio.Event()

    async def work() -> None:
        stop.set()
        raise TransientError("away", retry_after=60)

    with pytest.raises(Stopped):
        await retry_in_place(work, health=Health(), check="db", stop=stop)


async def test_what_is_neither_transient_nor_poison_is_raised_as_it_is() -> None:
    async def handler(_: Sequence[Record]) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        await handle_batch(
            records(3), handler, dead=cast(DeadLetters, Collected()), health=Health(), check="db", stop=asyncio.Event()
        )


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_pause_between_attempts_grows_to_a_cap_and_is_never_nothing(attempt: int, chance: float) -> None:
    assert 0 < backoff(attempt, lambda: chance) <= LONGEST_DELAY_S
    assert backoff(attempt, lambda: 1.0) <= backoff(attempt + 1, lambda: 1.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1))
def test_offsets_move_from_what_is_stored_to_after_the_last_record(reads: list[tuple[int, int]]) -> None:
    at = dict.fromkeys(range(4), 100)
    stored, items = dict(at), []
    for partition, count in reads:
        items += [Item[None](Record("t", partition, at[partition] + n, None, None, (), 0)) for n in range(count)]
        at[partition] += count
    touched = sorted({partition for partition, _ in reads})
    assert moves_of(spans_of(items), stored) == [Move(partition, 100, at[partition]) for partition in touched]


def test_a_dead_letter_says_where_it_came_from_and_keeps_its_own_headers() -> None:
    record = Record("flywheel.events", 3, 42, b"k", b"v", (("trace", b"abc"), ("flywheel-reason", b"older")), 1700)
    headers = dead_headers(record, PoisonError("schema", "seq: too small"), 2, "recorder")
    assert headers == {
        "trace": b"abc", "flywheel-topic": "flywheel.events", "flywheel-partition": "3", "flywheel-offset": "42",
        "flywheel-timestamp-ms": "1700", "flywheel-error": "PoisonError", "flywheel-reason": "schema",
        "flywheel-message": "seq: too small", "flywheel-attempts": "2", "flywheel-schema-version": "1",
        "flywheel-service": "recorder",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "passes", "blames_a_value"),
    [
        (ConnectionRefusedError(), True, False),
        (TimeoutError(), True, False),
        (asyncpg.AdminShutdownError("x"), True, False),
        (asyncpg.CannotConnectNowError("x"), True, False),
        (asyncpg.DeadlockDetectedError("x"), True, False),
        (asyncpg.DiskFullError("x"), True, False),
        (asyncpg.ConnectionDoesNotExistError("x"), True, False),
        (asyncpg.InterfaceError("connection is closed"), True, False),
        (asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"), True, False),
        (asyncpg.InterfaceError("another operation is in progress"), False, False),
        (asyncpg.CharacterNotInRepertoireError("x"), False, True),
        (asyncpg.NumericValueOutOfRangeError("x"), False, True),
        (asyncpg.UndefinedTableError("x"), False, False),
        (KeyError("a bug"), False, False),
    ],
)
def test_errors_of_the_database_are_told_apart(error: Exception, passes: bool, blames_a_value: bool) -> None:
    assert (transient(error), data_error(error)) == (passes, blames_a_value)


def test_a_dead_letter_of_the_databases_making_quotes_no_row() -> None:
    refused = asyncpg.NumericValueOutOfRangeError('value "my secret" is out of range for type integer')
    refused.detail, refused.column_name, refused.table_name = "Failing row contains (my secret)", "seq", "events"  # pyright: ignore[reportAttributeAccessIssue]
    driver = asyncpg.exceptions.DataError("invalid input for query argument $1: 'my secret'")
    for error in (refused, driver):
        poison = as_poison(error)
        assert poison is not None and poison.reason == "database"
        assert "secret" not in str(poison)
    assert str(as_poison(refused)) == "NumericValueOutOfRangeError (sqlstate 22003, table events, column seq)"
