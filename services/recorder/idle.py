"""How long a trajectory may be silent, by its scenario. Pure.

Patterns: ``*`` stands for any text, ``?`` for any character. Of several that fit, the most specific holds: the one
with the most other characters, then the one with fewer wildcards, then the first by name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from flywheel.stream.positions import caught_up

_WILD = {"*": "%", "?": "_"}


@dataclass(frozen=True, slots=True)
class IdleRules:
    """Seconds of silence after which an open trajectory is closed, for scenarios that fit a pattern, and for others."""

    default_s: float
    by_scenario: Mapping[str, float] = field(default_factory=dict)

    @property
    def shortest_s(self) -> float:
        """The least of all: what has not been silent for so long is not looked at."""
        return min((self.default_s, *self.by_scenario.values()))

    def ranked(self) -> tuple[list[str], list[float]]:
        """Return patterns for SQL's LIKE, the most specific first, and their seconds."""
        patterns = sorted(self.by_scenario, key=_specificity)
        return [_like(pattern) for pattern in patterns], [self.by_scenario[pattern] for pattern in patterns]


class Horizon:
    """Until when everything that was published is stored, whoever stores it: from looks at where partitions end.

    Silence counts back from there, not from now: events that wait in Kafka may belong to what seems silent.
    """

    #: Looks that wait for their events. While something is stuck, the newest gives way: the horizon stays where it is.
    _MOST = 1000

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Mapping[int, int]]] = deque()
        self._until: float | None = None

    def look(self, at: float, ends: Mapping[int, int], reached: Mapping[int, int]) -> float | None:
        """Take a look: ``ends`` were asked for after ``at``, the stored offsets ``reached`` after that.

        Returns the time of the last look whose ends are reached, on the clock of ``at``; None before there is one.
        """
        if len(self._looks) < self._MOST:
            self._looks.append((at, ends))
        while self._looks and caught_up(reached, self._looks[0][1]):
            self._until = self._looks.popleft()[0]
        return self._until


def _specificity(pattern: str) -> tuple[int, int, str]:
    wild = sum(character in _WILD for character in pattern)
    return wild - len(pattern), wild, pattern


def _like(pattern: str) -> str:
    return "".join(_WILD.get(c, f"\\{c}" if c in "%_\\" else c) for c in pattern)
