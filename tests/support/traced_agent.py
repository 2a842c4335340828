"""An agent with the SDK as its users have it: plays the tiny model, waits for the version that is learned of that, and
takes it up. ``python -m tests.support.traced_agent AGENT_ID``.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from flywheel.sdk import ModelSubscriber, Recorder
from services.trainer.rows import Row
from tests.support.training import as_calls
from tests.support.world import unique
from tests.training.builders import recorded_rows, tiny_model

SIZES = (3, 4)


async def main(agent_id: str) -> None:
    """Play groups of these sizes, then take up the next version."""

    def load(folder: Path) -> str:
        return folder.name

    async with Recorder.from_env(agent_id, strict=True) as recorder, ModelSubscriber.from_env(agent_id, load) as models:
        first = await models.wait_for_model(60)
        chance, groups = random.Random(0), [unique("group") for _ in SIZES]
        for row in recorded_rows(tiny_model(), SIZES):
            number = int(row.trajectory_id.partition("-")[0])
            await play(recorder, row, groups[number], SIZES[number], first.version, chance.random())
        await recorder.flush()
        assert await models.wait_for_newer(first.version, 240)
        models.tick()
    assert not recorder.stats.dropped


async def play(recorder: Recorder, row: Row, group: str, size: int, version: str, reward: float) -> None:
    """Record one game."""
    async with recorder.trajectory("game", group_id=group, group_size=size, model_version=version) as game:
        calls = as_calls(row)
        for prompt, sampled, logprobs in calls:
            async with game.step() as step:
                async with step.llm_call(model="tiny", sampling={"temperature": 1.0}) as call:
                    call.set(prompt_token_ids=prompt, completion_token_ids=sampled, completion_logprobs=logprobs)
                step.complete(action="move", reward=reward if calls[-1][1] is sampled else None)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
