"""A Prometheus histogram that takes many equal observations at once: a batch is counted record by record, cheaply."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from threading import Lock

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class WeightedHistogram(Collector):
    """A histogram without labels; ``buckets`` are upper bounds, rising, without infinity."""

    def __init__(
        self, name: str, documentation: str, *, buckets: Sequence[float], registry: CollectorRegistry = REGISTRY
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = list(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        self._lock = Lock()
        registry.register(self)

    def observe(self, value: float, count: int = 1) -> None:
        """Count ``count`` observations of ``value``."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += count
            self._sum += value * count

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return its name and meaning."""
        return [HistogramMetricFamily(self._name, self._documentation)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return its state, as Prometheus reads it."""
        with self._lock:
            counts, total = list(accumulate(self._counts)), self._sum
        edges = [*map(str, map(float, self._bounds)), "+Inf"]
        return [
            HistogramMetricFamily(
                self._name, self._documentation, buckets=list(zip(edges, counts, strict=True)), sum_value=total
            )
        ]
