"""Reading batches: nothing is given out that was not verified."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import zstandard
from pydantic import BaseModel, Field, ValidationError

from flywheel.batches.manifest import LONGEST_ROW, SCHEMA_VERSION, BatchFile, Manifest
from flywheel.canonical import sha256_bytes
from flywheel.errors import IntegrityError, PoisonError
from flywheel.events import Event
from flywheel.outcomes import RewardEntry
from flywheel.storage.objects import ObjectStore
from flywheel.trajectory import Trajectory, assemble
from flywheel.verified import verified


class _Line(BaseModel):
    trajectory_id: str
    revision: int
    events: list[Event]
    rewards: list[RewardEntry] = Field(default_factory=list)


def read_manifest(store: ObjectStore, manifest_key: str, sha256: str) -> Manifest:
    """Return the verified manifest.

    Raises IntegrityError naming it when its bytes are not the announced ones, PoisonError ``missing_object`` without
    one and ``newer_schema`` for a format above ours.
    """
    data = store.get(manifest_key)
    if sha256_bytes(data) != sha256:
        raise IntegrityError(f"{manifest_key}: its digest is not the one announced")
    try:
        if (version := json.loads(data)["schema_version"]) > SCHEMA_VERSION:
            raise PoisonError("newer_schema", f"{manifest_key}: format {version}, this reader knows {SCHEMA_VERSION}")
        manifest = Manifest.model_validate_json(data)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{manifest_key}: not a batch's manifest") from error
    if not manifest.counts.trajectories == len(manifest.members) == sum(file.trajectories for file in manifest.files):
        raise IntegrityError(f"{manifest_key}: its counts contradict each other")
    return manifest


def verify_batch(store: ObjectStore, manifest_key: str, sha256: str) -> Manifest:
    """Return the manifest once every file's digest was found right; rows are not read. Raises as :func:`read_batch`."""
    manifest = read_manifest(store, manifest_key, sha256)
    for _ in verified(store, manifest.files):
        pass
    return manifest


def read_batch(store: ObjectStore, manifest_key: str, sha256: str) -> tuple[Manifest, Iterator[Trajectory]]:
    """Return the verified manifest and its trajectories (with ``events``), in its order.

    A file is verified before its first row is given out. Raises as :func:`read_manifest`, and IntegrityError naming the
    file when its bytes, its rows or their number are not the manifest's, or a row is beyond all bounds; errors of the
    store as they are.
    """
    manifest = read_manifest(store, manifest_key, sha256)
    return manifest, _rows(store, manifest)


def _rows(store: ObjectStore, manifest: Manifest) -> Iterator[Trajectory]:
    members = iter(manifest.members)
    for file, path in verified(store, manifest.files):
        count = 0
        for line in _lines(file, path):
            count += 1
            member = next(members, None)
            if member is None or (line.trajectory_id, line.revision) != (member.trajectory_id, member.revision):
                raise IntegrityError(f"{file.key}: row {count} is {line.trajectory_id}, not the manifest's")
            yield assemble(line.events, entries=line.rewards, revision=line.revision)
        if count != file.trajectories:
            raise IntegrityError(f"{file.key}: {count} rows, the manifest says {file.trajectories}")


def _lines(file: BatchFile, path: Path) -> Iterator[_Line]:
    try:
        with path.open("rb") as raw, io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw)) as plain:
            number = 0
            while line := plain.readline(LONGEST_ROW + 1):
                number += 1
                if len(line) > LONGEST_ROW:
                    raise IntegrityError(f"{file.key}: row {number} is longer than {LONGEST_ROW:,} bytes")
                yield _Line.model_validate_json(line)
    except (zstandard.ZstdError, ValidationError) as error:
        raise IntegrityError(f"{file.key}: not readable as rows") from error
