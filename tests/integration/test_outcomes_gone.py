"""Outcomes about trajectories of which retention has removed steps."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from flywheel.events import Step
from flywheel.log import Seldom
from flywheel.outcomes import Rule
from flywheel.storage.postgres import connect
from services.recorder.ledger import store as ledger_store
from services.recorder.store import prepare
from tests.support.judged import Transactions, outcome, played
from tests.support.recording import envelope
from tests.support.world import unique

pytestmark = pytest.mark.stack


@pytest_asyncio.fixture
async def recorder(database: str) -> AsyncIterator[Transactions]:
    async with await connect(database, init=prepare) as pool:
        yield Transactions(pool)


async def test_of_steps_that_are_gone_a_retraction_takes_the_rewards_and_a_correction_leaves_them(
    recorder: Transactions,
) -> None:
    name, scenario = unique("t"), unique("s")
    await recorder.store(played(name, scenario))
    one = outcome(Rule(value=1.0), scenario_id=scenario)
    await recorder.publish([one])
    await recorder.apply()
    whole = await recorder.row(name)
    await recorder.pool.execute("DELETE FROM events WHERE trajectory_id = $1 AND step = 1", name)
    await recorder.publish([one.model_copy(update={"revision": 2, "rules": [Rule(value=5.0)]})])
    await recorder.apply()
    row = await recorder.row(name)
    assert row["outcome_count"] == whole["outcome_count"]
    assert row["outcome_sum"] == 1 + 5 * (whole["outcome_count"] - 1)  # the step that is gone, and the others
    await recorder.publish([one.model_copy(update={"revision": 3, "retracted": True})])
    await recorder.apply()
    row = await recorder.row(name)
    assert (row["outcome_count"], row["outcome_sum"]) == (0, 0)


async def test_steps_that_are_gone_are_not_complained_about_with_every_batch(
    recorder: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_store, "_gone_seldom", Seldom())
    name, scenario = unique("t"), unique("s")
    await recorder.store(played(name, scenario))
    await recorder.publish([outcome(Rule(value=1.0), scenario_id=scenario)])
    await recorder.apply()
    await recorder.pool.execute("DELETE FROM events WHERE trajectory_id = $1 AND step = 1", name)
    with capture_logs() as lines:
        for seq in (11, 12, 13):
            await recorder.store([Step(**envelope(name, seq), step=seq)])
    assert [line["example"] for line in lines if line["log_level"] == "warning"] == [name]
