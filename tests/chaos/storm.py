"""The storm itself: what is started, what is done to it when, how it is waited for, and what came of it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from deploy.local.broker import Detour
from deploy.local.ports import PortBook
from deploy.local.stack import LocalStack
from flywheel.errors import TransientError
from flywheel.settings import LocalSettings
from flywheel.topics import OUTCOMES
from tests.chaos import store
from tests.chaos.fleet import Fleet
from tests.chaos.late import Resolver, plan, values
from tests.chaos.producers import Producers
from tests.chaos.reconcile import Verdict, reconcile
from tests.chaos.schedule import NETWORK, SERVERS, Action, schedule
from tests.chaos.servers import Servers
from tests.chaos.toxiproxy import Network, find_toxiproxy
from tests.chaos.traffic import Recipe
from tests.support.processes import service_environment

#: An action that waits for traffic to come through happens all the same after this long, in seconds: a storm does not
#: wait until everybody is well.
_STRIKE_ANYWAY_S = 25.0
#: After the storm, this long without anything more being stored means that nothing more will be.
_PATIENCE_S = 120.0
_LOOK_S = 0.25
_AWAY = (
    OSError, TimeoutError, TransientError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What kind of storm. ``events`` are the distinct good ones; ``scales`` how many recorders there are, in turn."""

    seed: int = 1
    events: int = 200_000
    producers: int = 3
    kills: int = 34
    servers: int = 4
    networks: int = 8
    scales: tuple[int, ...] = (3, 1)
    var: Path = Path("var/chaos")
    keep: bool = False


