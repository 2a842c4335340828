"""Servers of the local stack that are stopped or killed in a storm, and come back: its supervisor starts them again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from contextlib import suppress

import asyncpg

from deploy.local import probes
from deploy.local.stack import LocalStack
from flywheel.errors import TransientError
from tests.chaos.schedule import Deed

_SIGNALS = {
    "stop postgres": signal.SIGINT,  # its fast shutdown
    "kill postgres": signal.SIGKILL,
    "stop kafka": signal.SIGTERM,
    "kill kafka": signal.SIGKILL,
}
_BACK_WITHIN_S = 120.0


class Servers:
    """Ends servers, one at a time, and waits until they answer again. ``restarts`` counts them by deed."""

    def __init__(self, stack: LocalStack) -> None:
        self._stack = stack
        self._turn = asyncio.Lock()
        self.restarts: Counter[str] = Counter()

    async def restart(self, deed: Deed) -> None:
        """Do it, and return when the server is back. Raises TimeoutError when it stays away for minutes."""
        name = deed.split()[1]
        async with self._turn, asyncio.timeout(_BACK_WITHIN_S):
            pid = await self._answering(name, None)
            with suppress(ProcessLookupError):
                os.kill(pid, _SIGNALS[deed])
            self.restarts[deed] += 1
            await self._answering(name, pid)

    async def _answering(self, name: str, gone: int | None) -> int:
        while True:
            part = self._stack.parts[name]
            if part.pid not in (None, gone) and part.state == "running":
                with suppress(OSError, TransientError, asyncpg.PostgresError):
                    await probes.probe_infrastructure(name, self._stack.env)
                    assert part.pid is not None
                    return part.pid
            await asyncio.sleep(0.2)
