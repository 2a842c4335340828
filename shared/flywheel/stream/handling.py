"""What happens to a batch: handled once in one go, or taken apart until the one record that cannot be is a dead
letter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from flywheel.errors import PoisonError
from flywheel.health import Health
from flywheel.retry import retry_in_place
from flywheel.storage.postgres import data_error, transient
from flywheel.stream.dead import DeadLetters
from flywheel.stream.record import Record

Handler = Callable[[Sequence[Record]], Awaitable[None]]

#: Reason of a dead letter that the database refused, where nothing before it did.
DATABASE = "database"


def as_poison(error: BaseException) -> PoisonError | None:
    """Return the error as a PoisonError, bare, where it blames the input: our own, or a value the database refused."""
    if isinstance(error, PoisonError):
        return error.bare()
    if isinstance(error, Exception) and data_error(error):
        return PoisonError(DATABASE, _outline(error))
    return None


def _outline(error: Exception) -> str:
    """Say what the database refused, and where, without what: its own words quote rows, and messages of dead letters
    go to logs.
    """
    facts = ("sqlstate", "table_name", "column_name", "data_type_name", "constraint_name")
    told = [f"{name.removesuffix('_name')} {value}" for name in facts if (value := getattr(error, name, None))]
    return f"{type(error).__name__} ({', '.join(told) or 'the driver could not encode a value'})"


async def handle_batch(
    records: Sequence[Record], handler: Handler, *, dead: DeadLetters, health: Health, check: str, stop: asyncio.Event
) -> None:
    """Return when every record is either handled or a dead letter that the broker has.

    Transient errors are retried in place forever. An error that blames the input halves the batch, in order, until one
    record is left: that one goes to the dead letters. Any other error is raised as it is; so is Stopped, with part
    of the batch perhaps handled: the handler must be idempotent.
    """
    attempts = 0

    async def attempt() -> None:
        nonlocal attempts
        attempts += 1
        await handler(records)

    try:
        await retry_in_place(attempt, transient=transient, health=health, check=check, stop=stop)
        return
    except Exception as error:
        poison = as_poison(error)
        if poison is None:
            raise
    if len(records) == 1:
        await retry_in_place(
            lambda: dead.put(records[0], poison, attempts), health=health, check="dead_letters", stop=stop
        )
        return
    middle = len(records) // 2
    for half in (records[:middle], records[middle:]):
        await handle_batch(half, handler, dead=dead, health=health, check=check, stop=stop)
