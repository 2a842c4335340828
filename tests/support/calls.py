"""Recorded calls of tokens alone, and what they are checked against."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from flywheel.events import Event, LLMCall, Step, TrajectoryEnded, TrajectoryStarted
from flywheel.trajectory import Trajectory, assemble
from services.trainer.calls import Policy, Rules, Sampled
from services.trainer.rows import Row

NOW = datetime(2026, 1, 2, tzinfo=UTC)
RULES = Rules(
    current=Policy(5, 1),
    policies={
        "1.0.0": Policy(1, 1), "1.2.0": Policy(3, 1), "1.3.0": Policy(4, 1), "1.4.0": Policy(5, 1),
        "2.0.0": Policy(6, 2),
    },
    max_staleness=2,
    temperature=1.0,
    vocabulary=10_000,
    started_at=NOW,
    max_tokens=40,
)  # fmt: skip


def call(prompt: Sequence[int], completion: Sequence[int], version: str | None = None, **values: Any) -> LLMCall:
    fields: dict[str, Any] = {
        "prompt_token_ids": list(prompt),
        "completion_token_ids": list(completion),
        "completion_logprobs": [-0.01 * token for token in completion],
        **values,
    }
    return LLMCall(trajectory_id="t", agent_id="a", seq=0, model="m", model_version=version, **fields)


def drawn(prompt: Sequence[int], completion: Sequence[int], version: int = 1, **values: Any) -> Sampled:
    """A call as it comes out of the check."""
    logprobs = values.pop("logprobs", [-0.01 * token for token in completion])
    return Sampled(list(prompt), list(completion), logprobs, version, values.pop("at", NOW), **values)


def trajectory(*calls: LLMCall, reward: float | None = 1.0, **values: Any) -> Trajectory:
    """One attempt with these calls; ``ended`` and ``started`` fields by name."""
    started = {key: values.pop(key) for key in ("split", "model_version", "group_id") if key in values}
    common: dict[str, Any] = {"trajectory_id": "t", "agent_id": "a"}
    events: list[Event] = [TrajectoryStarted(**common, seq=0, scenario_id="s", **{"model_version": "1.4.0", **started})]
    for each in calls:
        events.append(each.model_copy(update={"seq": len(events)}))
    events.append(Step(**common, seq=len(events), step=0, reward=reward))
    events.append(TrajectoryEnded(**common, seq=len(events) + values.pop("gap", 0), **values))
    return assemble(events, revision=1)


def sampled(row: Row) -> list[int]:
    return [token for token, mine in zip(row.tokens, row.sampled, strict=True) if mine]
