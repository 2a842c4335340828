"""The demo, whole: agents learn through the services alone, and every event is accounted for."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from tests.support.demo import GOAL, LONGEST_S, DemoRun
from tests.support.processes import ROOT
from tests.support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(LONGEST_S)]


@pytest_asyncio.fixture
async def demo(request: pytest.FixtureRequest) -> AsyncIterator[DemoRun]:
    run = DemoRun(ROOT / "var" / "tests" / f"demo-{os.getpid()}-{request.node.name}")
    yield run
    await run.stop()
    shutil.rmtree(run.var, ignore_errors=True)


async def test_agents_learn_through_the_services_and_no_event_is_lost_or_doubled(demo: DemoRun) -> None:
    for seed in ("1", "5"):
        await demo.start("--seed", seed)
        status = await demo.end()
        found = demo.summary()
        assert found["lost"] == found["twice"] == found["trajectories_with_holes"] == 0
        if found["held_out_reward"] > GOAL:
            break
    assert status == 0, demo.tail()
    assert found["ok"] and found["problems"] == []
    assert found["held_out_reward"] > 0.9 and 0.03 < found["chance_reward"] < 0.25
    assert found["lost"] == found["twice"] == found["dead"] == found["trajectories_with_holes"] == 0
    assert found["events_published"] == found["events_recorded"] > 10_000
    assert found["versions_to_goal"] <= found["versions"] and found["loop_seconds"] > 0
    learned = [entry for entry in found["reward_by_version"] if entry["batch"]]
    assert learned and all(entry["parent"] for entry in learned)
    assert (demo.var / "reward.png").stat().st_size > 10_000
    page = (demo.var / "report.html").read_text()
    assert all(entry["batch"] in page for entry in learned)


async def test_ctrl_c_stops_everything_that_was_started(demo: DemoRun) -> None:
    await demo.start()
    await demo.until("recorder: ready")
    pids = demo.pids()
    assert len(pids) >= 6
    demo.interrupt()
    assert await demo.end() == 130, demo.tail()
    await eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert not (demo.var / "summary.json").exists()
