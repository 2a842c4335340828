"""What the demo shows while it runs: a live picture in a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.market.game import CHANCE
from examples.market.monitor import Moment
from examples.market.snapshot import Job

_BAR = 24
_SHOWN_VERSIONS = 12
#: Without a terminal, a line at least this often, in seconds.
_PULSE_S = 10.0


class View:
    """A context; while it is entered, :meth:`show` and :meth:`say` reach the person watching."""

    def __init__(self, console: Console, held_out: int, target: float) -> None:
        self._console = console
        self._held_out = held_out
        self._target = target
        self._began = time.monotonic()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._seen: dict[str, object] = {}
        self._spoke = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line of news, above the picture where there is one."""
        self._spoke = time.monotonic()
        self._console.print(f"{self._spoke - self._began:6.1f} s  {line}", highlight=False, markup=False)

    def show(self, moment: Moment) -> None:
        """Show the loop as it is now."""
        if self._live is not None:
            self._live.update(picture(moment, self._held_out, self._target), refresh=True)
            return
        for line in self._news(moment):
            self.say(line)
        if time.monotonic() - self._spoke > _PULSE_S:
            self.say(pulse(moment))

    def _news(self, moment: Moment) -> list[str]:
        found = moment.snapshot
        lines: list[str] = []

        def once(key: str, value: object, line: Callable[[], str]) -> None:
            if self._seen.get(key) != value:
                self._seen[key] = value
                lines.append(line())

        for v in found.versions:
            came = "imported" if v.origin == "imported" else f"trained from {v.parent} on {v.batch_id}"
            once(f"version {v.version}", True, lambda v=v, came=came: f"version {v.version} deployed, {came}")
            if v.loaded_by:
                once(
                    f"acks {v.version}",
                    v.loaded_by,
                    lambda v=v: f"version {v.version} runs on {', '.join(v.loaded_by)}",
                )
        for batch in found.batches:
            once(
                f"batch {batch.batch_id}", batch.status,
                lambda b=batch: f"batch {b.batch_id} {b.status}: {b.trajectories} trajectories in {b.groups} groups",
            )  # fmt: skip
        for job in found.jobs:
            if job.status in ("completed", "skipped", "failed", "cancelled"):
                once(f"job {job.job_id}", job.status, lambda j=job: f"training on {j.batch_id}: {describe(j)}")
        for version, scores in found.whole_held_out(self._held_out).items():
            once(f"score {version}", True, lambda v=version, s=scores: f"version {v}: held-out reward {s.reward:.3f}")
        if moment.trouble is not None:
            once("trouble", moment.trouble, lambda: str(moment.trouble))
        return lines


def describe(job: Job) -> str:
    """Say in a few words how a job stands."""
    if job.status == "training" and job.steps_total:
        return f"training, step {job.steps_done} of {job.steps_total}"
    if job.error:
        return f"{job.status}: {job.error[:80]}"
    return f"{job.status} after {job.attempt} attempts" if job.attempt > 1 else job.status


def pulse(moment: Moment) -> str:
    """Say in one line how the pipeline stands."""
    found = moment.snapshot
    lag = "unknown" if moment.lag is None else str(moment.lag)
    job = next((describe(j) for j in reversed(found.jobs)), "none yet")
    return (
        f"{found.events} events ({moment.events_per_s:.0f}/s), lag {lag}, {found.open} open and {found.closed} closed "
        f"trajectories, {found.waiting} waiting for a batch, {len(found.batches)} batches, last training {job}"
    )


def picture(moment: Moment, held_out: int, target: float) -> Group:
    """Return the live picture."""
    title = Text.assemble(
        ("Flywheel: the market demo  ", "bold"),
        f"loop {moment.elapsed:5.1f} s   goal: held-out reward > {target:g} (chance {CHANCE:g})",
    )
    versions, pipeline = _versions(moment, held_out, target), _pipeline(moment)
    return Group(title, versions, pipeline, *_trouble(moment), *_restarts(moment))


def _versions(moment: Moment, held_out: int, target: float) -> Table:
    found = moment.snapshot
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("version", "from", "held-out reward", "", "train reward", "profit", "runs on"):
        table.add_column(name, justify="right" if name in ("train reward", "profit") else "left", no_wrap=True)
    whole = found.whole_held_out(held_out)
    for v in found.versions[-_SHOWN_VERSIONS:]:
        scores, train = found.held_out.get(v.version), found.train.get(v.version)
        reward = scores.reward if scores else None
        good = reward is not None and v.version in whole and reward > target
        filled = round((reward or 0) * _BAR)
        bar = Text("█" * filled + "·" * (_BAR - filled), style="green" if good else "cyan")
        score = "playing" if reward is None else f"{reward:.3f}{'' if v.version in whole else ' so far'}"
        table.add_row(
            Text(v.version, style="bold"),
            "imported" if v.origin == "imported" else f"{v.parent}",
            bar,
            score,
            f"{train.reward:.3f}" if train else "",
            f"{scores.pnl:+.1f}" if scores else "",
            ", ".join(v.loaded_by) + (f"  refused by {', '.join(v.failed_at)}" if v.failed_at else ""),
        )
    return table


def _pipeline(moment: Moment) -> Table:
    found = moment.snapshot
    job = found.jobs[-1] if found.jobs else None
    progress = ""
    if job is not None and job.steps_total:
        filled = round(job.steps_done / job.steps_total * _BAR)
        progress = "█" * filled + "·" * (_BAR - filled)
    ready = sum(batch.status == "ready" for batch in found.batches)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    lag = "unknown" if moment.lag is None else f"{moment.lag}"
    table.add_row(
        "recording",
        f"{moment.events_per_s:.0f} events/s, {found.events} in all, lag {lag}, {found.open} trajectories open",
    )
    table.add_row("archive", f"{found.waiting} trajectories wait, {ready} batches ready")
    table.add_row("training", Text.assemble((progress, "magenta"), "  ", describe(job) if job else "no batch yet"))
    return table


def _trouble(moment: Moment) -> list[Text]:
    return [Text(moment.trouble, style="yellow")] if moment.trouble else []


def _restarts(moment: Moment) -> list[Text]:
    if not moment.restarts:
        return []
    counts = ", ".join(f"{name} {count}" for name, count in moment.restarts.items())
    return [Text(f"started again: {counts}", style="yellow")]
