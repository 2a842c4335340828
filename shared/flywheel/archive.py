"""Archived days of events, in the object store: everything the database had, verified by whoever reads it.

Layout: :mod:`flywheel.naming`. A data file is JSON Lines in zstd, an event a line, in the order of the ids; the
manifest, written last, has every file's digest. The same events give the same bytes.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

import msgspec
import zstandard
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from flywheel import naming
from flywheel.canonical import canonical_json, sha256_bytes, sha256_file
from flywheel.days import day_of
from flywheel.errors import IntegrityError, PoisonError
from flywheel.storage.objects import ObjectStore
from flywheel.verified import verified

SCHEMA_VERSION = 1

#: Part of the format: other numbers give other bytes.
_ZSTD_LEVEL = 3
_PART_EVENTS = 50_000
_PART_BYTES = 256 * 1024 * 1024


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class ArchivedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``events``: all its columns, the digest in hexadecimal, the body as it arrived.

    A line has them in this order: part of the format.
    """

    event_id: UUID
    trajectory_id: str
    seq: int
    kind: str
    step: int | None
    agent_id: str
    time: datetime
    ingested_at: datetime
    digest: str
    src_partition: int
    src_offset: int
    body: str


_LINE = msgspec.json.Encoder()
_EVENT = msgspec.json.Decoder(ArchivedEvent)


class DayFile(_Frozen):
    """One data file."""

    key: str
    bytes: NonNegativeInt
    sha256: str
    events: NonNegativeInt
    first_event_id: UUID
    last_event_id: UUID


class DayManifest(_Frozen):
    """What an archived day is made of."""

    schema_version: int = SCHEMA_VERSION
    day: date
    events: NonNegativeInt
    files: list[DayFile]

    @property
    def bytes(self) -> int:
        """Bytes of all data files."""
        return sum(file.bytes for file in self.files)


class DayWriter:
    """Writes one day, an event at a time: ``add`` in the order of the ids, then ``finish``.

    A context manager; leaving it without ``finish`` leaves no manifest and thus no archived day. After an error begin
    again with a new writer: the same events give the same bytes.
    """

    def __init__(self, store: ObjectStore, day: date) -> None:
        self._store, self._day = store, day
        self._files: list[DayFile] = []
        self._part: zstandard.ZstdCompressionWriter | None = None
        self._events, self._size = 0, 0
        self._first: UUID | None = None
        self._last: UUID | None = None
        self._stack = ExitStack()
        self._path = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="flywheel-day-"))) / "part"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is not None:
            self._part.close()
        self._stack.close()

    def add(self, event: ArchivedEvent) -> None:
        """Append an event. Raises ValueError for one of another day, or out of order."""
        if day_of(event.event_id) != self._day or (self._last is not None and event.event_id <= self._last):
            raise ValueError(f"{event.event_id} is out of order, or not of {self._day}")
        if self._part is None:
            compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
            self._part = compressor.stream_writer(self._path.open("wb"))
            self._first = event.event_id
        line = _LINE.encode(event) + b"\n"
        self._part.write(line)
        self._events += 1
        self._size += len(line)
        self._last = event.event_id
        if self._events == _PART_EVENTS or self._size >= _PART_BYTES:
            self._close_part()

    def finish(self) -> tuple[DayManifest, str]:
        """Write what is left and the manifest; return it with its SHA-256. From here on the archived day exists."""
        self._close_part()
        kept = {file.key for file in self._files}
        for found in list(self._store.list(naming.day_prefix(self._day))):
            if found.key not in kept:  # of an earlier try that died
                self._store.delete(found.key)
        manifest = DayManifest(day=self._day, events=sum(file.events for file in self._files), files=self._files)
        data = canonical_json(manifest.model_dump(mode="json"))
        self._store.put(naming.day_manifest(self._day), data, content_type="application/json")
        return manifest, sha256_bytes(data)

    def _close_part(self) -> None:
        if self._part is None or self._first is None or self._last is None:
            return
        self._part.close()
        self._part = None
        key = naming.day_data(self._day, len(self._files))
        self._store.put(key, self._path, content_type="application/zstd")
        self._files.append(
            DayFile(
                key=key, bytes=self._path.stat().st_size, sha256=sha256_file(self._path), events=self._events,
                first_event_id=self._first, last_event_id=self._last,
            )
        )  # fmt: skip
        self._events, self._size = 0, 0


def read_day_manifest(store: ObjectStore, day: date, sha256: str) -> DayManifest:
    """Return the verified manifest.

    Raises IntegrityError when its bytes are not the ones that were noted, PoisonError ``missing_object`` without one
    and ``newer_schema`` for a format above ours.
    """
    key = naming.day_manifest(day)
    data = store.get(key)
    if sha256_bytes(data) != sha256:
        raise IntegrityError(f"{key}: its digest is not the one noted")
    try:
        if (version := json.loads(data)["schema_version"]) > SCHEMA_VERSION:
            raise PoisonError("newer_schema", f"{key}: format {version}, this reader knows {SCHEMA_VERSION}")
        manifest = DayManifest.model_validate_json(data)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{key}: not a day's manifest") from error
    if manifest.day != day or manifest.events != sum(file.events for file in manifest.files):
        raise IntegrityError(f"{key}: it contradicts itself")
    return manifest


def read_day(store: ObjectStore, day: date, sha256: str) -> Iterator[ArchivedEvent]:
    """Yield the day's events in the order of their ids; a file is verified before its first event is given out.

    ``sha256`` is the manifest's, as ``event_days`` has it. Raises as :func:`read_day_manifest`, and IntegrityError
    naming the file when its bytes, its events or their number are not the manifest's.
    """
    for events in _parts(store, day, sha256):
        yield from events


def verify_parts(store: ObjectStore, day: date, sha256: str) -> Generator[int, None, None]:
    """Read the whole day, a file at a time; yield how many events each holds. Raises as :func:`read_day`."""
    for events in _parts(store, day, sha256):
        yield sum(1 for _ in events)


def verify_day(store: ObjectStore, day: date, sha256: str) -> int:
    """Read the whole day; return how many events it holds. Raises as :func:`read_day`."""
    return sum(verify_parts(store, day, sha256))


def _parts(store: ObjectStore, day: date, sha256: str) -> Iterator[Iterator[ArchivedEvent]]:
    """Yield the events of each file, to be read to their end before the next."""
    manifest = read_day_manifest(store, day, sha256)
    last: UUID | None = None

    def checked(file: DayFile, path: Path) -> Iterator[ArchivedEvent]:
        nonlocal last
        count = 0
        for event in _events(file, path):
            count += 1
            if day_of(event.event_id) != day or (last is not None and event.event_id <= last):
                raise IntegrityError(f"{file.key}: event {count} is out of order, or not of {day}")
            last = event.event_id
            yield event
        if count != file.events:
            raise IntegrityError(f"{file.key}: {count} events, the manifest says {file.events}")

    for file, path in verified(store, manifest.files):
        yield checked(file, path)


def _events(file: DayFile, path: Path) -> Iterator[ArchivedEvent]:
    try:
        with path.open("rb") as raw, io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw)) as plain:
            for line in plain:
                yield _EVENT.decode(line)
    except (zstandard.ZstdError, msgspec.DecodeError) as error:
        raise IntegrityError(f"{file.key}: not readable as events") from error
