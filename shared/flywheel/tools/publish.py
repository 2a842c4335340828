"""Publish generated trajectories through Kafka, and hold what the database has against what was sent."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flywheel.errors import TransientError
from flywheel.events import LLMCall, Reward, Step, dump
from flywheel.stream.cluster import Cluster
from flywheel.stream.producer import Producer
from flywheel.tools.generator import Arrival, Recipe, arrivals
from flywheel.tools.store import Amounts, amounts
from flywheel.topics import EVENTS
from flywheel.trajectory import ADDED

if TYPE_CHECKING:
    import asyncpg

#: Progress is told every this many seconds.
TELL_EVERY_S = 1.0


@dataclass
class Published:
    """What was sent, counted from the events themselves; nothing here grows with the number of trajectories."""

    kinds: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    repeats: int = 0
    bytes: int = 0
    acknowledged: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reward_sum: float = 0.0
    seconds: float = 0.0

    @property
    def events(self) -> int:
        """Distinct events sent."""
        return self.sent - self.repeats

    @property
    def trajectories(self) -> int:
        """Trajectories sent."""
        return self.kinds["trajectory_started"]

    def add(self, arrival: Arrival, size: int) -> None:
        """Count one event of ``size`` bytes."""
        self.sent += 1
        self.bytes += size
        if arrival.repeat:
            self.repeats += 1
            return
        event = arrival.event
        self.kinds[event.kind] += 1
        if isinstance(event, LLMCall):
            self.prompt_tokens += event.usage.prompt_tokens or 0
            self.completion_tokens += event.usage.completion_tokens or 0
        elif isinstance(event, Step):
            self.reward_sum += event.reward or 0.0
        elif isinstance(event, Reward) and event.reward_kind in ADDED:
            self.reward_sum += event.value


async def publish(
    producer: Producer, recipe: Recipe, *, rate: float | None = None, tell: Callable[[Published], None] | None = None
) -> Published:
    """Send everything of ``recipe``, at most ``rate`` events a second, and return once the broker has answered for all.

    ``tell`` is called about once a second. Raises TransientError when the broker takes nothing for too long.
    """
    out = Published()
    began = told = time.monotonic()

    def answered(future: asyncio.Future[object]) -> None:
        if future.cancelled() or future.exception() is not None:
            out.refused += 1
        else:
            out.acknowledged += 1

    for arrival in arrivals(recipe):
        body = dump(arrival.event)
        # Waits while the producer's buffer is full: memory stays flat however slow the broker is.
        future = await producer.send(EVENTS.name, arrival.event.trajectory_id, body)
        future.add_done_callback(answered)
        out.add(arrival, len(body))
        now = time.monotonic()
        if rate and (ahead := out.sent / rate - (now - began)) > 0:
            await asyncio.sleep(ahead)
        if now - told >= TELL_EVERY_S:
            told, out.seconds = now, now - began
            if tell:
                tell(out)
            await asyncio.sleep(0)
    await producer.flush()
    await asyncio.sleep(0)  # the last answers' callbacks run
    out.seconds = time.monotonic() - began
    return out


def differences(published: Published, stored: Amounts) -> list[str]:
    """Return what does not agree, in words; empty: everything is there, once."""
    pairs: list[tuple[str, float, float]] = [
        ("trajectories", published.trajectories, stored.trajectories),
        ("closed trajectories", published.trajectories, stored.closed),
        ("events", published.events, stored.events),
        ("events missing in seq", 0, stored.missing),
        ("prompt tokens", published.prompt_tokens, stored.prompt_tokens),
        ("completion tokens", published.completion_tokens, stored.completion_tokens),
    ]
    out = [f"{name}: published {want:,}, stored {have:,}" for name, want, have in pairs if want != have]
    if not math.isclose(published.reward_sum, stored.reward_sum, rel_tol=1e-6, abs_tol=1e-6):
        out.append(f"sum of rewards: published {published.reward_sum:.4f}, stored {stored.reward_sum:.4f}")
    return out


async def reconcile(
    pool: asyncpg.Pool, recipe: Recipe, published: Published, *, patience_s: float,
    tell: Callable[[Amounts], None] | None = None,
) -> list[str]:  # fmt: skip
    """Wait until the database agrees with what was published, and return what still differs.

    Gives up when nothing has moved for ``patience_s`` seconds: how long it takes in all depends on the amount.
    """
    before: Amounts | None = None
    moved = time.monotonic()
    while True:
        now = await amounts(pool, recipe.prefix)
        if not (differing := differences(published, now)):
            return []
        if now != before:
            before, moved = now, time.monotonic()
            if tell:
                tell(now)
        elif time.monotonic() - moved > patience_s:
            return differing
        await asyncio.sleep(0.5)


async def send_all(
    kafka: Cluster | str, recipe: Recipe, *, rate: float | None, tell: Callable[[Published], None] | None
) -> Published:
    """Publish with a producer of its own. Raises TransientError when no broker answers or some events were refused."""
    producer = Producer(kafka, client_id="flywheel-generate", linger_ms=20)
    await producer.start()
    try:
        out = await publish(producer, recipe, rate=rate, tell=tell)
    finally:
        await producer.stop()
    if out.refused:
        raise TransientError(
            f"the broker refused {out.refused:,} of {out.sent:,} events; publish again: repeats are harmless"
        )
    return out
