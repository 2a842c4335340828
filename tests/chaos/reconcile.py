"""What was sent held against what was stored, purely: nothing lost, nothing twice, everything dead that had to be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from tests.chaos.ledger import Entry
from tests.chaos.traffic import scenario_of

#: Ids shown of each finding.
EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class EventRow:
    """A stored event; the digest is of the stored body, in hex."""

    event_id: str
    sha256: str
    trajectory_id: str
    seq: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What a trajectory's events add up to, and how it ended."""

    status: str = "open"
    events: int = 0
    steps: int = 0
    llm_calls: int = 0
    provider_accesses: int = 0
    rewards: int = 0
    reward_count: int = 0
    reward_sum: float = 0.0
    outcome_count: int = 0
    outcome_sum: float = 0.0
    seq_max: int = -1
    missing: int = 0


@dataclass(frozen=True, slots=True)
class TrajectoryRow:
    """A stored trajectory."""

    trajectory_id: str
    revision: int
    tally: Tally


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter: the name it was sent with (none: a good event), why it is dead, the digest of its bytes."""

    name: str | None
    reason: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What there is after the storm. ``announced`` holds the revisions of each trajectory that were published."""

    events: Iterable[EventRow]
    trajectories: Iterable[TrajectoryRow]
    dead: Iterable[DeadLetter]
    announced: Mapping[str, Collection[int]]


@dataclass
class Verdict:
    """How the books agree. ``wrong`` holds the ids of everything that does not fit, by what is wrong with it."""

    sent: int = 0
    trajectories: int = 0
    recorded: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    dead_again: int = 0
    announced: int = 0
    wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def lost(self) -> int:
        """Things that the broker acknowledged and that ended nowhere."""
        return len(self.wrong.get("lost", ())) + len(self.wrong.get("lost before the dead letters", ()))

    @property
    def twice(self) -> int:
        """Events stored or counted more than once."""
        return sum(len(self.wrong.get(what, ())) for what in ("stored twice", "seq stored twice", "counted twice"))

    @property
    def ok(self) -> bool:
        """Whether everything fits."""
        return not any(self.wrong.values())

    def examples(self) -> dict[str, list[str]]:
        """Return some ids of each thing that is wrong."""
        return {what: ids[:EXAMPLES] for what, ids in self.wrong.items() if ids}


def reconcile(
    ledger: Iterable[Entry], evidence: Evidence, late: Mapping[str, Sequence[float]] = MappingProxyType({})
) -> Verdict:
    """Return how what the broker acknowledged agrees with what was found. ``late``: what outcomes gave each step of a
    scenario in the end.
    """
    verdict = Verdict()
    good: dict[str, Entry] = {}
    doomed: dict[str, Entry] = {}
    for entry in ledger:
        if entry.reason:
            doomed[entry.name] = entry
        else:
            good.setdefault(entry.name, entry)
    verdict.sent = len(good)
    verdict.injected = Counter(entry.reason for entry in doomed.values())
    _events(verdict, good, evidence.events)
    _dead(verdict, doomed, evidence.dead)
    revisions = _trajectories(verdict, tallies(good.values(), late), evidence.trajectories)
    _announcements(verdict, revisions, evidence.announced)
    return verdict


def _events(verdict: Verdict, good: Mapping[str, Entry], rows: Iterable[EventRow]) -> None:
    seen: set[str] = set()
    places: set[tuple[str, int]] = set()
    for row in rows:
        sent = good.get(row.event_id)
        if row.event_id in seen:
            verdict.wrong["stored twice"].append(row.event_id)
            continue
        seen.add(row.event_id)
        if (row.trajectory_id, row.seq) in places:
            verdict.wrong["seq stored twice"].append(row.event_id)
        places.add((row.trajectory_id, row.seq))
        if sent is None:
            verdict.wrong["stored but never sent"].append(row.event_id)
        elif (row.sha256, row.trajectory_id, row.seq) != (sent.sha256, sent.trajectory_id, sent.seq):
            verdict.wrong["stored with other contents"].append(row.event_id)
        else:
            verdict.recorded += 1
    verdict.wrong["lost"] += [name for name in good if name not in seen]


