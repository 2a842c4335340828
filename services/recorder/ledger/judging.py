"""What outcomes say about one trajectory, purely: a function of the outcomes and the steps, and of nothing else.

So it does not matter which came first, nor how often it is asked: the entries that it returns are what the ledger has
to hold, and whatever else the ledger holds is of an outcome that was corrected or retracted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from flywheel.outcomes import About, Outcome, Rule

#: In the place of a step's number: the trajectory as a whole.
WHOLE = -1


class EntryKey(NamedTuple):
    """What can have one reward entry: a step (or the whole trajectory) and what an outcome is about."""

    step: int
    about: About


class Judgment:
    """Judges one trajectory by some outcomes: show it every step in the order of ``seq``, then read the entries."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        outcomes = list(outcomes)
        #: Rules that one step may be held against: what showing it costs.
        self.cost = sum(len(outcome.rules) for outcome in outcomes)
        self._outcomes = [(o.about, *_by_scope(o.rules)) for o in outcomes if not o.retracted]
        self._seen: set[int] = set()
        self._entries: dict[EntryKey, float] = {}
        #: How far down its rules of scope ``trajectory`` each outcome has found one that fits.
        self._best = {about: _always(rules) for about, _, rules in self._outcomes}

    def show(self, number: int, action: Mapping[str, Any] | None) -> None:
        """Judge a step, as an event has its action. Should a number come twice, the first is the step."""
        if number in self._seen:
            return
        self._seen.add(number)
        for about, of_steps, of_trajectory in self._outcomes:
            first = next((rule for rule in of_steps if fits(rule, action)), None)
            if first is not None:
                self._entries[EntryKey(number, about)] = first.value
            self._best[about] = next(
                (n for n, rule in enumerate(of_trajectory[: self._best[about]]) if fits(rule, action)),
                self._best[about],
            )

    def entries_beside(self, ledger: Mapping[EntryKey, float]) -> dict[EntryKey, float]:
        """Return the entries where not every step could be shown: those of other steps, and of the whole, stay as
        ``ledger`` has them, unless their outcome was retracted.
        """
        about = {about for about, _, _ in self._outcomes}
        stay = {key: value for key, value in ledger.items() if key.about in about and key.step not in self._seen}
        return stay | self._entries

    def entries(self) -> dict[EntryKey, float]:
        """Return the value of every entry that the trajectory has to have, once every step was shown."""
        whole = {
            EntryKey(WHOLE, about): rules[self._best[about]].value
            for about, _, rules in self._outcomes
            if self._best[about] < len(rules)
        }
        return self._entries | whole


def fits(rule: Rule, action: Mapping[str, Any] | None) -> bool:
    """Return whether a step with this action (None: without one) meets every condition of the rule."""
    if _unconditional(rule):
        return True
    if action is None or (rule.action is not None and rule.action != action.get("name")):
        return False
    if rule.success is not None and action.get("success") is not rule.success:
        return False
    parameters = action.get("parameters") or {}
    return all(name in parameters and same(value, parameters[name]) for name, value in rule.parameters.items())


def same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def _by_scope(rules: Iterable[Rule]) -> tuple[list[Rule], list[Rule]]:
    listed = list(rules)
    return [r for r in listed if r.scope == "step"], [r for r in listed if r.scope == "trajectory"]


def _always(rules: list[Rule]) -> int:
    """Return the place of the first rule that fits whatever was played, else one past the last."""
    return next((n for n, rule in enumerate(rules) if _unconditional(rule)), len(rules))


def _unconditional(rule: Rule) -> bool:
    return rule.action is None and rule.success is None and not rule.parameters
