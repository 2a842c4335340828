"""Takes servers away from a recorder while producers go on: ``python -m tests.chaos.outage --minutes 10``.

Postgres stopped, Postgres frozen (connections stand, nothing answers), Kafka stopped. Meanwhile the recorder must be
alive, unready with the reason, and flat in memory; afterwards it must recover by itself, with nothing lost. Status 0
only if all of that held; the figures are in ``var/chaos/outage.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import psutil

from deploy.local.stack import LocalStack
from flywheel.errors import TransientError
from flywheel.settings import LocalSettings
from tests.chaos import store
from tests.chaos.producers import Producers
from tests.chaos.reconcile import Verdict, reconcile
from tests.chaos.traffic import Recipe
from tests.support.processes import ServiceProcess, service_environment

#: What the recorder may hold beyond what it held before: two batches of at most 32 MiB, and one fetch of 32 MiB.
GROWTH_MB = 96
#: A server that is away, or back, must have been noticed after this long, in seconds.
NOTICED_WITHIN_S = 30.0
#: A frozen server's statements fail after a minute, then the next attempt may be a few seconds off.
RECOVERED_WITHIN_S = 180.0
_SAMPLE_S = 0.5
_AWAY = (OSError, TimeoutError, TransientError, asyncpg.PostgresError, asyncpg.InterfaceError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long Postgres is stopped and the others are away, in seconds; events per second; quiet time around each."""

    stopped_s: float = 15.0
    others_s: float = 15.0
    between_s: float = 5.0
    rate: int = 200
    var: Path = Path("var/chaos")


