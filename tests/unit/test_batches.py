from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel import naming
from flywheel.batches import BatchWriter, Manifest, Member, Row, read_batch, verify_batch, write_batch
from flywheel.batches import read as read_module
from flywheel.batches import write as write_module
from flywheel.canonical import canonical_json, sha256_bytes
from flywheel.errors import IntegrityError, PoisonError
from flywheel.events import Event, LLMCall, Step, TrajectoryStarted, dump
from flywheel.outcomes import RewardEntry
from flywheel.storage.memory import MemoryObjectStore

CREATED = datetime(2026, 11, 23, 4, 30, 0, 123456, tzinfo=UTC)
BATCH = "b-1"


def row(name: str, group: str | None = None, revision: int = 1, steps: int = 2, text: str = "") -> Row:
    """A trajectory whose bytes depend on the arguments alone."""
    ids = (UUID(bytes=sha256_bytes(f"{name}/{n}".encode()).encode()[:16]) for n in range(1000))
    common = {"trajectory_id": name, "agent_id": "agent", "time": CREATED}
    events: list[Event] = [
        TrajectoryStarted(**common, event_id=next(ids), seq=0, scenario_id="s", model_version="1.0.0")
    ]
    for number in range(steps):
        events.append(Step(**common, event_id=next(ids), seq=1 + 2 * number, step=number, reward=0.5, observation=text))
        events.append(
            LLMCall(
                **common,
                event_id=next(ids),
                seq=2 + 2 * number,
                step=number,
                model="m",
                prompt_token_ids=[1, 2],
                completion_token_ids=[3],
                completion_logprobs=[-0.1],
                model_version="1.1.0" if number else None,
            )
        )
    return Row(Member(trajectory_id=name, revision=revision, group_id=group or name), [dump(e) for e in events])


def write(store: MemoryObjectStore, rows: list[Row], part: int = 2, batch_id: str = BATCH) -> tuple[Manifest, str]:
    return write_batch(
        store, rows, batch_id=batch_id, channel="default", created_at=CREATED, rule="volume", part_trajectories=part
    )


def objects(store: MemoryObjectStore) -> dict[str, bytes]:
    return {info.key: store.get(info.key) for info in store.list("")}