def _dead(verdict: Verdict, doomed: Mapping[str, Entry], letters: Iterable[DeadLetter]) -> None:
    seen: set[str] = set()
    for letter in letters:
        sent = doomed.get(letter.name) if letter.name else None
        if sent is None:
            verdict.wrong["dead but good"].append(letter.name or f"{letter.reason} {letter.sha256}")
        elif letter.reason != sent.reason:
            verdict.wrong["dead for another reason"].append(f"{sent.name}: {letter.reason}")
        elif letter.sha256 != sent.sha256:
            verdict.wrong["dead with other contents"].append(sent.name)
        elif sent.name in seen:
            verdict.dead_again += 1  # at least once: its recorder died between the dead letter and the offset
        else:
            seen.add(sent.name)
            verdict.dead[letter.reason] += 1
    verdict.wrong["lost before the dead letters"] += [name for name in doomed if name not in seen]


def _trajectories(verdict: Verdict, expected: Mapping[str, Tally], rows: Iterable[TrajectoryRow]) -> dict[str, int]:
    verdict.trajectories = len(expected)
    found: dict[str, int] = {}
    for row in rows:
        want = expected.get(row.trajectory_id)
        if row.trajectory_id in found:
            verdict.wrong["trajectory stored twice"].append(row.trajectory_id)
        found[row.trajectory_id] = row.revision
        if want is None:
            verdict.wrong["trajectory never sent"].append(row.trajectory_id)
            continue
        if any(have > asked for have, asked in zip(_counters(row.tally), _counters(want), strict=True)):
            verdict.wrong["counted twice"].append(row.trajectory_id)
        elif row.tally != want:
            verdict.wrong["trajectory with other figures"].append(f"{row.trajectory_id}: {_differing(row.tally, want)}")
    verdict.wrong["trajectory lost"] += [name for name in expected if name not in found]
    return found


def _announcements(verdict: Verdict, revisions: Mapping[str, int], announced: Mapping[str, Collection[int]]) -> None:
    verdict.announced = sum(len(known) for known in announced.values())
    for trajectory_id, revision in revisions.items():
        known = announced.get(trajectory_id, ())
        if revision and revision not in known:
            verdict.wrong["final revision not announced"].append(f"{trajectory_id} revision {revision}")
        if any(one > revision for one in known):
            verdict.wrong["announced a revision that is not stored"].append(trajectory_id)
    verdict.wrong["announced but not stored"] += [name for name in announced if name not in revisions]


def tallies(good: Iterable[Entry], late: Mapping[str, Sequence[float]] = MappingProxyType({})) -> dict[str, Tally]:
    """Return what these distinct events, and late rewards of each step, add up to, by trajectory. An end's status
    follows its kind, after a colon.
    """
    grouped: dict[str, list[Entry]] = defaultdict(list)
    for entry in good:
        grouped[entry.trajectory_id].append(entry)
    return {
        trajectory_id: _tally(entries, late.get(scenario_of(trajectory_id), ()) if late else ())
        for trajectory_id, entries in grouped.items()
    }


def _tally(entries: Collection[Entry], late: Sequence[float]) -> Tally:
    kinds = Counter(entry.kind.partition(":")[0] for entry in entries)
    rewards = [entry.reward for entry in entries if entry.reward is not None]
    highest = max(entry.seq for entry in entries)
    ends = [entry for entry in entries if entry.kind.startswith("trajectory_ended")]
    return Tally(
        status=max(ends, key=lambda e: e.seq).kind.partition(":")[2] if ends else "open",
        events=len(entries), steps=kinds["step"], llm_calls=kinds["llm_call"],
        provider_accesses=kinds["provider_access"], rewards=kinds["reward"], reward_count=len(rewards),
        reward_sum=sum(rewards), outcome_count=kinds["step"] * len(late),
        outcome_sum=kinds["step"] * sum(late), seq_max=highest, missing=max(0, highest + 1 - len(entries)),
    )  # fmt: skip


def _counters(tally: Tally) -> tuple[int, ...]:
    return (
        tally.events, tally.steps, tally.llm_calls, tally.provider_accesses, tally.rewards, tally.reward_count,
        tally.outcome_count,
    )  # fmt: skip


def _differing(have: Tally, want: Tally) -> str:
    pairs = ((f.name, getattr(have, f.name), getattr(want, f.name)) for f in fields(Tally))
    return ", ".join(f"{name} {left!r} instead of {right!r}" for name, left, right in pairs if left != right)
