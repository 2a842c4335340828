"""What an error that is kept keeps alive: nothing."""

from __future__ import annotations

import gc
import weakref

from flywheel.errors import PoisonError
from flywheel.stream.handling import as_poison


class Batch(list[PoisonError]):
    """A list that can be watched."""


def handle(batch: Batch) -> None:
    """Put the error of one of its inputs into the batch itself, as a consumer does."""
    try:
        try:
            int("x")
        except ValueError as error:
            raise PoisonError("schema", "no number") from error
    except PoisonError as error:
        assert as_poison(error) is error
        batch.append(error)


def test_a_batch_that_holds_its_own_poison_is_freed_at_once() -> None:
    gc.collect()
    gc.disable()
    try:
        batch = Batch()
        handle(batch)
        watched = weakref.ref(batch)
        del batch
        assert watched() is None
    finally:
        gc.enable()