rows = st.lists(
    st.builds(
        row, st.text("abcdef", min_size=1, max_size=6), st.none() | st.sampled_from(["g1", "g2"]), st.integers(1, 3),
        st.integers(0, 3), st.text(max_size=20),
    ),
    max_size=12, unique_by=lambda r: r.member.trajectory_id,
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(rows, st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_same_members_are_the_same_bytes_in_whatever_order_they_come(members, part, rng) -> None:
    one, two = MemoryObjectStore(), MemoryObjectStore()
    first = write(one, members, part)
    rng.shuffle(members)
    assert write(two, members, part) == first
    assert objects(one) == objects(two)


@settings(deadline=None, max_examples=40)
@given(rows, st.integers(1, 5))
def test_what_is_read_is_what_was_written(members, part) -> None:
    store = MemoryObjectStore()
    manifest, sha256 = write(store, members, part)
    read, trajectories = read_batch(store, naming.batch_manifest(BATCH), sha256)
    documents = list(trajectories)
    assert read == manifest
    assert [(d.trajectory_id, d.revision) for d in documents] == [(m.trajectory_id, m.revision) for m in read.members]
    by_name = {member.member.trajectory_id: member for member in members}
    for document in documents:
        assert [dump(event) for event in document.events] == by_name[document.trajectory_id].bodies
    assert manifest.counts.trajectories == len(members)
    assert manifest.counts.groups == len({member.member.group_id for member in members})
    assert manifest.counts.steps == manifest.counts.llm_calls == sum(len(d.steps) for d in documents)
    assert sum(manifest.policy_versions.values()) == manifest.counts.llm_calls


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_flipped_bit_anywhere_is_an_integrity_error_naming_the_object(data: st.DataObject) -> None:
    store = MemoryObjectStore()
    _, sha256 = write(store, [row(name) for name in "abc"])
    key = data.draw(st.sampled_from(sorted(objects(store))))
    raw = bytearray(store.get(key))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    store.put(key, bytes(raw))
    with pytest.raises(IntegrityError, match=key):
        list(read_batch(store, naming.batch_manifest(BATCH), sha256)[1])
    with pytest.raises(IntegrityError, match=key):
        verify_batch(store, naming.batch_manifest(BATCH), sha256)


def test_an_intact_batch_verifies() -> None:
    store = MemoryObjectStore()
    manifest, sha256 = write(store, [row(name) for name in "abc"])
    assert verify_batch(store, naming.batch_manifest(BATCH), sha256) == manifest
    assert [file.trajectories for file in manifest.files] == [2, 1]
    assert manifest.policy_versions == {"1.0.0": 3, "1.1.0": 3}


def test_a_missing_or_cut_data_file_is_an_integrity_error_and_no_manifest_a_missing_object() -> None:
    store = MemoryObjectStore()
    _, sha256 = write(store, [row(name) for name in "abc"])
    key = naming.batch_data(BATCH, 1)
    store.put(key, store.get(key)[:-5])
    with pytest.raises(IntegrityError, match=key):
        verify_batch(store, naming.batch_manifest(BATCH), sha256)
    store.delete(key)
    with pytest.raises(IntegrityError, match=key):
        verify_batch(store, naming.batch_manifest(BATCH), sha256)
    store.delete(naming.batch_manifest(BATCH))
    with pytest.raises(PoisonError) as caught:
        read_batch(store, naming.batch_manifest(BATCH), sha256)
    assert caught.value.reason == "missing_object"


def _rewritten(store: MemoryObjectStore, change) -> str:
    manifest = json.loads(store.get(naming.batch_manifest(BATCH)))
    change(manifest)
    data = canonical_json(manifest)
    store.put(naming.batch_manifest(BATCH), data)
    return sha256_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["members"].reverse(),
        lambda m: m["members"][0].update(revision=9),
        lambda m: m["members"].pop(),
        lambda m: m["files"].reverse(),
        lambda m: m["counts"].update(trajectories=7),
        lambda m: m["files"][0].update(trajectories=1) or m["files"][1].update(trajectories=2),
        lambda m: m.pop("rule"),
        lambda m: m.pop("schema_version"),
    ],
)
def test_a_manifest_that_does_not_fit_its_rows_is_refused_even_when_its_digest_is_right(change) -> None:
    store = MemoryObjectStore()
    write(store, [row(name) for name in "abc"])
    sha256 = _rewritten(store, change)
    with pytest.raises(IntegrityError):
        list(read_batch(store, naming.batch_manifest(BATCH), sha256)[1])


def test_a_row_that_unfolds_beyond_all_bounds_is_refused_before_it_is_in_memory(monkeypatch) -> None:
    store = MemoryObjectStore()
    _, sha256 = write(store, [row("a"), row("b", text="x" * 100_000)])
    monkeypatch.setattr(read_module, "LONGEST_ROW", 10_000)
    _, rows = read_batch(store, naming.batch_manifest(BATCH), sha256)
    assert next(rows).trajectory_id == "a"
    with pytest.raises(IntegrityError, match="row 2 is longer than 10,000 bytes"):
        next(rows)


def test_the_longest_row_that_is_written_is_the_longest_that_is_read(monkeypatch) -> None:
    whole = MemoryObjectStore()
    _, sha256 = write(whole, [row("big", text="x" * 10_000)])
    longest = len(zstandard.ZstdDecompressor().decompressobj().decompress(whole.get(naming.batch_data(BATCH, 0))))
    for limit, written in ((longest, ["a", "big", "c"]), (longest - 1, ["a", "c"])):
        for module in (read_module, write_module):
            monkeypatch.setattr(module, "LONGEST_ROW", limit)
        store = MemoryObjectStore()
        with BatchWriter(
            store, batch_id=BATCH, channel="c", created_at=CREATED, rule="r", part_trajectories=1
        ) as writer:
            for each in (row("a"), row("big", text="x" * 10_000), row("c")):
                if each.member.trajectory_id in written:
                    writer.add(each)
                else:
                    with pytest.raises(PoisonError) as caught:
                        writer.add(each)
                    assert caught.value.reason == "too_large"
            manifest, sha256 = writer.finish()
        assert len(manifest.files) == len(written)
        assert [each.trajectory_id for each in read_batch(store, naming.batch_manifest(BATCH), sha256)[1]] == written


