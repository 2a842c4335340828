"""The bounded buffer between an agent and the broker, and the one place that counts. Pure; safe for several threads.

An event is in it from its acceptance to the broker's acknowledgement, first waiting, then under way. At every moment

    logged == acked + buffered + sum(dropped.values())

so that nothing disappears without a count.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flywheel.sdk.spans import NO_HEADERS

#: Share of the limits by which ends of trajectories may exceed them: an end lost costs more than an event lost.
_RESERVE = 1 / 8


@dataclass(frozen=True, slots=True)
class Item:
    """An encoded message: these bytes are sent, and sent again, and nothing else."""

    topic: str
    key: str
    value: bytes
    event_id: str = ""
    final: bool = False
    """Whether it ends a trajectory; it may use the reserve."""

    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of the events so far. Exact."""

    logged: int = 0
    """Events that the agent handed over (of sampled trajectories, while enabled)."""

    published: int = 0
    """Of these: accepted into the buffer."""

    acked: int = 0
    """Of these: acknowledged by the broker; they will not be lost."""

    buffered: int = 0
    """Accepted, neither acknowledged nor given up yet."""

    buffered_bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason, as listed in docs/sdk.md. Only ``unconfirmed_at_exit`` may have reached the broker all the same."""

    sampled_out: int = 0
    """Trajectories that the sampling rate left out; their events are not logged."""

    connected: bool = False
    last_error: str | None = None
    """The last trouble with the broker, in words."""


class Buffer:
    """Holds what the broker has not acknowledged, within ``max_events`` and ``max_bytes``.

    ``wake`` is called, from whatever thread offers, when something waits after nothing did.
    """

    def __init__(self, max_events: int, max_bytes: int, wake: Callable[[], None] = lambda: None) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._reserve_events = max(1, int(max_events * _RESERVE))
        self._reserve_bytes = int(max_bytes * _RESERVE)
        self._wake = wake
        self._room = threading.Condition(threading.Lock())
        self._waiting: deque[Item] = deque()
        self._held_events = 0
        self._held_bytes = 0
        self._logged = 0
        self._published = 0
        self._acked = 0
        self._dropped: Counter[str] = Counter()
        self._closed = False

    def offer(self, item: Item, *, wait_s: float = 0.0) -> str | None:
        """Take the item and return None, or count it as dropped and return the reason: ``buffer_full`` or ``closed``.

        Waits at most ``wait_s`` seconds for room.
        """
        with self._room:
            if wait_s > 0 and not self._fits(item):
                self._wait_for_room(item, wait_s)
            self._logged += 1
            if self._closed or not self._fits(item):
                reason = "closed" if self._closed else "buffer_full"
                self._dropped[reason] += 1
                return reason
            self._published += 1
            self._held_events += 1
            self._held_bytes += len(item.value)
            wake = not self._waiting
            self._waiting.append(item)
        if wake:
            self._wake()
        return None

    def refuse(self, reason: str) -> None:
        """Count an event that never came as far as being offered."""
        with self._room:
            self._logged += 1
            self._dropped[reason] += 1

    def take(self, limit: int) -> list[Item]:
        """Return up to ``limit`` items in the order of acceptance; they are under way until settled or put back."""
        with self._room:
            count = min(limit, len(self._waiting))
            return [self._waiting.popleft() for _ in range(count)]

    def put_back(self, items: list[Item]) -> None:
        """Let items that were taken wait again, before all others, in the order given."""
        if items:
            with self._room:
                self._waiting.extendleft(reversed(items))
            self._wake()

    def acked(self, items: Iterable[Item]) -> None:
        """Forget items that the broker acknowledged."""
        with self._room:
            self._acked += self._forget(items)

    def lost(self, items: Iterable[Item], reason: str) -> None:
        """Give up items that were taken."""
        with self._room:
            self._dropped[reason] += self._forget(items)

    def close(self) -> None:
        """Accept nothing from now on; who waits for room stops waiting."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def abandon(self) -> int:
        """Give up everything: what waits as ``unsent_at_exit``, what is under way as ``unconfirmed_at_exit``."""
        with self._room:
            unsent = self._forget(list(self._waiting))
            self._waiting.clear()
            unconfirmed, self._held_events, self._held_bytes = self._held_events, 0, 0
            self._dropped += Counter(unsent_at_exit=unsent, unconfirmed_at_exit=unconfirmed)
            return unsent + unconfirmed

    @property
    def held(self) -> int:
        """How many items it holds, waiting or under way."""
        return self._held_events

    @property
    def roomy(self) -> bool:
        """Whether at least half of it is free."""
        return self._held_events * 2 <= self._max_events and self._held_bytes * 2 <= self._max_bytes

    def stats(self) -> Stats:
        """Return all counters of one moment."""
        with self._room:
            return Stats(
                logged=self._logged,
                published=self._published,
                acked=self._acked,
                buffered=self._held_events,
                buffered_bytes=self._held_bytes,
                dropped=dict(+self._dropped),
            )

    def _fits(self, item: Item) -> bool:
        events, size = self._max_events, self._max_bytes
        if item.final:
            events, size = events + self._reserve_events, size + self._reserve_bytes
        return self._held_events + 1 <= events and self._held_bytes + len(item.value) <= size

    def _wait_for_room(self, item: Item, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        self._room.wait_for(lambda: self._closed or self._fits(item), max(0.0, deadline - time.monotonic()))

    def _forget(self, items: Iterable[Item]) -> int:
        count = 0
        for item in items:
            count += 1
            self._held_events -= 1
            self._held_bytes -= len(item.value)
        if count:
            self._room.notify_all()
        return count
