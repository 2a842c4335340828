"""The whole loop on one machine, to watch: ``make demo``.

Starts Kafka, Postgres, S3 and the five services in ``var/demo``, makes a tiny model that plays at chance, deploys it,
and lets agents play a market game. What they do is recorded, archived, trained on and deployed back to them, until
held-out play earns more than 0.9. Then every event is accounted for, and ``var/demo`` holds ``summary.json``,
``reward.png`` and ``report.html``. Exit status 0: the goal was reached through the services, nothing lost or twice.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import asyncpg
from rich.console import Console

from deploy.local.parts import StackError
from deploy.local.stack import LocalStack
from examples.market import accounts, report, store
from examples.market.fleet import ROOT, Fleet, Recipe
from examples.market.monitor import Monitor
from examples.market.result import Result, versions_of
from examples.market.view import View
from flywheel.cli.models import import_model
from flywheel.connection_settings import KafkaConnection, S3Connection
from flywheel.errors import FlywheelError
from flywheel.messages import DEFAULT_CHANNEL
from flywheel.settings import Connections
from flywheel.storage import postgres

T = TypeVar("T")

TARGET = 0.9
DEADLINE_S = 300.0
#: Longest wait, once agents have stopped, until every event is accounted for, in seconds.
DRAIN_S = 60.0

#: The recipe that learns: measured, not guessed.
TRAINER = {
    "LEARNING_RATE": "2e-3",
    "EPSILON": "0.2",
    "EPSILON_HIGH": "1.0",
    "MICRO_BATCH": "32",
    "ITERATIONS": "4",
    "MAX_GRAD_NORM": "1.0",
    "LOSS_TYPE": "dapo",
    "IS_MODE": "decoupled",
    "TEMPERATURE": "1.0",
    "MAX_STALENESS": "3",
    "DEVICE": "cpu",
    "THREADS": "2",
}


def settings(recipe: Recipe) -> dict[str, str]:
    """Return the services' settings for the demo: a round of play is a batch, and what died is not waited for long."""
    services = {f"FLYWHEEL_TRAINER_{name}": value for name, value in TRAINER.items()}
    return services | {
        "FLYWHEEL_ARCHIVER_MIN_TRAJECTORIES": str(recipe.batch_trajectories),
        "FLYWHEEL_ARCHIVER_MIN_GROUPS": str(recipe.batch_groups),
        "FLYWHEEL_ARCHIVER_MAX_TRAJECTORIES": str(2 * recipe.batch_trajectories),
        "FLYWHEEL_ARCHIVER_GROUP_SETTLE_S": "20",
        "FLYWHEEL_ARCHIVER_CHECK_INTERVAL_S": "0.5",
        "FLYWHEEL_RECORDER_IDLE_CLOSE_S": "30",
    }


