"""The demo ends well although each of its services is killed on the way."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from deploy.local.parts import SERVICES
from tests.support.demo import GOAL, LONGEST_S, DemoRun
from tests.support.processes import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(LONGEST_S)]


@asynccontextmanager
async def demo_with(seed: str) -> AsyncIterator[DemoRun]:
    """Give a demo that has just begun."""
    run = DemoRun(ROOT / "var" / "tests" / f"demo-killed-{os.getpid()}-{seed}")
    try:
        await run.start("--seed", seed)
        yield run
    finally:
        await run.stop()
        shutil.rmtree(run.var, ignore_errors=True)


@pytest.mark.parametrize("seeds", [("2", "4")])
async def test_killing_every_service_in_turn_costs_neither_the_goal_nor_an_event(seeds: Sequence[str]) -> None:
    for seed in seeds:
        async with demo_with(seed) as demo:
            await demo.until("version 1.0.0 deployed")
            ending = asyncio.create_task(demo.end())
            for service in SERVICES:
                demo.kill(service)
                await asyncio.wait({ending}, timeout=4)
            status = await ending
            found = demo.summary()
            assert {name: found["restarts"][name] for name in SERVICES} == dict.fromkeys(SERVICES, 1)
            assert found["lost"] == found["twice"] == found["uncounted"] == found["trajectories_with_holes"] == 0
            if found["held_out_reward"] > GOAL or seed == seeds[-1]:
                assert status == 0, demo.tail()
                return
