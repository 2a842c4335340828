"""When the brake is pulled: too large a share of what came lately is dead letters. Then it is us, or a whole producer,
and not the records. Pure.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trip:
    """What pulled the brake: ``share`` of the last ``records`` were dead letters, by reason in ``causes``."""

    share: float
    limit: float
    records: int
    causes: dict[str, int]

    def __str__(self) -> str:
        causes = ", ".join(f"{reason} {count:,}" for reason, count in self.causes.items())
        return (
            f"{self.share:.0%} of the last {self.records:,} records are dead letters ({causes}), "
            f"above the limit of {self.limit:.0%}"
        )


class DeadShare:
    """Share of dead letters among the last ``window`` records. Judged at every record once that many were seen.

    Costs nothing for records that are none: only dead letters are remembered, by their place.
    """

    def __init__(self, limit: float, window: int) -> None:
        self._limit = limit
        self._window = window
        self._seen = 0
        self._dead: deque[tuple[int, str]] = deque()

    @property
    def share(self) -> float:
        """Dead letters among what was seen lately, 0 to 1."""
        return len(self._dead) / min(self._seen, self._window) if self._seen else 0.0

    def judge(self, count: int, dead: Sequence[tuple[int, str]]) -> Trip | None:
        """Say whether the next ``count`` records, of which those at the indices in ``dead`` are dead letters for these
        reasons, would exceed the limit anywhere; nothing is taken note of.
        """
        return self._slide(self._dead.copy(), count, dead) if dead or self._dead else None

    def observe(self, count: int, dead: Sequence[tuple[int, str]]) -> None:
        """Take note of the records."""
        self._slide(self._dead, count, dead)
        self._seen += count
        self._forget(self._dead, self._seen)

    def clear(self) -> None:
        """Forget everything: the window begins empty."""
        self._seen = 0
        self._dead.clear()

    def _slide(self, recent: deque[tuple[int, str]], count: int, dead: Sequence[tuple[int, str]]) -> Trip | None:
        trip: Trip | None = None
        points = [(self._seen + index + 1, reason) for index, reason in dead]
        if self._seen < self._window <= self._seen + count:
            # The share is highest at a dead letter, or where the window has just become full.
            points = sorted([*points, (self._window, "")], key=lambda point: (point[0], not point[1]))
        for place, reason in points:
            if reason:
                recent.append((place, reason))
            self._forget(recent, place)
            if trip is None and place >= self._window and len(recent) > self._limit * self._window:
                causes = dict(Counter(reason for _, reason in recent).most_common())
                trip = Trip(len(recent) / self._window, self._limit, self._window, causes)
        return trip

    def _forget(self, recent: deque[tuple[int, str]], place: int) -> None:
        while recent and recent[0][0] <= place - self._window:
            recent.popleft()
