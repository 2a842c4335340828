"""A record as it came from the broker, free of any client library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: Headers to send: text goes as UTF-8, bytes as they are.
Headers = Mapping[str, str | bytes | None]


class Record(NamedTuple):
    """One Kafka record: where it lies, what it holds, when the broker or its producer stamped it (ms since the
    epoch). A tuple, because it is made for every event.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int

    def header(self, name: str) -> str | None:
        """Return the last header of that name as text, or None."""
        for key, value in reversed(self.headers):
            if key == name:
                return (value or b"").decode("utf-8", "replace")
        return None
