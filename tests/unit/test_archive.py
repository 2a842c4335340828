"""Archived days: the same events are the same bytes, everything comes back, and nothing changed is given out."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime
from uuid import UUID

import pytest
import zstandard

from flywheel import archive, naming
from flywheel.archive import ArchivedEvent, DayWriter, read_day, read_day_manifest, verify_day
from flywheel.days import bounds
from flywheel.errors import IntegrityError, PoisonError
from flywheel.storage.memory import MemoryObjectStore

DAY = date(2026, 10, 1)


def events(count: int, day: date = DAY) -> list[ArchivedEvent]:
    chance = random.Random(7)
    first = bounds(day)[0].int | 7 << 76
    return [
        ArchivedEvent(
            event_id=UUID(int=first + (number << 80)), trajectory_id=f"t-{number % 3}", seq=number, kind="step",
            step=number if number % 2 else None, agent_id="a", time=datetime(2026, 10, 1, 3, tzinfo=UTC),
            ingested_at=datetime(2026, 10, 1, 4, microsecond=number, tzinfo=UTC), digest=chance.randbytes(16).hex(),
            src_partition=number % 12, src_offset=number, body=f'{{"text": "ünïcode \\u2028 {number}"}}',
        )
        for number in range(count)
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_PART_EVENTS", 4)


def write(store: MemoryObjectStore, count: int = 10) -> str:
    with DayWriter(store, DAY) as writer:
        for event in events(count):
            writer.add(event)
        return writer.finish()[1]


@pytest.mark.parametrize("count", [0, 1, 4, 10])
def test_what_was_written_is_read_whole_and_in_order(count: int) -> None:
    store = MemoryObjectStore()
    sha256 = write(store, count)
    assert list(read_day(store, DAY, sha256)) == events(count)
    assert verify_day(store, DAY, sha256) == count
    manifest = read_day_manifest(store, DAY, sha256)
    assert [file.events for file in manifest.files] == [4] * (count // 4) + [count % 4] * bool(count % 4)


def test_the_same_events_are_the_same_bytes_and_leftovers_of_a_longer_try_go() -> None:
    one, two = MemoryObjectStore(), MemoryObjectStore()
    two.put(naming.day_data(DAY, 9), b"of a try that died")
    assert write(one) == write(two)
    assert {i.key: one.get(i.key) for i in one.list("")} == {i.key: two.get(i.key) for i in two.list("")}


def test_a_day_without_a_manifest_is_not_archived() -> None:
    store = MemoryObjectStore()
    with pytest.raises(RuntimeError), DayWriter(store, DAY) as writer:
        for event in events(9):
            writer.add(event)
        raise RuntimeError("killed")
    assert not store.exists(naming.day_manifest(DAY))
    with pytest.raises(PoisonError) as caught:
        verify_day(store, DAY, "0" * 64)
    assert caught.value.reason == "missing_object"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_changed_cut_or_missing_file_is_named(number: int) -> None:
    for spoil in ("change", "cut", "lose", "swap"):
        store = MemoryObjectStore()
        sha256 = write(store)
        key = naming.day_data(DAY, number)
        data = store.get(key)
        if spoil == "lose":
            store.delete(key)
        else:
            other = zstandard.compress(
                zstandard.ZstdDecompressor().decompressobj().decompress(data).replace(b"t-", b"u-")
            )
            store.put(key, {"change": data[:-1] + b"x", "cut": data[:-1], "swap": other}[spoil])
        with pytest.raises(IntegrityError, match=key):
            verify_day(store, DAY, sha256)


def test_a_manifest_that_is_not_the_one_noted_is_refused() -> None:
    store = MemoryObjectStore()
    sha256 = write(store)
    write(store, 9)
    with pytest.raises(IntegrityError, match="digest"):
        read_day_manifest(store, DAY, sha256)


def test_events_of_another_day_or_out_of_order_are_refused() -> None:
    first, second = events(2)
    with DayWriter(MemoryObjectStore(), DAY) as writer:
        writer.add(second)
        for wrong in (first, second, *events(1, date(2026, 10, 2))):
            with pytest.raises(ValueError, match="out of order, or not of"):
                writer.add(wrong)
