"""What one producer of a storm sends, from a seed: good events, and among them everything that goes wrong at a source.

Purely computed, the same to the byte for the same :class:`Recipe`, and flat in memory for any number of events.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from flywheel.events import (
    SCHEMA_VERSION,
    Action,
    Event,
    LLMCall,
    ProviderAccess,
    Reward,
    RewardKind,
    Step,
    TrajectoryEnded,
    TrajectoryStarted,
    Usage,
    dump,
)
from flywheel.topics import MAX_EVENT_BYTES
from flywheel.trajectory import ADDED
from tests.chaos.ledger import Entry

#: Every what-must-become-a-dead-letter, by the reason that the dead letter must carry.
POISON = ("not_json", "unknown_kind", "newer_schema", "schema", "nul", "no_value", "too_large")

#: An out-of-order event is overtaken by at most this many others of its producer.
NEAR = 60
#: A late event is overtaken by at least, and at most, this many: enough for its trajectory to end in between.
FAR = (900, 1500)
_PLAYING = 24
#: Scenarios, which the producers share.
SCENARIOS = 50
_GROUP = 8
_STATUSES = ("completed", "completed", "completed", "terminated", "timeout", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What one producer sends. Shares are of the good events; ``events`` is how many of those there are at least."""

    seed: int
    producer: int
    start: datetime
    events: int
    steps: int = 6
    text: int = 400
    duplicates: float = 0.03
    astray: float = 0.05
    shuffled: float = 0.1
    late: float = 0.01
    conflicts: float = 0.003
    poison: float = 0.004


@dataclass(frozen=True, slots=True)
class Sending:
    """One message. ``after`` names an event that the broker must have acknowledged before this is sent; that one is
    ``contradicted``.
    """

    key: str
    value: bytes | None
    entry: Entry
    after: str | None = None
    contradicted: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """What it is sent with: its name, by which a dead letter is known again."""
        return {"chaos-name": self.entry.name} if self.entry.reason else {}


@dataclass
class _Line:
    """What is to be sent, by when."""

    heap: list[tuple[int, int, Sending]] = field(default_factory=list)
    count: int = 0

    def put(self, at: int, sending: Sending) -> None:
        self.count += 1
        heapq.heappush(self.heap, (at, self.count, sending))

    def until(self, now: int | None) -> Iterator[Sending]:
        while self.heap and (now is None or self.heap[0][0] <= now):
            yield heapq.heappop(self.heap)[2]


def sendings(recipe: Recipe) -> Iterator[Sending]:
    """Yield every message in the order in which it is sent."""
    reached: dict[str, int] = {}
    ended: set[str] = set()
    for sending in _sendings(recipe):
        e = sending.entry
        if e.what != "event":
            yield sending
            continue
        highest = reached.get(e.trajectory_id, -1)
        reached[e.trajectory_id] = max(highest, e.seq)
        yield replace(sending, entry=replace(e, late=e.trajectory_id in ended, early=e.seq < highest))
        if e.kind.startswith("trajectory_ended"):
            ended.add(e.trajectory_id)


def _sendings(recipe: Recipe) -> Iterator[Sending]:
    rng = random.Random(f"{recipe.seed}/{recipe.producer}")
    line = _Line()
    playing: list[Iterator[Event]] = []
    made = now = started = 0
    poisons = 0
    while playing or made < recipe.events:
        while made < recipe.events and len(playing) < _PLAYING:
            events = _trajectory(recipe, started, rng)
            playing.append(iter(events))
            made, started = made + len(events), started + 1
        index = rng.randrange(len(playing))
        event = next(playing[index], None)
        if event is None:
            playing.pop(index)
            continue
        now += 1
        at = now
        if rng.random() < recipe.late:
            at += rng.randint(*FAR)
        elif rng.random() < recipe.shuffled:
            at += rng.randint(1, NEAR)
        contradicted = rng.random() < recipe.conflicts
        good = replace(_good(event), contradicted=contradicted)
        line.put(at, good)
        if rng.random() < recipe.duplicates:
            key = f"{good.key}-astray" if rng.random() < recipe.astray else good.key
            again = replace(good, key=key, contradicted=False, entry=replace(good.entry, what="duplicate"))
            line.put(at + rng.randint(1, FAR[1]), again)
        if contradicted:
            line.put(at + rng.randint(1, NEAR), _conflict(event, good))
        if rng.random() < recipe.poison:
            # Large ones are rare: each is as many bytes as thousands of others.
            reason = "too_large" if poisons == 0 else POISON[poisons % (len(POISON) - 1)]
            line.put(at + rng.randint(0, NEAR), _poison(reason, recipe, poisons, good, rng))
            poisons += 1
        yield from line.until(now)
    yield from line.until(None)


