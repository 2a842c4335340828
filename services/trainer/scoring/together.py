"""Several works at once, of which a failure of one ends all. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Result = TypeVar("Result")


async def together(works: Sequence[Callable[[], Awaitable[Result]]], limit: int) -> list[Result]:
    """Return what the works give, in their order, ``limit`` of them at a time.

    The first error is raised as it is, once the others were cancelled and are over.
    """
    slots = asyncio.Semaphore(limit)

    async def run(work: Callable[[], Awaitable[Result]]) -> Result:
        async with slots:
            return await work()

    tasks = [asyncio.create_task(run(work)) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
