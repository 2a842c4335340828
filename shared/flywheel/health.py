"""Liveness and readiness. Liveness: every loop ticks. Readiness: what the service leans on is usable.

A broken database makes a service unready, never dead: restarting it would mend nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

#: A loop that has not ticked for this long, in seconds, counts as stuck, unless it asked for another limit.
STUCK_AFTER_S = 60.0

#: Records that wait for this long, in seconds, while none comes mean that the consumer is broken.
STALLED_AFTER_S = 60.0


def stalled(now: float, last_moved: float, limit_s: float = STALLED_AFTER_S) -> bool:
    """Return whether a consumer that is behind, and last saw a record at ``last_moved``, is stuck. Pure."""
    return now - last_moved > limit_s


_STARTUP = "startup"


@dataclass(frozen=True, slots=True)
class Report:
    """The answer of a probe: whether all is well, and in words what is not."""

    ok: bool
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Loop:
    last: float
    within_s: float


class Health:
    """What a service knows of its own state. Times are of the monotonic clock, in seconds.

    A service is unready until every check it ever named is true, and until it has named one.
    """

    def __init__(self) -> None:
        self._loops: dict[str, _Loop] = {}
        self._checks: dict[str, tuple[bool, str]] = {}

    def beat(self, name: str, *, within_s: float = STUCK_AFTER_S, now: float | None = None) -> None:
        """Say that the loop ticks, and promise its next tick within ``within_s`` seconds."""
        self._loops[name] = _Loop(time.monotonic() if now is None else now, within_s)

    def retire(self, name: str) -> None:
        """Forget a loop that ended as it should."""
        self._loops.pop(name, None)

    def ready(self, name: str, ok: bool, reason: str = "") -> None:
        """Say whether something the service leans on is usable; ``reason`` is shown where it is not."""
        self._checks[name] = (ok, reason)

    def starting(self) -> None:
        """Be unready until :meth:`started`, however well the single checks go meanwhile."""
        self.ready(_STARTUP, False, "starting")

    def started(self) -> None:
        """Say that the service does its work from now on."""
        self.ready(_STARTUP, True)

    def scoped(self, name: str) -> Health:
        """Return a face of this health whose loops and checks have names of their own: for a second of a kind."""
        return _Scoped(self, name)

    def live(self, now: float) -> Report:
        """Return whether every loop ticked in time. Pure: depends on ``now`` and what was said before."""
        stuck = {
            name: f"no tick for {now - loop.last:.0f} s, promised within {loop.within_s:.0f} s"
            for name, loop in self._loops.items()
            if now - loop.last > loop.within_s
        }
        return Report(not stuck, stuck)

    def ready_report(self) -> Report:
        """Return whether every check is true."""
        if not self._checks:
            return Report(False, {"service": "starting"})
        bad = {name: reason or "not usable" for name, (ok, reason) in self._checks.items() if not ok}
        return Report(not bad, bad)


class _Scoped(Health):
    """Says everything to another health, under names that begin with a scope."""

    def __init__(self, whole: Health, scope: str) -> None:
        self._loops, self._checks = whole._loops, whole._checks
        self._scope = scope

    def beat(self, name: str, *, within_s: float = STUCK_AFTER_S, now: float | None = None) -> None:
        super().beat(self._named(name), within_s=within_s, now=now)

    def retire(self, name: str) -> None:
        super().retire(self._named(name))

    def ready(self, name: str, ok: bool, reason: str = "") -> None:
        super().ready(self._named(name), ok, reason)

    def _named(self, name: str) -> str:
        return f"{self._scope} {name}"