def environment(recipe: Recipe) -> dict[str, str]:
    """Return the environment of the demo's own stack: ours, without what points at another stack."""
    elsewhere = ("FLYWHEEL_KAFKA", "FLYWHEEL_POSTGRES", "FLYWHEEL_S3", "FLYWHEEL_VAR", "FLYWHEEL_ENV_FILE")
    paths = [str(ROOT / "shared"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {name: value for name, value in os.environ.items() if not name.startswith(elsewhere)}
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(paths)}
    return {**ours, **quiet, **settings(recipe)}


def connections(env: Mapping[str, str]) -> Connections:
    """Return the addresses of a started stack, whatever our own environment says of another one."""
    parts = (KafkaConnection.of(env), S3Connection.of(env))
    found = {name: getattr(part, name) for part in parts for name in type(part).model_fields}
    return Connections(**found, postgres=env["FLYWHEEL_POSTGRES"])


class Demo:
    """One run, from an empty folder to its report."""

    def __init__(self, options: argparse.Namespace, view: View, recipe: Recipe) -> None:
        self.options = options
        self.view = view
        self.recipe = recipe
        self.folder: Path = options.var
        self._env = environment(recipe)
        self._began = time.monotonic()
        self._phases: dict[str, float] = {}
        self._note: str | None = None

    async def run(self) -> Result:
        """Do everything, stop everything, and return what came of it."""
        stack = LocalStack(self.folder, environ=self._env)
        if stack.files.is_locked():
            raise StackError(f"another demo is running in {self.folder}")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        try:
            await self._timed("stack and base model", self._prepare(stack))
            pool = await postgres.connect(stack.env["FLYWHEEL_POSTGRES"])
            try:
                result = await self._with_agents(stack, pool)
            finally:
                with suppress(TimeoutError):
                    await asyncio.wait_for(pool.close(), 5)
            await asyncio.to_thread(report.write, result, self.folder)
            if self.options.keep:
                await self._keep(stack)
            return result
        finally:
            await stack.stop()

    async def _prepare(self, stack: LocalStack) -> None:
        making = asyncio.create_task(self._make_model())
        try:
            await stack.start(on_progress=self.view.say)
            await making
        finally:
            making.cancel()

    async def _make_model(self) -> None:
        arguments = [str(self.folder / "base-model"), "--seed", str(self.options.seed), "--threads", "1"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "examples.market.tiny_model", *arguments,
            cwd=ROOT, env=self._env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise StackError(f"the base model could not be made:\n{output.decode(errors='replace')[-2000:]}")
        self.view.say("base model: " + output.decode(errors="replace").strip().splitlines()[-1])

    async def _with_agents(self, stack: LocalStack, pool: asyncpg.Pool) -> Result:
        fleet = Fleet(self.folder, {**self._env, **stack.env}, self.recipe, self.options.seed, self.view.say)

        def restarts() -> dict[str, int]:
            return {name: part.restarts for name, part in stack.parts.items()} | fleet.restarts

        monitor = Monitor(pool, stack.parts["recorder"].address, DEFAULT_CHANNEL, restarts, self.view.show)
        watching = asyncio.create_task(monitor.run())
        try:
            await self._timed("agents", fleet.start())
            await import_model(self.folder / "base-model", connections(stack.env), DEFAULT_CHANNEL, name="tiny-market")
            await self._timed("loop", self._until_learned(monitor, watching))
            self.view.say("stopping the agents")
            await self._timed("stopping agents", fleet.stop())
            verdict, lag = await self._timed(
                "accounting", accounts.settle(pool, stack.env["FLYWHEEL_KAFKA"], fleet.ledgers(), DRAIN_S)
            )
            moment = monitor.moment
            lineage = await store.lineage(pool, DEFAULT_CHANNEL)
            return Result(
                seed=self.options.seed, target=TARGET, versions=versions_of(lineage, self.recipe.held_out),
                verdict=verdict, lineage=lineage, seconds=self._phases, total_seconds=time.monotonic() - self._began,
                restarts={name: count for name, count in restarts().items() if count},
                peak_events_per_s=moment.peak_events_per_s, dropped=accounts.dropped(fleet.reports()),
                lag=lag, note=self._note,
            )  # fmt: skip
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await fleet.stop()

    async def _until_learned(self, monitor: Monitor, watching: asyncio.Task[None]) -> None:
        deadline = time.monotonic() + self.options.deadline
        while time.monotonic() < deadline:
            scores = monitor.moment.snapshot.whole_held_out(self.recipe.held_out)
            if any(found.reward > TARGET for found in scores.values()):
                return
            if watching.done():
                await watching  # raises what ended it
            await asyncio.sleep(0.1)
        self._note = f"the deadline of {self.options.deadline:g} s passed"

    async def _keep(self, stack: LocalStack) -> None:
        self.view.say("the stack stays up until Ctrl-C:")
        for part in stack.parts.values():
            self.view.say(f"  {part.name:10} {part.address}")
        self.view.say(f"  settings   set -a; . {stack.files.env}")
        await asyncio.Event().wait()

    async def _timed(self, phase: str, work: Awaitable[T]) -> T:
        began = time.monotonic()
        try:
            return await work
        finally:
            self._phases[phase] = time.monotonic() - began


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.market.demo",
        description="Watch agents get better: play, record, archive, train, deploy, on this machine.",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the base model and of the training scenarios")
    parser.add_argument(
        "--deadline", type=float, default=DEADLINE_S, help="longest loop, in seconds (default %(default)g)"
    )
    parser.add_argument("--ahead", type=int, default=Recipe().ahead, help="rounds that agents play ahead of training")
    parser.add_argument("--var", type=Path, default=Path("var/demo"), help="folder for everything; emptied first")
    parser.add_argument("--keep", action="store_true", help="leave the stack up afterwards, until Ctrl-C")
    return parser.parse_args(argv)


async def supervised(options: argparse.Namespace, console: Console) -> Result:
    """Run the demo; SIGTERM stops everything just as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    recipe = Recipe(ahead=options.ahead)
    with View(console, recipe.held_out, TARGET) as view:
        return await Demo(options, view, recipe).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit status: 0 goal reached, 1 not reached or not startable, 130 interrupted."""
    options = parse(argv)
    console = Console()
    try:
        result = asyncio.run(supervised(options, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted; everything that was started is stopped")
        return 130
    except (FlywheelError, TimeoutError) as error:
        console.print(f"the demo failed: {error}", style="red", markup=False)
        return 1
    console.print(report.table(result))
    for name in ("summary.json", "reward.png", "report.html"):
        console.print(f"  {options.var / name}", markup=False, highlight=False)
    for problem in result.problems:
        console.print(f"not as it should be: {problem}", style="red", markup=False)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