def _trajectory(recipe: Recipe, number: int, rng: random.Random) -> list[Event]:
    trajectory_id = f"storm-{recipe.seed}-{recipe.producer}-{number:06d}"
    now = recipe.start + timedelta(milliseconds=7 * number)
    events: list[Event] = []

    def envelope() -> dict[str, Any]:
        nonlocal now
        now += timedelta(milliseconds=rng.randint(1, 400))
        return {
            "event_id": _uuid7(now, rng), "trajectory_id": trajectory_id, "seq": len(events),
            "agent_id": f"producer-{recipe.producer}", "time": now,
        }  # fmt: skip

    group, size = divmod(number, _GROUP)
    events.append(
        TrajectoryStarted(
            **envelope(), scenario_id=scenario_of(trajectory_id), group_id=f"group-{recipe.producer}-{group}",
            group_size=_GROUP, model_version="1.0.0", metadata={"attempt": size},
        )
    )  # fmt: skip
    for step in range(max(1, recipe.steps + rng.randint(-2, 2))):
        words = _text(rng, recipe.text)
        ids = [rng.randrange(50_000) for _ in range(16)]
        events.append(ProviderAccess(**envelope(), step=step, provider="prices", data={"seen": words[:200]}))
        events.append(
            LLMCall(
                **envelope(), step=step, model="storm", user_prompt=words, response=words[:100],
                prompt_token_ids=ids, completion_token_ids=ids[:8], completion_logprobs=[-0.5] * 8,
                usage=Usage(prompt_tokens=16, completion_tokens=8),
            )
        )  # fmt: skip
        events.append(
            Step(
                **envelope(), step=step, observation=words, reward=rng.randrange(-64, 64) / 64,
                action=Action(name="hold", parameters={"why": words[:80]}, success=True),
            )
        )  # fmt: skip
    judged = rng.choice((RewardKind.JUDGE, RewardKind.OUTCOME))
    events.append(Reward(**envelope(), reward_kind=judged, value=rng.randrange(-64, 64) / 64))
    events.append(TrajectoryEnded(**envelope(), status=rng.choice(_STATUSES), final_pnl=rng.randrange(100)))
    return events


def scenario_of(trajectory_id: str) -> str:
    """Return the scenario of a storm's trajectory."""
    return f"scenario-{int(trajectory_id.rpartition('-')[2]) // _GROUP % SCENARIOS}"


def _good(event: Event) -> Sending:
    value = dump(event)
    reward = event.reward if isinstance(event, Step) else None
    if isinstance(event, Reward) and event.reward_kind in ADDED:
        reward = event.value
    kind = f"{event.kind}:{event.status}" if isinstance(event, TrajectoryEnded) else event.kind
    entry = Entry("event", str(event.event_id), _sha256(value), event.trajectory_id, event.seq, kind, reward)
    return Sending(event.trajectory_id, value, entry)


def _conflict(event: Event, good: Sending) -> Sending:
    value = dump(event.model_copy(update={"time": event.time + timedelta(seconds=1)}))
    entry = Entry(
        "conflict", f"conflict-{good.entry.name}", _sha256(value), event.trajectory_id, event.seq, reason="conflict"
    )
    return Sending(good.key, value, entry, after=good.entry.name)


def _poison(reason: str, recipe: Recipe, number: int, good: Sending, rng: random.Random) -> Sending:
    assert good.value is not None
    fresh = str(_uuid7(recipe.start, rng)).encode()
    twin = good.value.replace(good.entry.name.encode(), fresh)  # else it would be a conflict
    head = twin[:-1]
    values: dict[str, bytes | None] = {
        "not_json": head,
        "unknown_kind": twin.replace(b'"kind":"', b'"kind":"un'),
        "newer_schema": twin.replace(b'"seq":', b'"position":').replace(
            f'"schema_version":{SCHEMA_VERSION}'.encode(), f'"schema_version":{SCHEMA_VERSION + 1}'.encode()
        ),
        "schema": twin.replace(b'"seq":', b'"seq":-1'),
        "nul": head + b',"note":"a\\u0000b"}',
        "no_value": None,
        "too_large": head + b',"note":"' + b"x" * MAX_EVENT_BYTES + b'"}' if reason == "too_large" else None,
    }
    name = f"poison-{recipe.producer}-{number}"
    value = values[reason]
    return Sending(good.key, value, Entry("poison", name, _sha256(value or b""), good.key, reason=reason))


def _text(rng: random.Random, length: int) -> str:
    # Hexadecimal digits compress about as well as prose does.
    return rng.randbytes(length // 2).hex()


def _sha256(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def _uuid7(now: datetime, rng: random.Random) -> uuid.UUID:
    """Return a UUIDv7 (RFC 9562) for that instant whose random part comes from ``rng``."""
    value = (int(now.astimezone(UTC).timestamp() * 1000) << 80) | rng.getrandbits(80)
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return uuid.UUID(int=value)
