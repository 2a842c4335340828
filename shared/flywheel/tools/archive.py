"""Judges archived batches and days: does every byte and every count agree with the manifest that was noted?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flywheel.archive import verify_day
from flywheel.batches import read_batch
from flywheel.errors import PoisonError
from flywheel.storage.days import Day
from flywheel.storage.objects import ObjectStore
from flywheel.tools.findings import Finding
from flywheel.tools.store import BatchRow


def judge_batches(store: ObjectStore, batches: Iterable[BatchRow]) -> Iterator[Finding]:
    """Yield a finding a batch. Raises TransientError when the store is away."""
    for batch in batches:
        yield _judge(store, batch)


def judge_days(store: ObjectStore, days: Iterable[Day]) -> Iterator[Finding]:
    """Yield a finding for each archived day of events. Raises TransientError when the store is away."""
    for day in days:
        if day.manifest_sha256 is not None:
            yield _judge_day(store, day, day.manifest_sha256)


def _judge_day(store: ObjectStore, day: Day, sha256: str) -> Finding:
    try:
        held = verify_day(store, day.day, sha256)
    except PoisonError as error:
        return Finding(str(day.day), False, f"{error.reason}: {error}")
    return Finding(str(day.day), held == day.rows, f"{day.rows} archived, {held} in its files")


def _judge(store: ObjectStore, batch: BatchRow) -> Finding:
    try:
        _, trajectories = read_batch(store, batch.manifest, batch.manifest_sha256)
        held = sum(1 for _ in trajectories)
    except PoisonError as error:
        return Finding(batch.batch_id, False, f"{error.reason}: {error}")
    return Finding(batch.batch_id, held == batch.trajectories, f"{batch.trajectories} announced, {held} in its files")
