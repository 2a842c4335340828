"""Recorded LLM calls to training rows, by token ids alone. Pure.

A row is one sequence of tokens, of which some were sampled by a recorded policy. Calls join a row only where
their prompt continues its tokens *exactly*; where history was rewritten (thinking stripped, a retry, a side
conversation) a new row is forked. Nothing is tokenised again, so nothing can drift.

What holds for every trajectory:

* each sampled token of each usable call is marked as sampled once, in one row;
* a call that cannot be trained on (no ids, no log-probabilities, unknown policy, …) marks nothing: its tokens
  are context where a later prompt repeats them. It is counted by reason, and never taken for on-policy;
* a row with a token sampled more than ``max_staleness`` versions ago is dropped whole, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from flywheel.events import Failure, LLMCall, Status
from flywheel.trajectory import Trajectory

#: Rounding may leave a log-probability a hair above 0; more than this is not a log-probability.
_LOGPROB_SLACK = 1e-3


class NotTrained(StrEnum):
    """Why a whole trajectory teaches nothing."""

    HELD_OUT = "held_out"
    INFRASTRUCTURE = "infrastructure_failure"
    INCOMPLETE = "incomplete"
    GAPS = "missing_events"
    NO_REWARD = "no_reward"
    NO_ROWS = "no_rows"
    NOT_SCORED = "not_scored"


class CallDropped(StrEnum):
    """Why a call's tokens are not trained on."""

    FAILED = "call_failed"
    NO_IDS = "no_token_ids"
    NO_LOGPROBS = "no_logprobs"
    MISALIGNED = "misaligned"
    BAD_LOGPROBS = "bad_logprobs"
    TEMPERATURE = "other_temperature"
    NO_VERSION = "no_version"
    UNKNOWN_VERSION = "unknown_version"
    OTHER_BASE = "other_base_model"
    BAD_TOKEN = "token_outside_vocabulary"


class RowDropped(StrEnum):
    """Why a row is left out."""

    STALE = "stale"
    TOO_LONG = "too_long"


@dataclass(frozen=True, slots=True)
class Policy:
    """A model version as the registry knows it. Versions of another ``base`` share no weights, perhaps not
    even a tokenizer.
    """

    number: int
    base: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What rows must satisfy, for one job."""

    current: Policy
    policies: Mapping[str, Policy]
    max_staleness: int
    temperature: float
    vocabulary: int
    max_tokens: int | None = None


@dataclass(slots=True)
class Row:
    """One sequence to train on. The four lists are equally long; ``logprobs`` and ``versions`` count where
    ``sampled`` is 1.
    """

    trajectory_id: str
    tokens: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    advantage: float = 0.0

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

    def continues_in(self, prompt: list[int]) -> bool:
        """Whether ``prompt`` begins with all of this row's tokens."""
        return len(prompt) >= len(self.tokens) and prompt[: len(self.tokens)] == self.tokens

    def append(self, call: LLMCall, version: int) -> None:
        """Add the new part of the call's prompt as context and its completion as sampled. Checked by the caller."""
        prompt, completion = call.prompt_token_ids or [], call.completion_token_ids or []
        context = prompt[len(self.tokens) :]
        self.tokens += context + completion
        self.sampled += [0] * len(context) + [1] * len(completion)
        self.logprobs += [0.0] * len(context) + [min(0.0, p) for p in call.completion_logprobs or []]
        self.versions += [0] * len(context) + [version] * len(completion)


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


def rejected(call: LLMCall, version: str | None, rules: Rules) -> CallDropped | None:
    """Return why ``call``, sampled by ``version``, cannot be trained on; None when it can."""
    prompt, completion, logprobs = call.prompt_token_ids, call.completion_token_ids, call.completion_logprobs
    if call.error is not None or call.failure is not None:
        return CallDropped.FAILED
    if not prompt or not completion:
        return CallDropped.NO_IDS
    if not logprobs:
        return CallDropped.NO_LOGPROBS
    if len(logprobs) != len(completion):
        return CallDropped.MISALIGNED
    if max(logprobs) > _LOGPROB_SLACK:
        return CallDropped.BAD_LOGPROBS
    if call.sampling.temperature is not None and call.sampling.temperature != rules.temperature:
        return CallDropped.TEMPERATURE
    if version is None:
        return CallDropped.NO_VERSION
    if (policy := rules.policies.get(version)) is None:
        return CallDropped.UNKNOWN_VERSION
    if policy.base != rules.current.base:
        return CallDropped.OTHER_BASE
    if max(max(prompt), max(completion)) >= rules.vocabulary:
        return CallDropped.BAD_TOKEN
    return None


