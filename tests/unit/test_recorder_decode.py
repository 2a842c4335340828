"""From a record to a row: the body as it arrived, and a reason for everything that cannot be stored."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.errors import PoisonError
from flywheel.ids import uuid7
from flywheel.stream.record import Record
from flywheel.topics import EVENTS, MAX_EVENT_BYTES
from services.recorder.decode import decode
from services.recorder.dedupe import contradictions, unique


def event(**fields: Any) -> dict[str, Any]:
    return {
        "kind": "step", "event_id": str(uuid7()), "trajectory_id": "t", "seq": 3, "agent_id": "a", "step": 1,
        "time": "2026-11-23T06:00:00+02:00", "schema_version": 1,
    } | fields  # fmt: skip


def record(value: bytes | None, offset: int = 7) -> Record:
    return Record(EVENTS.name, 2, offset, b"t", value, (), 0)


def reason(value: bytes | None) -> str:
    with pytest.raises(PoisonError) as caught:
        decode(record(value))
    return caught.value.reason


def test_a_row_holds_the_body_exactly_as_it_arrived_and_where_it_came_from() -> None:
    body = json.dumps(event(unknown={"b": 1, "a": "ü"}), indent=3).encode()
    row = decode(record(body)).row
    assert row.copied.endswith(len(body).to_bytes(4) + body)
    assert row.digest == hashlib.blake2b(body, digest_size=16).digest()
    assert (row.src_partition, row.src_offset, row.kind) == (2, 7, "step")
    assert isinstance(row.event_id, UUID) and row.event_id.bytes in row.copied


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "no_value"),
        (b"", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"[1]", "schema"),
        (b"[" * 100_000, "not_json"),
        (b" " * (MAX_EVENT_BYTES + 1), "too_large"),
        (json.dumps(event(kind="dream")).encode(), "unknown_kind"),
        (json.dumps(event(seq="three")).encode(), "schema"),
        (json.dumps(event(time="0001-01-01T00:00:00Z")).encode(), "schema"),
        (json.dumps(event(time="1969-12-31T23:59:59Z")).encode(), "schema"),
        (json.dumps(event(time="2262-01-01T00:00:01Z")).encode(), "schema"),
        (json.dumps(event(time="9999-12-31T23:59:59Z")).encode(), "schema"),
        (json.dumps(event(seq="three", schema_version=9)).encode(), "newer_schema"),
        (json.dumps(event(reward=1e999)).encode(), "schema"),
        (json.dumps(event(trajectory_id="a b")).encode(), "schema"),
        (json.dumps(event(time="0001-01-01T00:00:00+10:00")).encode(), "schema"),
        (json.dumps(event(kind="llm_call", model="m", usage={"prompt_tokens": 10**30})).encode(), "schema"),
        (json.dumps(event(reasoning="a\0b")).encode(), "nul"),
        (json.dumps(event(reasoning="\\\0")).encode(), "nul"),
        (json.dumps(event(reasoning="x")).replace('"x"', '"\\ud800"').encode(), "not_json"),
    ],
)
def test_what_cannot_be_stored_is_poison_with_its_reason(value: bytes | None, expected: str) -> None:
    assert reason(value) == expected


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    body = json.dumps(event(reasoning="C:\\u0000")).encode()
    assert b"\\\\u0000" in body
    assert decode(record(body)).row.copied.endswith(body)


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_decode_or_raise_poison(value: bytes) -> None:
    try:
        decode(record(value))
    except PoisonError as error:
        assert error.reason


JSON_VALUES = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.text(), st.recursive(JSON_VALUES, st.lists, max_leaves=20))
def test_any_payload_decodes_or_is_poison_for_its_nul(reasoning: str, observation: Any) -> None:
    try:
        body = json.dumps(event(reasoning=reasoning, observation=observation), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # a lone surrogate is no text
    try:
        assert decode(record(body)).row.copied.endswith(body)
    except PoisonError as error:
        assert error.reason == "nul" and "\0" in json.dumps(json.loads(body), ensure_ascii=False).replace(
            "\\u0000", "\0"
        )


def test_within_a_batch_the_first_of_an_id_holds_and_other_bytes_are_a_conflict() -> None:
    one = event()
    same, other = json.dumps(one).encode(), json.dumps(one | {"reward": 1.0}).encode()
    events = [decode(record(same, 1)), decode(record(same, 2)), decode(record(other, 3))]
    first, contested = unique(events)
    assert list(first.values()) == events[:1]
    assert contested == set(first)
    reasons = contradictions(events, {event_id: e.row.digest for event_id, e in first.items()})
    assert {at: why.reason for at, why in reasons.items()} == {(2, 3): "conflict"}


def test_against_what_is_stored_only_other_bytes_are_a_conflict() -> None:
    events = [decode(record(json.dumps(event()).encode(), n)) for n in (1, 2)]
    stored = {events[0].row.event_id: events[0].row.digest, events[1].row.event_id: b"\0" * 16}
    assert list(contradictions(events, stored)) == [(2, 2)]
