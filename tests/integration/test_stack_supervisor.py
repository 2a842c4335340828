"""Real child processes: a child that dies comes back, and none outlives its supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from deploy.local.parts import StackError
from deploy.local.supervisor import Child, ChildSpec, Supervisor
from tests.support.processes import ROOT, service_environment

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "


class Watched:
    """A supervisor, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.supervisor = Supervisor(self.said.append, lambda: None)

    async def start(self, code: str, *, grace: float = 20.0) -> Child:
        log = self.folder / "child.log"
        argv = (sys.executable, "-c", code)
        return await self.supervisor.start(ChildSpec("child", argv, dict(os.environ), self.folder, log, grace=grace))

    @property
    def log(self) -> str:
        return (self.folder / "child.log").read_text()


@pytest_asyncio.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    it = Watched(tmp_path)
    yield it
    for name in list(it.supervisor.children):
        await it.supervisor.stop(name)


async def eventually(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.05)


async def test_a_killed_child_is_started_again_and_both_logs_say_so(watched: Watched) -> None:
    child = await watched.start(SLEEPER)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: child.restarts == 1 and child.state == "running")
    assert child.pid != first
    assert psutil.pid_exists(child.pid or 0)
    lines = [line for line in watched.log.splitlines() if "supervisor:" in line]
    assert f"child (pid {first}) was ended by SIGKILL" in lines[0]
    assert "restart 1 in 0.5 s" in lines[0]
    assert f"child started again, pid {child.pid}" in lines[1]
    assert len(watched.said) == 2


async def test_a_child_that_keeps_ending_is_restarted_after_growing_waits(watched: Watched) -> None:
    child = await watched.start("raise SystemExit(70)")
    await eventually(lambda: child.restarts >= 3)
    endings = [line for line in watched.said if "ended with status 70" in line]
    assert [line.split("restart ")[1] for line in endings[:3]] == ["1 in 0.5 s", "2 in 1 s", "3 in 2 s"]


async def test_a_stopped_child_stays_stopped(watched: Watched) -> None:
    child = await watched.start(SLEEPER)
    pid = child.pid or 0
    await watched.supervisor.stop("child")
    assert not psutil.pid_exists(pid)
    assert "watch child" not in {task.get_name() for task in asyncio.all_tasks()}  # nobody is left to start it again
    assert (child.state, child.restarts, watched.said) == ("stopped", 0, [])


async def test_a_child_that_ignores_the_signal_is_killed_after_its_grace(watched: Watched) -> None:
    child = await watched.start(STUBBORN, grace=0.5)
    pid = child.pid or 0
    await eventually(lambda: "up" in watched.log)
    await watched.supervisor.stop("child")
    assert not psutil.pid_exists(pid)
    assert "did not end within 0.5 s: killed" in watched.log


async def test_what_a_child_started_ends_with_it(watched: Watched) -> None:
    child = await watched.start(PARENT + SLEEPER)
    await eventually(lambda: "up" in watched.log)
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) == 1
    await watched.supervisor.stop("child")
    psutil.wait_procs(family, timeout=10)
    assert not any(member.is_running() for member in family)


async def test_a_program_that_is_not_there_is_named(watched: Watched) -> None:
    spec = ChildSpec("child", ("/no/such/program",), {}, watched.folder, watched.folder / "child.log")
    with pytest.raises(StackError, match="/no/such/program for child"):
        await watched.supervisor.start(spec)


ORPHANING = """
import asyncio, os, sys
from pathlib import Path
from deploy.local.supervisor import ChildSpec, Supervisor

async def main():
    folder = Path(sys.argv[1])
    supervisor = Supervisor(lambda line: None, lambda: None)
    argv = (sys.executable, "-c", "import time; time.sleep(600)")
    child = await supervisor.start(ChildSpec("child", argv, dict(os.environ), folder, folder / "child.log"))
    print(child.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help exists on Linux only")
async def test_the_children_of_a_killed_supervisor_end(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHANING, str(tmp_path)], stdout=subprocess.PIPE, env=service_environment({}), cwd=ROOT
    )
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    process.stdout.close()
    await eventually(lambda: not child.is_running())
