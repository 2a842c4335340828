"""The trainer's side of the worker process: started, handed orders, listened to, started again when it dies."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable

from pydantic import ValidationError

from flywheel.health import Health
from flywheel.log import get_logger
from flywheel.waiting import first_of
from services.trainer.protocol import Done, Failed, Order, Ready, Report, Setup, Skipped, Stage, Steps, parse_report

_log = get_logger(__name__)

_CHECK = "worker"
#: Longest line of the worker's: an answer says a hundred bytes of each of the batch's scenarios.
_LINE_BYTES = 64 * 1024 * 1024
#: A worker that lived this long, in seconds, died of something new: the wait before the next one begins small again.
_HEALTHY_S = 60.0
_LONGEST_WAIT_S = 30.0


class WorkerDied(Exception):  # noqa: N818 - what happened, in the words of the field
    """The worker process ended before it answered."""


class WorkerProcess:
    """One worker at a time. ``run`` keeps it alive; ``train`` hands it a job."""

    def __init__(self, setup: Setup, health: Health) -> None:
        self._setup = setup
        self._health = health
        self._process: asyncio.subprocess.Process | None = None
        self._reports: asyncio.Queue[Report | None] = asyncio.Queue()
        self.ready = asyncio.Event()
        health.ready(_CHECK, False, "importing torch and TRL")

    async def run(self, stop: asyncio.Event) -> None:
        """Keep a worker alive until ``stop`` is set, then end it."""
        wait = 1.0
        while not stop.is_set():
            began = time.monotonic()
            status = await self._live(stop)
            if stop.is_set():
                return
            wait = 1.0 if time.monotonic() - began > _HEALTHY_S else min(_LONGEST_WAIT_S, wait * 2)
            _log.error("the worker process died", status=status, restart_in_s=wait)
            self._health.ready(_CHECK, False, f"died with status {status}")
            await first_of(stop, timeout=wait)

    async def train(self, order: Order, listen: Callable[[Stage | Steps], None]) -> Done | Skipped | Failed:
        """Have the worker do a job and return its answer; ``listen`` hears of stages and steps.

        One job at a time, and only while ``ready`` is set. Raises WorkerDied.
        """
        process = self._process
        if not self.ready.is_set() or process is None or process.stdin is None:
            raise WorkerDied("it is not running")
        self._reports = asyncio.Queue()
        process.stdin.write(order.line())
        await process.stdin.drain()
        while (report := await self._reports.get()) is not None:
            if isinstance(report, Done | Skipped | Failed):
                return report
            if isinstance(report, Stage | Steps):
                listen(report)
        raise WorkerDied(f"it ended with status {process.returncode}")

    def abort(self) -> None:
        """Kill the worker: whoever waits for its answer gets WorkerDied, and ``run`` starts another."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _live(self, stop: asyncio.Event) -> int | None:
        """Start a worker and return its exit status when it has ended, by itself or because ``stop`` was set."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.trainer.worker", str(os.getpid()),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_BYTES,
        )  # fmt: skip
        self._process = process
        assert process.stdin is not None
        process.stdin.write(self._setup.line())
        reading = asyncio.create_task(self._read(process))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.ready.clear()
            self.abort()
            await process.wait()
            await asyncio.wait({reading})
            stopping.cancel()
            self._reports.put_nowait(None)
        reading.result()
        return process.returncode

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            try:
                report = parse_report(line)
            except ValidationError as error:
                _log.error("the worker broke the protocol", error=str(error), line=line[:200])
                return
            if isinstance(report, Ready):
                _log.info("worker ready", pid=process.pid, seconds=report.import_seconds, **report.libraries)
                self._health.ready(_CHECK, True)
                self.ready.set()
            else:
                self._reports.put_nowait(report)