@dataclass
class Outcome:
    """What came of a storm."""

    verdict: Verdict
    seconds: float
    drained: bool
    kills: dict[str, int]
    restarts: Counter[str]
    faults: dict[str, int]
    crashes: list[str]
    unclean: list[str]
    messages: int
    sent_again: int
    outcomes: int = 0
    traffic: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the recorder kept its promise."""
        return self.drained and self.verdict.ok


class Watcher(Protocol):
    """Whom a storm tells how it goes."""

    def say(self, line: str) -> None:
        """Something happened."""
        ...

    def progress(self, **figures: int | str) -> None:
        """It stands so."""
        ...


async def storm(options: Options, watcher: Watcher) -> Outcome:
    """Run one, from an empty stack to the verdict. What was started is stopped, however it ends."""
    folder = options.var / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    async with AsyncExitStack() as end:
        parts = await _start(options, folder, watcher, end)
        began = time.monotonic()
        await parts.rage()
        drained = await parts.calm()
        seconds = time.monotonic() - began
        watcher.say("reading what is there")
        evidence = await store.collect(parts.kafka, parts.postgres)
        ledger = list(parts.producers.ledger())
        verdict = reconcile(ledger, evidence, values(parts.resolver.said))
        traffic = Counter[str](entry.what for entry in ledger)
        traffic["late"] = sum(entry.late for entry in ledger)
        traffic["out of order"] = sum(entry.early for entry in ledger)
        outcome = Outcome(
            verdict, seconds, drained, parts.fleet.struck, parts.servers.restarts, dict(parts.faults),
            parts.fleet.crashes, parts.fleet.unclean, parts.producers.report.acknowledged,
            parts.producers.report.retried, len(parts.resolver.said), dict(traffic),
        )  # fmt: skip
    if outcome.ok and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


async def _start(options: Options, folder: Path, watcher: Watcher, end: AsyncExitStack) -> Storm:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FLYWHEEL_")}
    program = await asyncio.to_thread(find_toxiproxy, environ, watcher.say)
    ports = PortBook()
    end.callback(ports.release)
    detour = Detour(ports.choose("kafka.detour"), ports.choose("kafka.proxy"))
    through = ports.choose("postgres.proxy")
    stack = LocalStack(folder, services=False, environ=environ, settings=LocalSettings.load(), detour=detour)
    await stack.start(watcher.say)
    end.push_async_callback(stack.stop)
    url = urlsplit(stack.env["FLYWHEEL_POSTGRES"])
    assert url.port is not None
    network = Network(program, ports.choose("toxiproxy"), folder / "toxiproxy.log")
    end.push_async_callback(network.stop)
    await network.start({"kafka": (detour.advertised, detour.port), "postgres": (through, url.port)})

    env = service_environment(
        {
            **stack.env,
            "FLYWHEEL_KAFKA": f"127.0.0.1:{detour.advertised}",
            "FLYWHEEL_POSTGRES": urlunsplit(
                url._replace(netloc=f"{url.netloc.rpartition('@')[0]}@127.0.0.1:{through}")
            ),
            "FLYWHEEL_ENV_FILE": os.devnull,
            "FLYWHEEL_RECORDER_BATCH_EVENTS": "500",  # more batches, more moments to die in
            "FLYWHEEL_RECORDER_IDLE_CLOSE_S": "10",
        }
    )
    fleet = Fleet("recorder", env, folder, random.Random(f"{options.seed}/fleet"), ports.choose)
    end.push_async_callback(fleet.stop)
    kafka, postgres = stack.env["FLYWHEEL_KAFKA"], stack.env["FLYWHEEL_POSTGRES"]
    start = datetime.now(UTC).replace(microsecond=0)
    recipes = [
        Recipe(seed=options.seed, producer=n, start=start, events=-(-options.events // options.producers))
        for n in range(options.producers)
    ]
    producers = Producers(kafka, recipes, service_environment({}), folder)
    end.push_async_callback(producers.stop)
    resolver = Resolver(kafka)
    end.push_async_callback(resolver.stop)
    resolver.start()
    await asyncio.gather(fleet.scale(1), producers.start())
    return Storm(options, watcher, kafka, postgres, fleet, producers, resolver, Servers(stack), network)


class Storm:
    """Everything that runs, and what is done to it."""

    def __init__(
        self, options: Options, watcher: Watcher, kafka: str, postgres: str, fleet: Fleet, producers: Producers,
        resolver: Resolver, servers: Servers, network: Network,
    ) -> None:  # fmt: skip
        self.kafka, self.postgres = kafka, postgres
        self.fleet, self.producers, self.resolver, self.servers = fleet, producers, resolver, servers
        self.faults: Counter[str] = Counter()
        self._options = options
        self._watcher = watcher
        self._network = network
        self._stored = 0
        recipe = Recipe(seed=0, producer=0, start=datetime.now(UTC), events=0)
        more = recipe.duplicates + recipe.conflicts + recipe.poison
        self._messages = options.events * (1 + more)

    async def rage(self) -> None:
        """Do everything on the schedule, each thing when its share of the traffic is through."""
        o = self._options
        actions = schedule(o.seed, kills=o.kills, servers=o.servers, networks=o.networks, scales=o.scales)
        late = plan(o.seed, len(actions))
        async with asyncio.TaskGroup() as lasting:
            for number, (action, outcomes) in enumerate(zip(actions, late, strict=True)):
                # The next two actions' worth: whatever the producers could do, the backlog stays small.
                self.producers.allow(min(1.0, (number + 2) / (len(actions) + 1)))
                await self._until_through(action.at)
                self._watcher.say(f"{number + 1:3}/{len(actions)}  {action}")
                self.resolver.say(outcomes)
                await self._do(action, lasting)
            self.producers.allow(1.0)

    async def calm(self) -> bool:
        """Wait until all is sent and stored; return False when it never was."""
        self._watcher.say("the storm is over; waiting for what is left")
        moved, before = time.monotonic(), (-1, -1)
        while time.monotonic() - moved < _PATIENCE_S:
            await asyncio.sleep(_LOOK_S)
            now = await self._look()
            if now != before:
                moved, before = time.monotonic(), now
            try:
                if (
                    self.producers.done
                    and self.resolver.done
                    and await store.lag(self.kafka, self.postgres, OUTCOMES.name) == 0
                    and await store.waiting_outcomes(self.postgres) == 0
                    and await store.lag(self.kafka, self.postgres) == 0
                    and await store.waiting_announcements(self.postgres) == 0
                ):
                    await self.fleet.stop()  # cleanly: whatever it still had in hand is there too
                    return True
            except _AWAY as away:
                self._watcher.progress(waiting=f"{away!r}")
        return False

    async def _do(self, action: Action, lasting: asyncio.TaskGroup) -> None:
        if action.deed in SERVERS:
            lasting.create_task(self.servers.restart(action.deed))
        elif action.deed in NETWORK:
            self.faults[f"{action.deed} {action.way}"] += 1
            lasting.create_task(self._network.disturb(action.deed, action.way, action.seconds))
        elif action.deed == "scale":
            await self.fleet.scale(action.count)
        else:
            while not self.fleet.strike(action.deed):
                await asyncio.sleep(_LOOK_S)

    async def _until_through(self, share: float) -> None:
        deadline = time.monotonic() + _STRIKE_ANYWAY_S
        while self._stored < share * self._messages and time.monotonic() < deadline:
            await self._look()
            await asyncio.sleep(_LOOK_S)

    async def _look(self) -> tuple[int, int]:
        self.fleet.check()
        self.producers.check()
        sent = self.producers.report
        with suppress(*_AWAY):  # Postgres is being restarted: that is what a storm is
            self._stored = sum((await store.stored_offsets(self.postgres)).values())
        self._watcher.progress(
            acknowledged=sent.acknowledged, stored=self._stored, behind=max(0, sent.acknowledged - self._stored),
            recorders=self.fleet.running, kills=sum(self.fleet.struck.values()),
            restarts=sum(self.servers.restarts.values()),
        )  # fmt: skip
        return sent.acknowledged, self._stored
