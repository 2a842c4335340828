"""The service level objectives, and how fast their error budgets may burn. ``docs/alerts.md`` is generated from here.

Burn rates are those of Google's SRE workbook: a budget for 30 days, gone in two days (page) or in five (ticket).
"""

from __future__ import annotations

from dataclasses import dataclass

#: Burn rate, and the two windows in which it must hold: the long one says that it matters, the short that it lasts.
FAST = (14.4, "1h", "5m")
SLOW = (6.0, "6h", "30m")


@dataclass(frozen=True, slots=True)
class Objective:
    """A share of something that shall be good, over 30 days. ``bad`` and ``all`` are rates over ``{window}``."""

    name: str
    promise: str
    share: float
    bad: str
    all: str

    def burning(self, rate: float, long: str, short: str) -> str:
        """Return the expression that is true while the budget burns faster than ``rate``, in both windows."""
        limit = f"{rate * (1 - self.share):.4g}"
        ratios = (f"({self.bad} / {self.all}) > {limit}".replace("{window}", window) for window in (long, short))
        return "\nand\n".join(ratios)

    def ratio(self, window: str) -> str:
        """Return the share that was bad in a window."""
        return f"{self.bad} / {self.all}".replace("{window}", window)


#: Everything a person waits for. Exports stream for minutes, and probes and scrapes are nobody's wait.
_WAITED_FOR = 'route!~"/healthz|/readyz|/metrics|.*export.*"'
_DURABLE = "flywheel_recorder_durable_seconds"
_TOOK = "flywheel_gateway_request_seconds"

DURABILITY = Objective(
    "durability",
    "99 % of events are durable within 10 s of their arrival in Kafka",
    0.99,
    f'(sum(rate({_DURABLE}_count[{{window}}])) - sum(rate({_DURABLE}_bucket{{le="10.0"}}[{{window}}])))',
    f"sum(rate({_DURABLE}_count[{{window}}]))",
)
AVAILABILITY = Objective(
    "availability",
    "99.5 % of the gateway's requests are answered without an error of ours (5xx)",
    0.995,
    'sum(rate(flywheel_gateway_requests_total{route!~"/healthz|/readyz|/metrics",status=~"5.."}[{window}]))',
    'sum(rate(flywheel_gateway_requests_total{route!~"/healthz|/readyz|/metrics"}[{window}]))',
)
LATENCY = Objective(
    "latency",
    "99 % of the gateway's requests, exports apart, are answered within 1 s",
    0.99,
    f"(sum(rate({_TOOK}_count{{{_WAITED_FOR}}}[{{window}}]))"
    f' - sum(rate({_TOOK}_bucket{{{_WAITED_FOR},le="1.0"}}[{{window}}])))',
    f"sum(rate({_TOOK}_count{{{_WAITED_FOR}}}[{{window}}]))",
)
OBJECTIVES = (DURABILITY, AVAILABILITY, LATENCY)
