"""Writing batches: parts first, manifest last."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zstandard

from flywheel import naming
from flywheel.batches.manifest import (
    LONGEST_ROW,
    SCHEMA_VERSION,
    UNKNOWN_VERSION,
    WITHOUT_ENTRIES,
    ZSTD_LEVEL,
    BatchFile,
    Counts,
    Manifest,
    Member,
)
from flywheel.canonical import canonical_json, sha256_bytes, sha256_file
from flywheel.errors import PoisonError
from flywheel.events import parse
from flywheel.outcomes import RewardEntry
from flywheel.storage.objects import ObjectStore
from flywheel.trajectory import Trajectory, assemble


@dataclass(frozen=True, slots=True)
class Row:
    """A member with its events as they were recorded, JSON texts ordered by ``seq``, then ``event_id``, and its entries
    of the reward ledger.
    """

    member: Member
    bodies: Sequence[str | bytes]
    entries: Sequence[RewardEntry] = ()


class BatchWriter:
    """Writes one batch, a row at a time: ``add`` in order of (group_id, trajectory_id), then ``finish``.

    A context manager; leaving it without ``finish`` leaves no manifest and thus no batch. Errors of the store come as
    they are; nothing can be added after one, begin again with a new writer: the same rows give the same bytes.
    """

    def __init__(
        self, store: ObjectStore, *, batch_id: str, channel: str, created_at: datetime, rule: str,
        part_trajectories: int = 1000,
    ) -> None:  # fmt: skip
        self._store = store
        self._batch_id, self._channel, self._created_at, self._rule = batch_id, channel, created_at, rule
        self._part_trajectories = part_trajectories
        self._members: list[Member] = []
        self._files: list[BatchFile] = []
        self._totals = dict.fromkeys(Counts.model_fields, 0)
        self._versions: dict[str, int] = {}
        self._part: zstandard.ZstdCompressionWriter | None = None
        self._part_rows = 0
        self._entries = 0
        self._stack = ExitStack()
        self._path = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="flywheel-batch-"))) / "part"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is not None:
            self._part.close()
        self._stack.close()

    def add(self, row: Row) -> None:
        """Append a trajectory.

        Raises ValueError out of order; PoisonError for a body that is not an event, and ``too_large`` for a trajectory
        that no reader would take: the batch goes on without it.
        """
        member = row.member
        if self._members and _order(self._members[-1]) >= _order(member):
            raise ValueError(f"{member.trajectory_id} is out of order, or twice in the batch")
        document = assemble(map(parse, row.bodies), entries=row.entries, revision=member.revision)
        if document.trajectory_id != member.trajectory_id:
            raise ValueError(f"events of {document.trajectory_id} under {member.trajectory_id}")
        events = [json.loads(body) for body in row.bodies]
        line: dict[str, Any] = {"trajectory_id": member.trajectory_id, "revision": member.revision, "events": events}
        if entries := sorted(row.entries, key=lambda entry: entry.order):
            line["rewards"] = [entry.model_dump(mode="json", exclude_none=True) for entry in entries]
        text = canonical_json(line) + b"\n"
        if len(text) > LONGEST_ROW:
            raise PoisonError("too_large", f"{len(text):,} bytes, a row has at most {LONGEST_ROW:,}")
        if self._part is None:
            compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
            self._part = compressor.stream_writer(self._path.open("wb"))
        self._part.write(text)
        self._part_rows += 1
        self._entries += len(entries)
        self._count(member, document)
        if self._part_rows == self._part_trajectories:
            self._close_part()

    def finish(self) -> tuple[Manifest, str]:
        """Write what is left and the manifest; return it with its SHA-256. From here on the batch exists."""
        self._close_part()
        manifest = Manifest(
            schema_version=SCHEMA_VERSION if self._entries else WITHOUT_ENTRIES,
            batch_id=self._batch_id,
            channel=self._channel,
            created_at=self._created_at,
            rule=self._rule,
            counts=Counts(**self._totals),
            files=self._files,
            members=self._members,
            policy_versions=self._versions,
        )
        kept = {file.key for file in self._files}
        for found in list(self._store.list(naming.batch_prefix(self._batch_id))):
            if found.key not in kept:  # of an earlier try that died
                self._store.delete(found.key)
        data = canonical_json(manifest.model_dump(mode="json"))
        self._store.put(naming.batch_manifest(self._batch_id), data, content_type="application/json")
        return manifest, sha256_bytes(data)

    def _count(self, member: Member, document: Trajectory) -> None:
        calls = list(document.all_llm_calls())
        new_group = not self._members or self._members[-1].group_id != member.group_id
        self._members.append(member)
        for name, number in {
            "trajectories": 1,
            "groups": int(new_group),
            "events": document.event_count,
            "steps": len(document.steps),
            "llm_calls": len(calls),
            "untrainable_calls": sum(not call.trainable for call in calls),
            "missing": document.missing_count,
        }.items():
            self._totals[name] += number
        for call in calls:
            version = document.version_of(call) or UNKNOWN_VERSION
            self._versions[version] = self._versions.get(version, 0) + 1

    def _close_part(self) -> None:
        if self._part is None:
            return
        self._part.close()
        self._part = None
        key = naming.batch_data(self._batch_id, len(self._files))
        self._store.put(key, self._path, content_type="application/zstd")
        self._files.append(
            BatchFile(
                key=key,
                bytes=self._path.stat().st_size,
                sha256=sha256_file(self._path),
                trajectories=self._part_rows,
            )
        )
        self._part_rows = 0


def write_batch(
    store: ObjectStore, rows: Sequence[Row], *, batch_id: str, channel: str, created_at: datetime, rule: str,
    part_trajectories: int = 1000,
) -> tuple[Manifest, str]:  # fmt: skip
    """Write a batch of ``rows``, in any order, and return its manifest with the manifest's SHA-256."""
    with BatchWriter(
        store, batch_id=batch_id, channel=channel, created_at=created_at, rule=rule, part_trajectories=part_trajectories
    ) as writer:
        for row in sorted(rows, key=lambda row: _order(row.member)):
            writer.add(row)
        return writer.finish()


def _order(member: Member) -> tuple[str, str]:
    return member.group_id, member.trajectory_id
