"""Runs the market demo as a person would, and reads what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from deploy.local.state import StackFiles
from deploy.local.supervisor import die_with_parent
from tests.support.processes import ROOT

#: The demo's own deadline, and the longest time for a test with it, in seconds: machines that run tests are busy ones.
DEADLINE_S, LONGEST_S = 300, 1260

#: What is above it counts as learned. From a handful of batches a policy may settle with one signal of eight unlearned,
#: and then there is nothing left to learn from: by chance, which the moments of kills and loads decide. So a test may
#: start over with another seed, once; what it says of events holds for each run.
GOAL = 0.9


@dataclass(slots=True)
class DemoRun:
    """A demo under way in the folder ``var``."""

    var: Path
    output: list[str] = field(default_factory=list)
    process: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str) -> None:
        """Start it."""
        command = [sys.executable, "-m", "examples.market.demo", "--var", str(self.var), "--deadline", str(DEADLINE_S)]
        self.process = await asyncio.create_subprocess_exec(
            *command, *arguments,
            cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT / 'shared'}{os.pathsep}{ROOT}", "COLUMNS": "200"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),  # a test run that is killed leaves nothing behind
        )  # fmt: skip

    async def until(self, words: str) -> None:
        """Return when a line of its output holds ``words``. Raises AssertionError when it ends before."""
        assert self.process is not None and self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode("utf-8", "replace"):
            self.output.append(line)
            if words in line:
                return
        raise AssertionError(f"the demo ended without saying {words!r}:\n{self.tail()}")

    async def end(self) -> int:
        """Return its exit status when it has ended."""
        assert self.process is not None and self.process.stdout is not None
        async for line in self.process.stdout:
            self.output.append(line.decode("utf-8", "replace"))
        return await self.process.wait()

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)

    async def stop(self) -> None:
        """End it, whatever it is doing."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            await self.process.wait()

    def kill(self, part: str) -> int:
        """Kill one part of its stack with SIGKILL; return the pid that it had."""
        state = StackFiles(self.var).read_state()
        assert state is not None
        pid = next(p.pid for p in state.parts if p.name == part)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid

    def pids(self) -> list[int]:
        """Return the pids of all parts and agents that live."""
        assert self.process is not None
        try:
            return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def summary(self) -> dict[str, Any]:
        """Return what ``summary.json`` says."""
        return json.loads((self.var / "summary.json").read_text())

    def tail(self) -> str:
        """Return the end of its output."""
        return "".join(self.output[-60:])