@dataclass(slots=True)
class Figures:
    """What one outage looked like from outside. ``rss_most_mb`` is with the recovery, when batches are full."""

    what: str
    seconds: float
    unready_after_s: float | None = None
    reasons: list[str] = field(default_factory=list)
    always_alive: bool = True
    rss_before_mb: float = 0.0
    rss_away_mb: float = 0.0
    rss_most_mb: float = 0.0
    rss_after_mb: float = 0.0
    oldest_waited_s: float = 0.0
    ready_after_s: float | None = None
    caught_up_after_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the recorder did what it must."""
        noticed = self.unready_after_s is not None and self.unready_after_s < NOTICED_WITHIN_S and self.reasons
        flat = self.rss_most_mb - self.rss_before_mb < GROWTH_MB
        return bool(noticed and self.always_alive and flat and self.caught_up_after_s is not None)


@dataclass(slots=True)
class Outcome:
    """What came of it all."""

    outages: list[Figures]
    verdict: Verdict

    @property
    def ok(self) -> bool:
        """Whether the recorder kept its promise."""
        return self.verdict.ok and all(one.ok for one in self.outages)


class Outages:
    """One recorder, one producer, and the servers under them."""

    def __init__(self, options: Options, stack: LocalStack, recorder: ServiceProcess, producers: Producers) -> None:
        self._options = options
        self._stack = stack
        self._recorder = recorder
        self._producers = producers

    async def run(self) -> list[Figures]:
        """Take everything away once, one after the other."""
        o = self._options
        found = []
        for what, seconds in (
            ("postgres stopped", o.stopped_s), ("postgres frozen", o.others_s), ("kafka stopped", o.others_s)
        ):  # fmt: skip
            await asyncio.sleep(o.between_s)
            found.append(await self._outage(Figures(what, seconds)))
        return found

    async def _outage(self, figures: Figures) -> Figures:
        server, how = figures.what.split()
        figures.rss_before_mb = figures.rss_most_mb = self._rss()
        if how == "frozen":
            frozen = self._family(server)
            for process in frozen:
                process.send_signal(signal.SIGSTOP)
        else:
            frozen = []
            await self._stack.halt(server)
        began = time.monotonic()
        while time.monotonic() - began < figures.seconds:
            await self._sample(figures, began, away=True)
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        if not frozen:
            await self._stack.resume(server)
        back = time.monotonic()
        while time.monotonic() - back < RECOVERED_WITHIN_S:
            ready = await self._sample(figures, back, away=False)
            if ready and figures.ready_after_s is None:
                figures.ready_after_s = round(time.monotonic() - back, 1)
            with suppress(*_AWAY):
                if ready and await store.lag(
                    self._stack.env["FLYWHEEL_KAFKA"], self._stack.env["FLYWHEEL_POSTGRES"]
                ) < (
                    2 * self._options.rate  # it is kept up with: more comes all the time
                ):
                    figures.caught_up_after_s = round(time.monotonic() - back, 1)
                    break
        figures.rss_after_mb = self._rss()
        return figures

    async def _sample(self, figures: Figures, since: float, *, away: bool) -> bool:
        status, body = await asyncio.to_thread(self._recorder.get, "/readyz")
        alive, _ = await asyncio.to_thread(self._recorder.get, "/healthz")
        _, metrics = await asyncio.to_thread(self._recorder.get, "/metrics")
        figures.always_alive &= alive == 200 and self._recorder.returncode is None
        rss = self._rss()
        figures.rss_most_mb = max(figures.rss_most_mb, rss)
        if away:
            figures.rss_away_mb = max(figures.rss_away_mb, rss)
        ages = [float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith("flywheel_lag_sec")]
        figures.oldest_waited_s = max([figures.oldest_waited_s, *ages])
        if away and status == 503:
            if figures.unready_after_s is None:
                figures.unready_after_s = round(time.monotonic() - since, 1)
            for check, why in json.loads(body)["problems"].items():
                said = f"{check}: {why}"[:160]
                if len(figures.reasons) < 8 and said not in figures.reasons:
                    figures.reasons.append(said)
        self._producers.check()
        await asyncio.sleep(_SAMPLE_S)
        return status == 200

    def _family(self, server: str) -> list[psutil.Process]:
        pid = self._stack.parts[server].pid
        assert pid is not None
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]

    def _rss(self) -> float:
        return round(psutil.Process(self._recorder.pid).memory_info().rss / 2**20, 1)


async def outages(options: Options) -> Outcome:
    """Run them all, from an empty stack to the verdict. What was started is stopped, however it ends."""
    folder = options.var / "outage"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    total_s = options.stopped_s + 2 * options.others_s + 4 * options.between_s
    async with AsyncExitStack() as end:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FLYWHEEL_")}
        stack = LocalStack(folder, services=False, environ=environ, settings=LocalSettings.load())
        end.push_async_callback(stack.stop)
        await stack.start()
        kafka, postgres = stack.env["FLYWHEEL_KAFKA"], stack.env["FLYWHEEL_POSTGRES"]
        settings = {**stack.env, "FLYWHEEL_ENV_FILE": os.devnull, "FLYWHEEL_LOG_LEVEL": "info"}
        recorder = ServiceProcess("recorder", settings, folder / "recorder.log")
        end.callback(lambda: recorder.returncode is None and recorder.kill())
        await recorder.start()
        recipe = Recipe(
            seed=4, producer=0, start=datetime.now(UTC).replace(microsecond=0), events=round(total_s * options.rate)
        )
        producers = Producers(kafka, [recipe], service_environment({}), folder)
        end.push_async_callback(producers.stop)
        await producers.start()
        pace = asyncio.create_task(_pace(producers, total_s))
        end.callback(pace.cancel)
        found = await Outages(options, stack, recorder, producers).run()
        pace.cancel()
        producers.allow(1.0)
        async with asyncio.timeout(RECOVERED_WITHIN_S):
            while not (
                producers.done
                and await store.lag(kafka, postgres) == 0
                and await store.waiting_announcements(postgres) == 0
            ):
                await asyncio.sleep(_SAMPLE_S)
        status = await recorder.stop()
        assert status == 0, recorder.tail()
        return Outcome(found, reconcile(list(producers.ledger()), await store.collect(kafka, postgres)))


async def _pace(producers: Producers, total_s: float) -> None:
    began = time.monotonic()
    while True:
        producers.allow(min(1.0, (time.monotonic() - began) / total_s))
        await asyncio.sleep(0.2)


def report(outcome: Outcome, options: Options) -> dict[str, object]:
    """Return the result as it is written down."""
    verdict = outcome.verdict
    return {
        "ok": outcome.ok, "sent": verdict.sent, "recorded": verdict.recorded, "dead": sum(verdict.dead.values()),
        "lost": verdict.lost, "twice": verdict.twice, "growth_bound_mb": GROWTH_MB,
        "outages": [{**asdict(one), "ok": one.ok} for one in outcome.outages],
        "wrong": verdict.examples(), "config": {**asdict(options), "var": str(options.var)},
    }  # fmt: skip


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.outage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    short = Options()
    parser.add_argument("--minutes", type=float, help="how long Postgres is stopped; the others at most two of them")
    parser.add_argument("--rate", type=int, default=short.rate, help="events a second (%(default)s)")
    parser.add_argument("--var", type=Path, default=short.var, help="folder of the run and its result")
    told = parser.parse_args()
    seconds = short.stopped_s if told.minutes is None else 60 * told.minutes
    others = short.others_s if told.minutes is None else min(seconds, 120.0)
    options = Options(stopped_s=seconds, others_s=others, rate=told.rate, var=told.var.resolve())
    outcome = asyncio.run(outages(options))
    found = json.dumps(report(outcome, options), indent=2)
    (options.var / "outage.json").write_text(found + "\n", encoding="utf-8")
    sys.stdout.write(found + "\n")
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
