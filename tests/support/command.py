"""The ``flywheel`` command as a process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.processes import ROOT, service_environment


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Command:
    """Runs ``flywheel …`` with these FLYWHEEL_ settings."""

    settings: Mapping[str, str]

    async def __call__(self, *arguments: str, **more: str) -> Done:
        """Run it with further settings."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "flywheel.cli.main", *arguments, cwd=ROOT,
            env=service_environment({**self.settings, **more}), stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return Done(process.returncode or 0, out.decode(), err.decode())
