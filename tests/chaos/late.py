"""Rewards that come late in a storm: what is published when, from a seed, and who publishes it whatever breaks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator

from flywheel.errors import FlywheelError
from flywheel.outcomes import Outcome, Rule
from flywheel.stream.producer import Producer
from flywheel.topics import OUTCOMES
from tests.chaos.traffic import SCENARIOS

_RETRY_S = 0.5
_SOURCE = "storm"


def plan(seed: int, rounds: int, each: int = 3) -> Iterator[list[Outcome]]:
    """Yield what is published in each round: outcomes of some scenarios, corrections, retractions, and repeats."""
    rng = random.Random(f"{seed}/outcomes")
    revisions: dict[tuple[str, str], int] = {}
    said: list[Outcome] = []
    for _ in range(rounds):
        batch: list[Outcome] = []
        for _ in range(each):
            scenario, subject = f"scenario-{rng.randrange(SCENARIOS)}", rng.choice(("a", "b"))
            revision = revisions[scenario, subject] = revisions.get((scenario, subject), 0) + 1
            rules = [Rule(action="hold", success=True, value=rng.randrange(-64, 64) / 64)]
            batch.append(
                Outcome(
                    scenario_id=scenario, subject=subject, source=_SOURCE, revision=revision,
                    rules=rules, retracted=rng.random() < 0.15,
                )
            )  # fmt: skip
        said += batch
        yield [*batch, rng.choice(said)]


def values(said: Iterable[Outcome]) -> dict[str, list[float]]:
    """Return what a step of each scenario gets in the end, an entry for each thing that holds."""
    newest: dict[tuple[str, ...], Outcome] = {}
    for one in sorted(said, key=lambda one: one.revision):
        newest[one.about] = one
    out: dict[str, list[float]] = {}
    for one in newest.values():
        if not one.retracted:
            out.setdefault(one.key, []).append(one.rules[0].value)
    return out


class Resolver:
    """Publishes outcomes in order, each until the broker has it; a client that broke is replaced."""

    def __init__(self, kafka: str) -> None:
        self._kafka = kafka
        self._waiting: asyncio.Queue[Outcome] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._asked = 0
        self.said: list[Outcome] = []
        """What the broker has."""

    def start(self) -> None:
        """Begin to publish."""
        self._task = asyncio.create_task(self._run(), name="resolver")

    def say(self, outcomes: list[Outcome]) -> None:
        """Publish these after all others."""
        for one in outcomes:
            self._waiting.put_nowait(one)
        self._asked += len(outcomes)

    @property
    def done(self) -> bool:
        """Whether the broker has everything. Raises what nobody expected."""
        if self._task is not None and self._task.done():
            self._task.result()
        return self._asked == len(self.said)

    async def stop(self) -> None:
        """End, whatever is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        producer: Producer | None = None
        try:
            while True:
                one = await self._waiting.get()
                while producer is None or not await self._sent(producer, one):
                    if producer is not None:
                        await producer.abort()
                        await asyncio.sleep(_RETRY_S)
                    producer = await self._connected()
                self.said.append(one)
        finally:
            if producer is not None:
                await producer.abort()

    async def _connected(self) -> Producer | None:
        producer = Producer(self._kafka, client_id="storm-outcomes")
        try:
            await producer.start()
        except FlywheelError:
            await producer.abort()
            await asyncio.sleep(_RETRY_S)
            return None
        return producer

    async def _sent(self, producer: Producer, one: Outcome) -> bool:
        try:
            await producer.send_and_wait(OUTCOMES.name, one.key, one.dump())
        except FlywheelError:
            return False
        return True
