"""The brake: a consumer that is being drained into the dead letters pauses in place, until a person releases it.

It is judged before anything is buried, kept in the database, and obeyed by every process of the consumer: restarts,
replicas and rebalances stay paused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from flywheel import metrics
from flywheel.health import Health
from flywheel.log import get_logger
from flywheel.retry import Stopped, retry_in_place
from flywheel.storage.brakes import BrakeState
from flywheel.storage.postgres import transient
from flywheel.stream.positions import Item
from flywheel.stream.share import DeadShare, Trip
from flywheel.topics import Topic
from flywheel.waiting import first_of

_log = get_logger(__name__)

_LOOK_S = 1.0
_LOOK_PAUSED_S = 0.5
_SILENT_S = 5.0
_COMPLAIN_S = 60.0
_EXAMPLES = 5
_EXAMPLE_CHARS = 200
_ANSWERS = "postgres answers"


class Revoked(Exception):  # noqa: N818 - not an error: the partitions went elsewhere while we were paused
    """What is in hand is not ours any more. Nothing of it was buried or stored."""


class Kept(Protocol):
    """Where the brake is kept; :class:`flywheel.storage.brakes.Brakes`."""

    async def read(self) -> BrakeState:
        """Return how it is."""
        ...

    async def pull(
        self, known: int, reason: str, share: float, records: int, causes: dict[str, int],
        examples: Sequence[dict[str, Any]],
    ) -> None:  # fmt: skip
        """Put it on, unless it is, or one newer than ``known`` has been released meanwhile."""
        ...

    async def spend(self, brake: int, records: int) -> bool:
        """Take so many records off what its release allowed; return False when nothing was left of that."""
        ...


class Brake:
    """One process's view of the brake, and its judgment of the records that it is about to handle.

    Ask :meth:`permit` before a batch is buried and stored, and again when more of it turns out to be poison; say
    :meth:`settle` when it is durable. ``beat`` names the loop that ticks while it is paused.
    """

    def __init__(self, kept: Kept, share: DeadShare, topic: Topic, health: Health, *, beat: str) -> None:
        self._kept = kept
        self._share = share
        self._topic = topic.name
        self._health = health
        self._beat = beat
        self._check = f"brake {topic.name}"
        self._state: BrakeState | None = None
        self._free = False
        self._judged: list[tuple[int, str]] = []
        self._complained = 0.0
        metrics.BRAKE.labels(self._topic).set(0)

    async def watch(self) -> None:
        """Keep up with what other processes and people do to it, until cancelled.

        A database that keeps silent makes us unready here, long before a statement times out.
        """
        while True:
            look = asyncio.create_task(self._look(), name="look at the brake")
            try:
                answered, _ = await asyncio.wait({look}, timeout=_SILENT_S)
                if not answered:
                    self._health.ready(_ANSWERS, False, f"no answer for {_SILENT_S:.0f} s")
                await look
            finally:
                look.cancel()
            await asyncio.sleep(_LOOK_S)

    async def permit(self, items: Sequence[Item[Any]], *, stop: asyncio.Event, ours: Callable[[], bool]) -> None:
        """Return when the batch may be handled: at once while all is well, after a release otherwise.

        Raises Stopped, and Revoked when it is paused and ``ours`` says that the records are somebody else's now.
        """
        dead = self._judged = [(number, i.poison.reason) for number, i in enumerate(items) if i.poison is not None]
        state = self._state
        if state is None or dead:  # who buries asks first: another process may have pulled it a moment ago
            state = await self._refresh(stop)
        while True:
            if state.on:
                state = await self._released(stop, ours)
            if self._free:
                return
            if state.allowance and await self._durably(lambda s=state: self._kept.spend(s.id, len(items)), stop):
                self._free = True
                return
            if (trip := self._share.judge(len(items), dead)) is None:
                return
            state = await self._pull(state.id, trip, items, stop)

    def settle(self, items: Sequence[Item[Any]]) -> None:
        """Take note of a batch that is durable. What a release allowed is not counted."""
        if not self._free:
            self._share.observe(len(items), self._judged)
        self._free = False

    def abandon(self) -> None:
        """Say that the batch in hand is given up: it comes again, to us or to somebody else."""
        self._free = False

    async def _pull(self, known: int, trip: Trip, items: Sequence[Item[Any]], stop: asyncio.Event) -> BrakeState:
        examples = [
            {
                "partition": item.record.partition, "offset": item.record.offset, "reason": item.poison.reason,
                "message": _storable(str(item.poison)[:_EXAMPLE_CHARS]),
            }
            for item in items if item.poison is not None
        ][:_EXAMPLES]  # fmt: skip
        self._say(str(trip))  # also while the database is away
        await self._durably(
            lambda: self._kept.pull(known, str(trip), trip.share, trip.records, trip.causes, examples), stop
        )
        return await self._refresh(stop)

    async def _released(self, stop: asyncio.Event, ours: Callable[[], bool]) -> BrakeState:
        while self._state is not None and self._state.on:
            if not ours():
                raise Revoked
            if await first_of(stop, timeout=_LOOK_PAUSED_S):
                raise Stopped("stopped while paused by the brake")
            self._health.beat(self._beat)
            await self._look()
        assert self._state is not None
        return self._state

    async def _refresh(self, stop: asyncio.Event) -> BrakeState:
        return self._take(await self._durably(self._kept.read, stop))

    async def _look(self) -> None:
        try:
            self._take(await self._kept.read())
            self._health.ready(_ANSWERS, True)
        except Exception as error:
            if not transient(error):
                raise
            self._health.ready(_ANSWERS, False, f"{type(error).__name__}: {error}")
            _log.debug("the brake cannot be looked up", topic=self._topic, error=repr(error))

    async def _durably(self, work: Any, stop: asyncio.Event) -> Any:
        return await retry_in_place(
            work, transient=transient, health=self._health, check="postgres", stop=stop, beat=self._beat
        )

    def _take(self, state: BrakeState) -> BrakeState:
        known = self._state
        if known is not None and (state.id, not state.on) < (known.id, not known.on):
            return known  # an answer from before
        self._state = state
        if known is not None and (state.id != known.id or (known.on and not state.on)):
            self._share.clear()
        if state.on:
            self._say(state.reason)
        else:
            if self._complained:
                _log.info("the brake is released", topic=self._topic, unjudged=state.allowance)
            self._complained = 0.0
            metrics.BRAKE.labels(self._topic).set(0)
            self._health.ready(self._check, True)
        return state

    def _say(self, reason: str) -> None:
        metrics.BRAKE.labels(self._topic).set(1)
        command = f"flywheel dead release --topic {self._topic}"
        self._health.ready(self._check, False, f"paused: {reason}; {command}")
        if not self._complained or time.monotonic() - self._complained >= _COMPLAIN_S:
            self._complained = time.monotonic()
            _log.error("paused by the brake", topic=self._topic, why=reason, release=command)


def _storable(text: str) -> str:
    """Return the text as the database's JSON can hold it."""
    return text.replace("\x00", "?").encode("utf-8", "replace").decode()
