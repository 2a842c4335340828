"""Recorded LLM calls to training rows, by token ids alone. Pure.

A row is one sequence of tokens, of which some were sampled by a recorded policy. Calls join a row only where
their prompt continues its tokens *exactly*; where history was rewritten (thinking stripped, a retry, a side
conversation) a new row is forked. Nothing that was recorded as ids is tokenised again, so nothing can drift.

What holds for every trajectory:

* each sampled token of each usable call is marked as sampled once, in one row, with the policy that sampled it;
* a call that cannot be trained on (no ids, no log-probabilities, unknown policy, …) marks nothing: its tokens
  are context where a later prompt repeats them. It is counted by reason, and never taken for on-policy;
* a call that lacks ids or log-probabilities is used only where :attr:`Rules.restore` is given and gives them back.
  It is counted, and log-probabilities that must be recomputed are NaN until they are;
* a call whose log-probabilities cannot be had is used only under :attr:`Rules.supervise`, in rows of such calls alone:
  no row has tokens with a ratio beside tokens without;
* a row with a token sampled too many versions, or too long, ago is dropped whole, and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from flywheel.events import Failure, LLMCall, Status
from flywheel.trajectory import Trajectory
from services.trainer.calls import CallDropped, Rules, Sampled, usable
from services.trainer.ledger import NO_KIND, Kind, Ledger, length_class


class NotTrained(StrEnum):
    """Why a whole trajectory teaches nothing."""

    HELD_OUT = "held_out"
    INFRASTRUCTURE = "infrastructure_failure"
    INCOMPLETE = "incomplete"
    GAPS = "missing_events"
    NO_REWARD = "no_reward"
    NO_ROWS = "no_rows"
    NOT_SCORED = "not_scored"


class RowDropped(StrEnum):
    """Why a row is left out."""

    STALE = "stale"
    TOO_OLD = "too_old"
    TOO_LONG = "too_long"
    NOT_REWARDED = "not_rewarded"


@dataclass(slots=True)
class Row:
    """One sequence to train on. The four lists are equally long; ``logprobs`` and ``versions`` count where
    ``sampled`` is 1. ``retokenized`` and ``recomputed`` count sampled tokens whose ids came from text, and whose
    log-probabilities were not recorded. A ``supervised`` row has no log-probabilities: its tokens are imitated where
    they were rewarded, and never have a ratio. ``kind`` is what the ledger counts it under.
    """

    trajectory_id: str
    tokens: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    advantage: float = 0.0
    sampled_at: datetime | None = None
    retokenized: int = 0
    recomputed: int = 0
    supervised: bool = False
    kind: Kind = NO_KIND

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the first sampled one."""
        return self.sampled.index(1)

    @property
    def sampled_count(self) -> int:
        """Number of tokens that are trained on."""
        return sum(self.sampled)

    @property
    def oldest(self) -> int:
        """Number of the oldest policy that sampled one of its tokens."""
        return min(v for v, s in zip(self.versions, self.sampled, strict=True) if s)

    @property
    def unknown(self) -> list[int]:
        """Positions of sampled tokens whose log-probability must still be computed."""
        return [i for i, value in enumerate(self.logprobs) if math.isnan(value)]

    def continues_in(self, prompt: list[int]) -> bool:
        """Whether ``prompt`` begins with all of this row's tokens."""
        return len(prompt) >= len(self.tokens) and prompt[: len(self.tokens)] == self.tokens

    def append(self, call: Sampled) -> None:
        """Add the new part of the call's prompt as context and its completion as sampled. Checked by the caller."""
        context, count = call.prompt[len(self.tokens) :], len(call.completion)
        self.tokens += context + call.completion
        self.sampled += [0] * len(context) + [1] * count
        unknown = 0.0 if call.supervised else math.nan
        self.logprobs += [0.0] * len(context) + (call.logprobs or [unknown] * count)
        self.versions += [0] * len(context) + [call.version] * count
        self.sampled_at = call.at if self.sampled_at is None else min(self.sampled_at, call.at)
        self.retokenized += count if call.retokenized else 0
        self.recomputed += 0 if call.logprobs or call.supervised else count


def excluded(trajectory: Trajectory) -> NotTrained | None:
    """Return why ``trajectory`` must not teach anything, whatever its calls hold and its score is; None when it may."""
    if trajectory.split != "train":
        return NotTrained.HELD_OUT
    if trajectory.failure is Failure.INFRASTRUCTURE:
        return NotTrained.INFRASTRUCTURE
    if trajectory.status in (Status.OPEN, Status.INCOMPLETE):
        return NotTrained.INCOMPLETE
    if trajectory.missing_count:
        return NotTrained.GAPS
    return None


def chain(trajectory_id: str, calls: Iterable[Sampled]) -> list[Row]:
    """Merge usable calls, in the order they were made.

    A call joins the longest row of its sort that its prompt continues exactly, else starts a new one.
    """
    rows: list[Row] = []
    for call in calls:
        alike = [row for row in rows if row.supervised == call.supervised]
        open_rows = [row for row in alike if row.continues_in(call.prompt)]
        if open_rows:
            row = max(open_rows, key=lambda row: len(row.tokens))
        else:
            row = Row(trajectory_id, supervised=call.supervised)
            rows.append(row)
        row.append(call)
    return rows


