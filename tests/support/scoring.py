"""Attempts for scorers to compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flywheel.events import Action, Event, LLMCall, Message, Sampling, Step, TrajectoryEnded, TrajectoryStarted
from flywheel.trajectory import Trajectory, assemble
from tests.support.world import unique

GOAL = "Sell the lamp for as much as you can."


def attempt(
    said: str,
    *,
    group: str | None = "g",
    scenario: str = "shop-lamp",
    reward: float | None = 0.5,
    components: dict[str, float] | None = None,
    steps: int = 2,
    trainable: bool = True,
    success: bool | None = True,
    trajectory_id: str | None = None,
    **ended: Any,
) -> list[Event]:
    """One attempt as an agent publishes it, in which the model says ``said`` at the end."""
    common: dict[str, Any] = {"trajectory_id": trajectory_id or unique("t"), "agent_id": "agent"}
    events: list[Event] = [
        TrajectoryStarted(**common, seq=0, scenario_id=scenario, group_id=group, model_version="1.0.0")
    ]
    messages = [Message(role="system", content=GOAL), Message(role="user", content="What is your price?")]
    ids: dict[str, Any] = {"prompt_token_ids": [1], "completion_token_ids": [2], "completion_logprobs": [-0.5]}
    for step in range(steps):
        last = step == steps - 1
        answer = said if last else f"Offer number {step}."
        events.append(
            LLMCall(
                **common, seq=len(events), step=step, model="tiny", messages=messages, response=answer,
                sampling=Sampling(temperature=1.0), **(ids if trainable else {}),
            )
        )  # fmt: skip
        messages = [*messages, Message(role="assistant", content=answer), Message(role="user", content="And now?")]
        events.append(
            Step(
                **common, seq=len(events), step=step, reward=reward if last else None, done=last,
                reward_components=(components or {}) if last else {}, action=Action(name="offer", success=success),
            )
        )  # fmt: skip
    return [*events, TrajectoryEnded(**common, seq=len(events), **ended)]


def trajectory(said: str, **fields: Any) -> Trajectory:
    return assemble(attempt(said, **fields), revision=1)


def group_of(qualities: Sequence[float], **fields: Any) -> list[list[Event]]:
    """Attempts of one group that a judge finds this good."""
    group = unique("g")
    return [attempt(f"Deal. quality={quality}", group=group, **fields) for quality in qualities]
