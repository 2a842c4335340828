"""Retry in place: the same work again until the world is fit, readiness false meanwhile, liveness kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from flywheel import metrics, tracing
from flywheel.errors import TransientError
from flywheel.health import Health
from flywheel.log import get_logger
from flywheel.waiting import first_of

_log = get_logger(__name__)

Result = TypeVar("Result")

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
_BEAT_S = 5.0


def backoff(attempt: int, chance: Callable[[], float] = random.random) -> float:
    """Return how long to wait, in seconds, after the failed ``attempt`` (1, 2, …): doubling, capped, with half of it
    jitter.
    """
    ceiling = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(attempt - 1, 16))
    return ceiling * (0.5 + 0.5 * chance())


class Stopped(Exception):  # noqa: N818 - not an error: the service was asked to stop while it waited
    """The service was asked to stop before the work could be done."""


async def beating(work: Awaitable[Result], *, health: Health, beat: str) -> Result:
    """Return what ``work`` returns; the loop ``beat`` ticks while it takes its time. For what ends by itself, though
    late: a database that is frozen lets each statement wait for its timeout, and a restart would mend nothing.
    """
    task = asyncio.ensure_future(work)
    try:
        health.beat(beat)
        while not (await asyncio.wait({task}, timeout=_BEAT_S))[0]:
            health.beat(beat)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def retry_in_place(
    work: Callable[[], Awaitable[Result]],
    *,
    transient: Callable[[BaseException], bool] = lambda error: isinstance(error, TransientError),
    health: Health,
    check: str,
    stop: asyncio.Event,
    beat: str | None = None,
) -> Result:
    """Return what ``work`` returns, trying again forever after transient errors; other errors are raised as they are.

    The readiness check ``check`` is false from the first failure to the next success; ``beat`` names the loop that
    still ticks while it waits. Raises Stopped, caused by the last error, when ``stop`` is set while it waits.
    """
    attempt = 0
    while True:
        try:
            result = await work()
        except Exception as error:
            if not transient(error):
                raise
            attempt += 1
            hint = error.retry_after if isinstance(error, TransientError) else None
            delay = hint if hint is not None else backoff(attempt)
            metrics.RETRIES.labels(check).inc()
            tracing.event("retry", {"flywheel.check": check, "error.type": type(error).__name__})
            health.ready(check, False, f"{type(error).__name__}: {error}")
            if beat is not None:
                health.beat(beat)
            _log.warning("retrying", check=check, attempt=attempt, delay_s=round(delay, 3), error=repr(error))
            if await first_of(stop, timeout=delay):
                raise Stopped(f"stopped after {attempt} attempts") from error
        else:
            health.ready(check, True)
            return result
