"""Exports as a response: written as they are read, so that their size does not matter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from flywheel import metrics
from flywheel.export import art_line
from flywheel.trajectory import Trajectory
from services.gateway.problems import problem
from services.gateway.store import Export

#: Exports at once. Each holds a connection and a snapshot of the database.
MOST_EXPORTS = 2
_COME_AGAIN_S = 10


class ExportGate(asyncio.Semaphore):
    """Lets so many exports through at once; the others are told to come again."""

    def __init__(self) -> None:
        super().__init__(MOST_EXPORTS)


class ArtExport(StreamingResponse):
    """ART JSON Lines. An error on the way breaks the connection: what ends properly is complete."""

    media_type = "application/x-ndjson"

    def __init__(self, opening: AbstractAsyncContextManager[Export], gate: ExportGate) -> None:
        super().__init__(_nothing())
        self._opening = opening
        self._gate = gate
        self.headers["Content-Disposition"] = 'attachment; filename="trajectories.jsonl"'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open the export, write it, and let go of its snapshot however that ends."""
        if self._gate.locked():
            busy = problem(
                503, f"{MOST_EXPORTS} exports are under way. Try again in {_COME_AGAIN_S} s.",
                headers={"Retry-After": str(_COME_AGAIN_S)},
            )  # fmt: skip
            return await busy(scope, receive, send)
        async with self._gate, self._opening as export:
            self.headers["X-Flywheel-Without-Reward"] = str(export.without_reward)
            self.headers["X-Flywheel-Archived"] = str(export.archived)
            self.body_iterator = _lines(export.chunks)
            return await super().__call__(scope, receive, send)


async def _lines(chunks: AsyncIterator[list[Trajectory]]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield await asyncio.to_thread(_write, chunk)
        metrics.EXPORTED.inc(len(chunk))


def _write(chunk: Sequence[Trajectory]) -> bytes:
    return b"".join(art_line(trajectory) for trajectory in chunk)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
