"""Hypothesis strategies for the events of one trajectory, with everything that may go wrong among them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from hypothesis import strategies as st

from flywheel.events import (
    Action,
    Event,
    Failure,
    LLMCall,
    ProviderAccess,
    Reward,
    RewardKind,
    Step,
    TrajectoryEnded,
    TrajectoryStarted,
    Usage,
)
from flywheel.ids import uuid7
from flywheel.outcomes import Outcome, Rule

T = TypeVar("T")

#: Among them such as floats cannot add up without rounding, or at all.
_rewards = st.integers(-8, 8).map(lambda n: n / 4) | st.sampled_from([0.1, -0.3, 1e16, -1e308, 1.7e308, 5e-324])
_actions = st.builds(
    Action, name=st.sampled_from(["buy", "sell"]), success=st.sampled_from([None, True, False]),
    parameters=st.fixed_dictionaries({"n": st.integers(1, 2)}, optional={"market": st.sampled_from(["m-1", "m-2"])}),
)  # fmt: skip
_times = st.integers(0, 10_000).map(lambda s: datetime(2026, 11, 23, 3, tzinfo=UTC) + timedelta(seconds=s))


def _event(draw: st.DrawFn, trajectory_id: str, seq: int) -> Event:
    common: dict[str, Any] = {
        "event_id": uuid7(), "trajectory_id": trajectory_id, "seq": seq, "agent_id": draw(st.sampled_from(["a", "b"])),
        "time": draw(_times),
    }  # fmt: skip
    kind = draw(st.sampled_from(["start", "end", "step", "call", "access", "reward", "step", "call"]))
    match kind:
        case "start":
            return TrajectoryStarted(
                **common, scenario_id=draw(st.sampled_from(["s-1", "s-2"])),
                group_size=draw(st.none() | st.integers(1, 9)),
                split=draw(st.sampled_from(["train", "held_out"])),
            )  # fmt: skip
        case "end":
            return TrajectoryEnded(
                **common, status=draw(st.sampled_from(["completed", "error", "timeout"])),
                failure=draw(st.none() | st.sampled_from(Failure)), final_pnl=draw(st.none() | _rewards),
            )  # fmt: skip
        case "step":
            return Step(
                **common, step=seq, reward=draw(st.none() | _rewards), reward_components={"pnl": 100.0},
                action=draw(st.none() | _actions),
            )  # fmt: skip
        case "call":
            ids = draw(st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=3))
            return LLMCall(
                **common, model="m", prompt_token_ids=ids, completion_token_ids=ids,
                completion_logprobs=[-0.5] * len(ids) if ids and draw(st.booleans()) else None,
                usage=Usage(prompt_tokens=draw(st.none() | st.integers(0, 99))),
                failure=draw(st.none() | st.sampled_from(Failure)),
            )  # fmt: skip
        case "access":
            return ProviderAccess(**common, provider="p")
        case _:
            return Reward(**common, reward_kind=draw(st.sampled_from(RewardKind)), value=draw(_rewards))


@st.composite
def plays(draw: st.DrawFn, trajectory_id: str = "t", most: int = 14) -> list[Event]:
    """Events of one trajectory: any kinds, several starts and ends too, seq ascending with holes."""
    seqs = draw(st.lists(st.integers(0, 30), min_size=1, max_size=most, unique=True))
    return [_event(draw, trajectory_id, seq) for seq in sorted(seqs)]


@st.composite
def deliveries(draw: st.DrawFn, events: list[T]) -> list[list[T]]:
    """The same events, or outcomes, as Kafka may bring them: in any order, some repeated, in batches of any size."""
    sent = draw(st.permutations(events + draw(st.lists(st.sampled_from(events), max_size=len(events)))))
    batches: list[list[T]] = []
    while sent:
        size = draw(st.integers(1, len(sent)))
        batches.append(sent[:size])
        sent = sent[size:]
    return batches


rules = st.builds(
    Rule, action=st.none() | st.sampled_from(["buy", "sell"]), success=st.sampled_from([None, True, False]),
    parameters=st.dictionaries(st.sampled_from(["n", "market"]), st.sampled_from([1, 2, 1.0, True, "m-1"]), max_size=2),
    value=_rewards, scope=st.sampled_from(["step", "step", "trajectory"]),
)  # fmt: skip


@st.composite
def outcomes(draw: st.DrawFn, abouts: list[dict[str, str]], most: int = 6) -> list[Outcome]:
    """Outcomes about some of these (scenario_id or window_id each), corrected and taken back too."""
    revisions: dict[tuple[Any, ...], int] = {}
    found: list[Outcome] = []
    for about in draw(st.lists(st.sampled_from(abouts), min_size=1, max_size=most)):
        subject = draw(st.sampled_from(["m-1", "m-2"]))
        revision = revisions[*about.items(), subject] = revisions.get((*about.items(), subject), 0) + 1
        judged = draw(st.lists(rules, max_size=4))
        retracted = draw(st.integers(0, 4)) == 0
        found.append(
            Outcome(**about, subject=subject, source="oracle", revision=revision, rules=judged, retracted=retracted)  # pyright: ignore[reportArgumentType]
        )
    return found