def build(
    trajectory: Trajectory,
    rules: Rules,
    ledger: Ledger,
    scores: Mapping[str, float] | None = None,
    unscored: Mapping[str, str] = MappingProxyType({}),
) -> list[Row]:
    """Return the rows that ``trajectory`` gives under ``rules``, and note in ``ledger`` what was not used: which rows
    are trained on says :func:`learnable`, once they have their advantages. Without ``scores`` the recorded reward is
    the score; ``unscored`` says why there is none.
    """
    recorded: list[LLMCall] = list(trajectory.all_llm_calls())
    kind = Kind(trajectory.scenario_id or "", length_class(len(recorded)))
    ledger.add("trajectories", "read", kind)
    if (reason := excluded(trajectory) or _unscored(trajectory, scores, unscored)) is not None:
        ledger.add("trajectories_dropped", reason, kind)
        return []
    calls: list[Sampled] = []
    for call in recorded:
        found = usable(call, trajectory.version_of(call), rules)
        if isinstance(found, CallDropped):
            ledger.add("calls_dropped", found, kind)
        else:
            calls.append(found)
    merged = chain(trajectory.trajectory_id, calls)
    ledger.add("calls", "read", kind, len(recorded))
    ledger.add("calls", "usable", kind, len(calls))
    ledger.add("calls", "retokenized", kind, sum(call.retokenized for call in calls))
    ledger.add("calls", "recomputed", kind, sum(call.logprobs is None and not call.supervised for call in calls))
    ledger.add("calls", "supervised", kind, sum(call.supervised for call in calls))
    ledger.add("rows", "built", kind, len(merged))
    ledger.add("rows", "forked", kind, len(merged) - len({row.supervised for row in merged}))
    for row in merged:
        row.kind = kind
    rows = [row for row in merged if _recent(row, rules, ledger)]
    if rows:
        ledger.add("trajectories", "used", kind)
    else:
        ledger.add("trajectories_dropped", NotTrained.NO_ROWS, kind)
    return rows


def _unscored(trajectory: Trajectory, scores: Mapping[str, float] | None, unscored: Mapping[str, str]) -> str | None:
    if scores is None:
        return NotTrained.NO_REWARD if trajectory.total_reward is None else None
    if trajectory.trajectory_id in scores:
        return None
    return unscored.get(trajectory.trajectory_id, NotTrained.NOT_SCORED)


def learnable(rows: Iterable[Row], rules: Rules, ledger: Ledger) -> list[Row]:
    """Return the rows, with their advantages, that are trained on, and note them in ``ledger``.

    Supervised rows that were not rewarded above others are left out: they are not imitated, and what makes them less
    likely is the ratio that they do not have.
    """
    used: list[Row] = []
    for row in rows:
        if row.supervised and not row.advantage > 0:
            ledger.add("rows_dropped", RowDropped.NOT_REWARDED, row.kind)
        else:
            _note(row, rules, ledger)
            used.append(row)
    return used


def _recent(row: Row, rules: Rules, ledger: Ledger) -> bool:
    staleness = rules.current.number - row.oldest
    ledger.staleness[str(staleness)] += 1
    if (dropped := _too_far(row, staleness, rules)) is not None:
        ledger.add("rows_dropped", dropped, row.kind)
    return dropped is None


def _note(row: Row, rules: Rules, ledger: Ledger) -> None:
    count = row.sampled_count
    ledger.add("rows", "used", row.kind)
    ledger.add("rows", "supervised", row.kind, int(row.supervised))
    ledger.add("rows", "retokenized", row.kind, int(row.retokenized > 0))
    ledger.add("rows", "recomputed", row.kind, int(row.recomputed > 0))
    ledger.add("tokens", "trained", row.kind, count)
    ledger.add("tokens", "supervised", row.kind, count * row.supervised)
    ledger.add("tokens", "context", row.kind, len(row.tokens) - count)
    ledger.add("tokens", "retokenized", row.kind, row.retokenized)
    ledger.add("tokens", "recomputed", row.kind, row.recomputed)
    numbers = Counter(v for v, mine in zip(row.versions, row.sampled, strict=True) if mine)
    for version, policy in rules.policies.items():
        if policy.number in numbers:
            ledger.tokens_by_version[version] += numbers[policy.number]


def _too_far(row: Row, staleness: int, rules: Rules) -> RowDropped | None:
    if staleness > rules.max_staleness:
        return RowDropped.STALE
    age = (rules.started_at - row.sampled_at).total_seconds() if row.sampled_at else 0.0
    if rules.max_age_s is not None and age > rules.max_age_s:
        return RowDropped.TOO_OLD
    if rules.max_tokens is not None and len(row.tokens) > rules.max_tokens:
        return RowDropped.TOO_LONG
    return None
