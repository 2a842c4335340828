"""From a record to a row, purely. What cannot become a row is poison, with a reason that somebody can act on."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC
from typing import NamedTuple
from uuid import UUID

from flywheel.errors import PoisonError
from flywheel.events import Event, parse
from flywheel.stream.record import Record
from flywheel.windows import EARLIEST, LATEST
from services.recorder import lean
from services.recorder.aggregate import Delta, delta_of
from services.recorder.copying import row_of

#: A JSON escape of NUL that is not itself escaped: the one character that Postgres can hold in no text, and in no
#: JSON it reads.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Row(NamedTuple):
    """A row of ``events``: what its batch looks at, and ``copied``, the whole of it as COPY takes it."""

    event_id: UUID
    kind: str
    digest: bytes
    src_partition: int
    src_offset: int
    copied: bytes


class Decoded(NamedTuple):
    """An event as it will be stored, and what it adds to its trajectory."""

    row: Row
    delta: Delta


def decode(record: Record) -> Decoded:
    """Return the event's row, its body exactly as it arrived.

    Raises PoisonError: what :func:`flywheel.events.parse` says, or ``no_value``, ``nul``, ``schema`` (a time or a count
    that no database holds).
    """
    raw = record.value
    if raw is None:
        raise PoisonError("no_value", "a record without a value is no event")
    event = lean.read(raw) or parse(raw)
    if b"\\" in raw and b"\\u0000" in raw and _NUL.search(raw):  # the first look alone is fast
        raise PoisonError("nul", "the event holds the character NUL, which the database cannot")
    try:
        time = event.time.astimezone(UTC)
        delta = delta_of(event, time)
    except OverflowError as error:
        raise PoisonError("schema", f"out of range: {error}") from None
    if not EARLIEST <= time < LATEST:
        raise PoisonError("schema", f"time: {time.isoformat()} is no time of an agent's: before 1970 or after 2261")
    digest, source = hashlib.blake2b(raw, digest_size=16).digest(), (record.partition, record.offset)
    copied = row_of(event, step=_step(event), time=time, digest=digest, source=source, body=raw)
    return Decoded(Row(event.event_id, event.kind, digest, *source, copied), delta)


def _step(event: Event) -> int | None:
    if event.kind == "trajectory_started" or event.kind == "trajectory_ended":
        return None  # an unknown field of theirs may be called so
    return event.step
