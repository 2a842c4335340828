"""Waiting for the first of some events."""

from __future__ import annotations

import asyncio

from flywheel.waiting import first_of


async def test_waiting_ends_with_the_first_event_or_with_the_time() -> None:
    first, second = asyncio.Event(), asyncio.Event()
    before = asyncio.all_tasks()
    assert await first_of(first, second, timeout=0.001) is False
    asyncio.get_running_loop().call_soon(second.set)
    assert await first_of(first, second) is True
    assert await first_of(first, second, timeout=0) is True
    await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before  # no waiter is left behind
