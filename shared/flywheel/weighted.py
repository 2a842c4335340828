"""A Prometheus histogram that takes many equal observations at once: a batch is counted record by record, cheaply."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from threading import Lock
from time import time

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Exemplar, HistogramMetricFamily
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
        self._exemplars: list[Exemplar | None] = [None] * len(self._counts)
        self._sum = 0.0
        self._lock = Lock()
        registry.register(self)

    def observe(self, value: float, count: int = 1, exemplar: Mapping[str, str] | None = None) -> None:
        """Count ``count`` observations of ``value``; ``exemplar`` says where one of them can be looked at."""
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[bucket] += count
            self._sum += value * count
            if exemplar is not None:
                self._exemplars[bucket] = Exemplar(dict(exemplar), value, time())

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return its name and meaning."""
        return [HistogramMetricFamily(self._name, self._documentation)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return its state, as Prometheus reads it."""
        with self._lock:
            counts, total, exemplars = list(accumulate(self._counts)), self._sum, list(self._exemplars)
        edges = [*map(str, map(float, self._bounds)), "+Inf"]
        buckets = [
            (edge, count) if exemplar is None else (edge, count, exemplar)
            for edge, count, exemplar in zip(edges, counts, exemplars, strict=True)
        ]
        return [HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=total)]
