"""Writing a decided batch to the object store, once and for all."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from flywheel import metrics
from flywheel.batches import BatchWriter, Manifest, Row, verify_batch
from flywheel.canonical import sha256_bytes
from flywheel.errors import PoisonError
from flywheel.log import get_logger
from flywheel.naming import batch_manifest
from flywheel.storage.objects import ObjectStore
from services.archiver import store
from services.archiver.store import Batch, Connection

_log = get_logger(__name__)


async def write(conn: Connection, objects: ObjectStore, batch: Batch, part_trajectories: int) -> tuple[Manifest, str]:
    """Write the batch, or find it whole from an earlier try; return its manifest with the manifest's SHA-256.

    A batch that has its manifest exists and is never written again, even when a member was revised since.
    Raises TransientError when database or store are away, FatalError when the store refuses us.
    """
    expected = await store.members(conn, batch.batch_id)
    if found := await asyncio.to_thread(_existing, objects, batch.batch_id, expected):
        _log.info("found whole from an earlier try")
        return found
    with BatchWriter(
        objects, batch_id=batch.batch_id, channel=batch.channel, created_at=batch.created_at, rule=batch.rule,
        part_trajectories=part_trajectories,
    ) as writer:  # fmt: skip
        async with aclosing(store.rows_of(conn, batch.batch_id)) as portions:
            async for portion in portions:
                await asyncio.to_thread(_add, writer, portion)
        manifest, sha256 = await asyncio.to_thread(writer.finish)
    if gone := len(expected) - manifest.counts.trajectories:
        _log.warning("members that are unreadable, too large or no longer recorded were left out", number=gone)
    return manifest, sha256


def _add(writer: BatchWriter, rows: list[Row]) -> None:
    for row in rows:
        try:
            writer.add(row)
        except PoisonError as error:
            # Of a newer release than ours, or beyond all bounds. It must not hold up everybody else's learning.
            reason = "too_large" if error.reason == "too_large" else "unreadable"
            metrics.ARCHIVE_SKIPPED.labels(reason).inc()
            _log.error("a member was left out", reason=reason, member=row.member.trajectory_id, error=str(error))


def _existing(objects: ObjectStore, batch_id: str, expected: list[str]) -> tuple[Manifest, str] | None:
    key = batch_manifest(batch_id)
    if not objects.exists(key):
        return None
    sha256 = sha256_bytes(objects.get(key))
    try:
        manifest = verify_batch(objects, key, sha256)
    except PoisonError as error:
        _log.warning("an earlier try left a damaged batch: written anew", error=str(error))
        return None
    same = sorted(member.trajectory_id for member in manifest.members) == sorted(expected)
    return (manifest, sha256) if same else None