def chain(trajectory_id: str, calls: Iterable[tuple[LLMCall, int]]) -> list[Row]:
    """Merge usable calls, in the order they were made, each with its policy's number.

    A call joins the longest row that its prompt continues exactly, else starts a new one.
    """
    rows: list[Row] = []
    for call, version in calls:
        prompt = call.prompt_token_ids or []
        open_rows = [row for row in rows if row.continues_in(prompt)]
        if open_rows:
            row = max(open_rows, key=lambda row: len(row.tokens))
        else:
            row = Row(trajectory_id)
            rows.append(row)
        row.append(call, version)
    return rows


@dataclass(slots=True)
class Ledger:
    """What came in, what is trained on, and why the rest is not."""

    trajectories: Counter[str] = field(default_factory=Counter)
    trajectories_dropped: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    calls_dropped: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    rows_dropped: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    staleness: Counter[str] = field(default_factory=Counter)
    groups: Counter[str] = field(default_factory=Counter)
    scoring: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return the counts, names sorted, ready for JSON."""
        return {name: dict(sorted(getattr(self, name).items())) for name in self.__slots__}


def build(
    trajectory: Trajectory,
    rules: Rules,
    ledger: Ledger,
    scores: Mapping[str, float] | None = None,
    unscored: Mapping[str, str] = MappingProxyType({}),
) -> list[Row]:
    """Return the rows that ``trajectory`` gives under ``rules``, and note in ``ledger`` what was used and
    what was not. Without ``scores`` the recorded reward is the score; ``unscored`` says why there is none.
    """
    ledger.trajectories["read"] += 1
    if (reason := excluded(trajectory) or _unscored(trajectory, scores, unscored)) is not None:
        ledger.trajectories_dropped[reason] += 1
        return []
    usable: list[tuple[LLMCall, int]] = []
    for call in trajectory.all_llm_calls():
        ledger.calls["read"] += 1
        version = trajectory.version_of(call)
        if (dropped := rejected(call, version, rules)) is not None or version is None:
            ledger.calls_dropped[dropped or CallDropped.NO_VERSION] += 1
        else:
            usable.append((call, rules.policies[version].number))
    merged = chain(trajectory.trajectory_id, usable)
    ledger.calls["usable"] += len(usable)
    ledger.rows["built"] += len(merged)
    ledger.rows["forked"] += max(0, len(merged) - 1)
    rows = [row for row in merged if _keep(row, rules, ledger)]
    if rows:
        ledger.trajectories["used"] += 1
    else:
        ledger.trajectories_dropped[NotTrained.NO_ROWS] += 1
    return rows


def _unscored(trajectory: Trajectory, scores: Mapping[str, float] | None, unscored: Mapping[str, str]) -> str | None:
    if scores is None:
        return NotTrained.NO_REWARD if trajectory.total_reward is None else None
    if trajectory.trajectory_id in scores:
        return None
    return unscored.get(trajectory.trajectory_id, NotTrained.NOT_SCORED)


def _keep(row: Row, rules: Rules, ledger: Ledger) -> bool:
    staleness = rules.current.number - row.oldest
    ledger.staleness[str(staleness)] += 1
    if staleness > rules.max_staleness:
        ledger.rows_dropped[RowDropped.STALE] += 1
        return False
    if rules.max_tokens is not None and len(row.tokens) > rules.max_tokens:
        ledger.rows_dropped[RowDropped.TOO_LONG] += 1
        return False
    ledger.rows["used"] += 1
    ledger.tokens["trained"] += row.sampled_count
    ledger.tokens["context"] += len(row.tokens) - row.sampled_count
    return True
