"""What a batch held, what of it is trained on, and why the rest is not. Pure.

Every count that decides over a trajectory is kept three times: for the whole batch, by scenario and by length. So it
shows when one kind of task is left out more often than another, slow ones above all: they are older when they are done.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

#: A ledger as JSON: table, name, count; in the tables ``by_…`` scenario or length, ``table.name``, count.
Counts = dict[str, dict[str, Any]]

#: Most scenarios that are listed on their own, those with the most trajectories; the rest are summed.
MOST_SCENARIOS = 100
OTHERS = "(others)"

#: Tables that are also kept by scenario and by length.
Table = Literal[
    "trajectories", "trajectories_dropped", "calls", "calls_dropped", "rows", "rows_dropped", "tokens"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """What is compared: a scenario, and a class of length, in LLM calls of a trajectory."""

    scenario: str
    length: str


#: Of what belongs to no trajectory.
NO_KIND = Kind("", "0")


def length_class(calls: int) -> str:
    """Return the class of a trajectory with so many LLM calls: 0, 1, 2-3, 4-7, 8-15 …"""
    if calls < 2:
        return str(calls)
    low = 1 << (calls.bit_length() - 1)
    return f"{low}-{2 * low - 1}"


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
    tokens_by_version: Counter[str] = field(default_factory=Counter)
    staleness: Counter[str] = field(default_factory=Counter)
    groups: Counter[str] = field(default_factory=Counter)
    scoring: Counter[str] = field(default_factory=Counter)
    by_scenario: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    by_length: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, table: Table, name: str, kind: Kind, count: int = 1) -> None:
        """Count something of a trajectory of ``kind``. What is counted 0 times is not listed."""
        if count:
            getattr(self, table)[name] += count
            self.by_scenario[kind.scenario][f"{table}.{name}"] += count
            self.by_length[kind.length][f"{table}.{name}"] += count

    def as_dict(self) -> Counts:
        """Return the counts, names sorted, ready for JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__ if not name.startswith("by_")}
        counts: Counts = {name: dict(sorted(table.items())) for name, table in plain.items()}
        lengths = sorted(self.by_length.items(), key=lambda item: int(item[0].partition("-")[0]))
        counts["by_scenario"] = {name: dict(sorted(cell.items())) for name, cell in self._scenarios()}
        counts["by_length"] = {name: dict(sorted(cell.items())) for name, cell in lengths}
        return counts

    def _scenarios(self) -> list[tuple[str, Counter[str]]]:
        ranked = sorted(self.by_scenario.items(), key=lambda item: (-item[1]["trajectories.read"], item[0]))
        listed, rest = ranked[:MOST_SCENARIOS], ranked[MOST_SCENARIOS:]
        others = sum((cell for _, cell in rest), Counter[str]())
        return [*sorted(listed), (OTHERS, others)] if rest else sorted(listed)
