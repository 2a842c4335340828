"""Outcomes as they are stored, read: what was asked for last is kept, within bounded memory."""

from __future__ import annotations

from collections import OrderedDict

from flywheel.errors import PoisonError
from flywheel.outcomes import Outcome

#: What one that was read takes in memory, about: for each character of its body, and for each rule.
_BYTES_A_CHARACTER = 4
_BYTES_A_RULE = 1024


class OutcomeCache:
    """Reads the bodies of outcomes, and keeps the ones that were asked for last within ``room`` bytes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._kept: OrderedDict[str, tuple[Outcome | None, int]] = OrderedDict()
        self._taken = 0

    @property
    def taken(self) -> int:
        """Bytes that it keeps, as estimated."""
        return self._taken

    def read(self, body: str) -> Outcome | None:
        """Return the outcome, without its facts; None where a newer release stored it, and this one cannot read it."""
        if body in self._kept:
            self._kept.move_to_end(body)
            return self._kept[body][0]
        try:
            outcome = Outcome.parse(body).model_copy(update={"facts": {}})
        except PoisonError:
            outcome = None
        size = len(body) * _BYTES_A_CHARACTER + _BYTES_A_RULE * (1 + len(outcome.rules if outcome else ()))
        self._kept[body] = outcome, size
        self._taken += size
        while self._taken > self._room:
            _, (_, size) = self._kept.popitem(last=False)
            self._taken -= size
        return outcome
