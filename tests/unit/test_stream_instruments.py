"""What a consumer tells of itself: the age of what waits, where its time goes, how long each record took."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Histogram, generate_latest

from flywheel import metrics
from flywheel.health import Health
from flywheel.stream.age import Ages
from flywheel.stream.blocked import Stopwatch
from flywheel.stream.dead import DeadLetters
from flywheel.stream.durable import DurableApp
from flywheel.weighted import WeightedHistogram


def test_who_is_caught_up_is_zero_seconds_behind_and_who_is_stuck_ever_more() -> None:
    ages = Ages[int]()
    ages.look(1_000, {0: 0, 1: 0})
    assert ages.seconds(9_000) == {0: 0.0, 1: 0.0}
    ages.look(10_000, {0: 5, 1: 0})
    assert ages.seconds(10_000) == {0: 9.0, 1: 0.0}
    assert ages.seconds(70_000)[0] == 69.0


def test_a_record_in_hand_says_exactly_how_old_it_is() -> None:
    ages = Ages[int]()
    ages.handling({0: 5_000})
    ages.look(10_000, {0: 3})
    assert ages.seconds(11_000) == {0: 6.0}
    ages.durable({0: 7_500})
    assert ages.seconds(11_000) == {0: 3.5}  # what follows is no older than the last durable one
    ages.look(12_000, {0: 0})
    assert ages.seconds(12_000) == {0: 0.0}


def test_what_is_known_of_other_peoples_partitions_is_forgotten() -> None:
    ages = Ages[int]()
    ages.look(1_000, {0: 1})
    ages.look(2_000, {1: 1})
    ages.look(90_000, {0: 1, 1: 1})
    assert ages.seconds(90_000) == {0: 0.0, 1: 88.0}


def test_what_was_given_up_counts_from_what_is_known_else() -> None:
    ages = Ages[int]()
    ages.look(4_000, {0: 1})
    ages.handling({0: 1_000})
    assert ages.seconds(5_000) == {0: 4.0}
    ages.abandoned()
    assert ages.seconds(5_000) == {0: 1.0}


def spent(on: str) -> float:
    return REGISTRY.get_sample_value("flywheel_blocked_seconds_total", {"topic": "instruments", "on": on}) or 0.0


def test_time_counts_for_the_innermost_thing_and_shows_while_it_lasts() -> None:
    now = 0.0
    watch = Stopwatch("instruments", lambda: now)
    now = 1.0  # nothing yet
    with watch.on("retry"):
        now = 3.0
        with watch.on("write"):
            now = 10.0
            watch.flush()
            assert (spent("retry"), spent("write")) == (2.0, 7.0)
        now = 11.0
    now = 20.0
    watch.flush()
    assert (spent("retry"), spent("write")) == (3.0, 7.0)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 9)), max_size=20))
def test_a_weighted_histogram_is_a_histogram_observed_so_often(observed: list[tuple[float, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    weighted = WeightedHistogram("x", "help", buckets=(0.5, 1, 10), registry=ours)
    plain = Histogram("x", "help", buckets=(0.5, 1, 10), registry=theirs)
    for value, count in observed:
        weighted.observe(value, count)
        for _ in range(count):
            plain.observe(value)

    def samples(registry: CollectorRegistry) -> dict[str, float]:
        lines = generate_latest(registry).decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    want = {name: pytest.approx(value) for name, value in samples(theirs).items() if "_created" not in name}
    assert samples(ours) == want


class _Consumer:
    """Faust's consumer, as far as the lag is measured with it."""

    def __init__(self, *partitions: TopicPartition) -> None:
        self.ours = set(partitions)
        self._committed_offset = dict.fromkeys(partitions, 7)

    def assignment(self) -> set[TopicPartition]:
        return self.ours

    async def highwaters(self, *partitions: TopicPartition) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 10)

    async def position(self, partition: TopicPartition) -> int:
        return 9


async def test_a_partition_that_went_to_another_process_has_no_lag_here(tmp_path: Path) -> None:
    kept, lost = TopicPartition("lagging", 0), TopicPartition("lagging", 1)
    app = SimpleNamespace(rebalancing=False, consumer=_Consumer(kept, lost))
    durable: Any = DurableApp("group", "", replication=1, var=tmp_path, health=Health(), dead=cast(DeadLetters, None))
    assert await durable._measure_lag(app) == 2
    app.consumer.ours.remove(lost)
    await durable._measure_lag(app)
    lags = {
        sample.labels["partition"]: sample.value
        for metric in metrics.LAG_RECORDS.collect()
        for sample in metric.samples
        if sample.labels["topic"] == "lagging"
    }
    assert lags == {"0": 3}
