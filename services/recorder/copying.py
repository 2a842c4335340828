"""A row of ``events`` as COPY BINARY takes it, purely: made of the bytes that arrived, without a text in between.

The format is PostgreSQL's own ("File Formats, Binary Format" under COPY): a count of fields, then each field's length
and its bytes, big-endian, as the type's ``send`` function writes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from itertools import islice
from struct import Struct as Layout
from struct import pack

from flywheel.events import Event

#: The columns of ``events`` that a row brings, in its order.
COLUMNS = (
    "event_id", "trajectory_id", "seq", "kind", "step", "agent_id", "time", "digest", "src_partition", "src_offset",
    "body",
)  # fmt: skip

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
#: Rows in one message to the server.
_AT_ONCE = 200

_head = Layout(">hi16si").pack
_number = Layout(">ii").pack
_length = Layout(">i").pack
_tail = Layout(">iqi16siiiqi").pack
_kinds: dict[str, bytes] = {}


def row_of(
    event: Event, *, step: int | None, time: datetime, digest: bytes, source: tuple[int, int], body: bytes
) -> bytes:
    """Return the row of an event, which happened at ``time`` (aware) and came as ``body`` from (partition, offset)."""
    trajectory_id, agent_id = event.trajectory_id.encode(), event.agent_id.encode()
    since = time - _EPOCH
    return b"".join(
        (
            _head(len(COLUMNS), 16, event.event_id.bytes, len(trajectory_id)), trajectory_id,
            _number(4, event.seq),
            _kinds.get(event.kind) or _kind(event.kind),
            _NULL if step is None else _number(4, step),
            _length(len(agent_id)), agent_id,
            _tail(
                8, (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds, 16, digest,
                4, source[0], 8, source[1], len(body),
            ),
            body,
        )
    )  # fmt: skip


async def stream(rows: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield what COPY reads, in portions: between two of them the driver waits for a slow server."""
    yield _HEADER
    remaining = iter(rows)
    while portion := b"".join(islice(remaining, _AT_ONCE)):
        yield portion
    yield _TRAILER


def _kind(kind: str) -> bytes:
    text = kind.encode()
    return _kinds.setdefault(kind, pack(">i", len(text)) + text)