def test_a_newer_format_is_told_apart_from_damage() -> None:
    store = MemoryObjectStore()
    write(store, [row("a")])
    sha256 = _rewritten(store, lambda m: m.update(schema_version=3))
    with pytest.raises(PoisonError) as caught:
        read_batch(store, naming.batch_manifest(BATCH), sha256)
    assert caught.value.reason == "newer_schema"


def test_unknown_fields_and_numbers_of_any_size_stay_whole() -> None:
    store = MemoryObjectStore()
    body = (
        '{"kind":"step","event_id":"01a2064c-04ef-7681-9b90-4efa35735413","trajectory_id":"t","seq":0,"agent_id":"a",'
        '"time":"2026-11-23T04:00:00Z","step":0,"mood":{"ü":[123456789012345678901234567890,1e-320,"\\u0000"]}}'
    )
    member = Member(trajectory_id="t", revision=1, group_id="t")
    _, sha256 = write(store, [Row(member, [body])])
    (document,) = read_batch(store, naming.batch_manifest(BATCH), sha256)[1]
    assert document.events[0].model_extra == {"mood": json.loads(body)["mood"]}


def test_an_earlier_try_leaves_no_files_behind() -> None:
    store = MemoryObjectStore()
    write(store, [row(name) for name in "abcdef"], part=1)
    _, sha256 = write(store, [row(name) for name in "abcdef"], part=6)
    assert sorted(objects(store)) == [naming.batch_manifest(BATCH), naming.batch_data(BATCH, 0)]
    assert verify_batch(store, naming.batch_manifest(BATCH), sha256).counts.trajectories == 6


def test_the_manifest_is_written_last_and_not_at_all_by_a_writer_that_was_left() -> None:
    store = MemoryObjectStore()
    with BatchWriter(store, batch_id=BATCH, channel="c", created_at=CREATED, rule="r", part_trajectories=1) as writer:
        writer.add(row("a"))
        assert sorted(objects(store)) == [naming.batch_data(BATCH, 0)]
    assert not store.exists(naming.batch_manifest(BATCH))


def test_rows_out_of_order_twice_or_of_another_trajectory_are_refused() -> None:
    with BatchWriter(MemoryObjectStore(), batch_id=BATCH, channel="c", created_at=CREATED, rule="r") as writer:
        writer.add(row("b"))
        with pytest.raises(ValueError, match="out of order"):
            writer.add(row("a"))
        with pytest.raises(ValueError, match="twice"):
            writer.add(row("b"))
        with pytest.raises(ValueError, match="under d"):
            writer.add(Row(Member(trajectory_id="d", revision=1, group_id="d"), row("c").bodies))


def test_a_batch_of_nothing_is_a_batch() -> None:
    store = MemoryObjectStore()
    _, sha256 = write(store, [])
    manifest, trajectories = read_batch(store, naming.batch_manifest(BATCH), sha256)
    assert manifest.files == []
    assert list(trajectories) == []


def test_entries_of_the_ledger_travel_with_their_row_and_only_such_a_batch_is_of_the_newer_format() -> None:
    plain, judged = MemoryObjectStore(), MemoryObjectStore()
    entry = RewardEntry(step=0, name="outcome", value=2.0, source="oracle", subject="m-1", scope="scenario", key="s")
    members = [row("a"), row("b")]
    before, _ = write(plain, members)
    after, sha256 = write(judged, [replace(members[0], entries=[entry]), members[1]])
    assert (before.schema_version, after.schema_version) == (1, 2)
    first, second = read_batch(judged, naming.batch_manifest(BATCH), sha256)[1]
    unjudged = next(read_batch(plain, naming.batch_manifest(BATCH), write(plain, members)[1])[1])
    assert first.total_reward == (unjudged.total_reward or 0.0) + 2.0
    assert entry in [*first.steps[0].rewards, *first.outside_rewards]
    assert second.total_reward == unjudged.total_reward
