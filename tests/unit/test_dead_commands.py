"""What ``flywheel dead`` reads from headers, chooses and shows, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.errors import PoisonError
from flywheel.messages import Replayed
from flywheel.stream.letter import REPLAY_OF, Letter, Place, dead_headers
from flywheel.stream.producer import Producer
from flywheel.stream.record import Record
from flywheel.stream.scan import Span
from flywheel.tools.dead.listing import Listing, Marks, Recent, dead_topic, since_ms
from flywheel.tools.dead.replay import Done, Fate, Judge, Selection, replay, spans_of
from flywheel.tools.dead.view import letter_text, list_document, list_text, value_text
from flywheel.topics import EVENTS, MODELS, REPLAYS

NOW = datetime(2026, 11, 23, 4, tzinfo=UTC)


def source(offset: int = 42, headers: tuple[tuple[str, bytes | None], ...] = (), value: bytes | None = b"{}") -> Record:
    return Record(EVENTS.name, 3, offset, b"k\xff", value, headers, 1_700)


def buried(
    record: Record, at: int, *, reason: str = "schema", attempts: int = 1, written_ms: int | None = None
) -> Letter:
    """The dead letter that the record becomes, read back."""
    headers = dead_headers(record, PoisonError(reason, "seq: too\x1b[2J small"), attempts, "recorder")
    packed = tuple((n, v.encode() if isinstance(v, str) else v) for n, v in headers.items())
    when = 2_000 + at if written_ms is None else written_ms
    return Letter.of(Record(EVENTS.dead, 0, at, record.key, record.value, packed, when))


def mark(letter: Letter) -> Replayed:
    assert letter.source is not None
    return Replayed(
        dead_letter=str(letter.place), written_ms=letter.written_ms, source=str(letter.source.place),
        source_ms=letter.source.timestamp_ms, replayed_to="flywheel.events:3:99",
    )  # fmt: skip


def test_what_the_headers_say_is_read_back() -> None:
    letter = buried(source(headers=(("trace", b"\x00\xff"), ("none", None))), 7, attempts=2)
    assert letter.place == Place(EVENTS.dead, 0, 7)
    assert letter.source == (Place(EVENTS.name, 3, 42), 1_700)
    assert (letter.reason, letter.error, letter.attempts, letter.service) == ("schema", "PoisonError", 2, "recorder")
    assert letter.own == {"trace": b"\x00\xff", "none": None}
    assert letter.refusal() is None


def test_a_replay_that_fails_again_adds_up_its_attempts_and_says_what_it_was() -> None:
    first = buried(source(headers=(("trace", b"t"),)), 7, attempts=2)
    packed = tuple((n, v.encode() if isinstance(v, str) else v) for n, v in first.replay_headers().items())
    second = buried(source(offset=99, headers=packed), 8)
    assert (second.attempts, second.replay_of) == (3, "flywheel.events.dead:0:7")
    assert second.source is not None and second.source.place.offset == 99
    assert second.own == {"trace": b"t"}


def test_a_record_that_only_claims_attempts_adds_none() -> None:
    assert buried(source(headers=(("flywheel-attempts", b"50"),)), 7).attempts == 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=30), st.none() | st.binary(max_size=30)), max_size=6), st.binary())
def test_any_record_of_a_dead_letter_topic_can_be_read_and_shown(
    headers: list[tuple[str, bytes | None]], value: bytes
) -> None:
    ours = [("flywheel-" + name, said) for name, said in headers]
    letter = Letter.of(Record(EVENTS.dead, 0, 1, value, value, (*headers, *ours), 10**17))
    assert letter.refusal()
    assert all(line.isprintable() for line in letter_text(letter).split("\n"))
    listing = Listing(10, Marks())
    listing.add(letter)
    assert list_text(listing.rows(), listing.sums())


@pytest.mark.parametrize("place", [Place(EVENTS.dead, 0, 17), Place("a:b.dead", 3, 0)])
def test_an_id_is_read_as_it_is_written(place: Place) -> None:
    assert Place.parse(str(place)) == place


@pytest.mark.parametrize("text", ["", "x", "x:1", ":0:1", "x.dead:0:-1", "x.dead:a:1", "x.dead:0:²", f"x:0:{10**30}"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no place"):
        Place.parse(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", datetime(2026, 11, 23, 3, 58, 30, tzinfo=UTC)),
        ("1.5h", datetime(2026, 11, 23, 2, 30, tzinfo=UTC)),
        ("7d", datetime(2026, 11, 16, 4, tzinfo=UTC)),
        ("2026-11-23T01:00", datetime(2026, 11, 23, 1, tzinfo=UTC)),
        ("2026-11-23T01:00+01:00", datetime(2026, 11, 23, tzinfo=UTC)),
        ("999999999w", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_since_is_an_age_or_a_time(text: str, moment: datetime) -> None:
    assert since_ms(text, NOW) == moment.timestamp() * 1000


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "yesterday", "2 h"])
def test_since_refuses_what_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match="no time"):
        since_ms(text, NOW)


def test_a_topic_is_named_by_itself_or_by_its_source() -> None:
    assert dead_topic(EVENTS.name) == dead_topic(EVENTS.dead) == EVENTS.dead


def test_the_list_holds_the_newest_and_the_summary_counts_all() -> None:
    listing = Listing(2, Marks())
    for at in (3, 0, 2, 1):
        listing.add(buried(source(offset=at), at, reason="schema" if at else "nul"))
    assert [row.letter.place.offset for row in listing.rows()] == [2, 3]
    assert [(s.topic, s.reason, s.count, s.first_ms, s.last_ms) for s in listing.sums()] == [
        (EVENTS.name, "nul", 1, 2_000, 2_000), (EVENTS.name, "schema", 3, 2_001, 2_003),
    ]  # fmt: skip


def test_repeats_of_one_record_are_shown_once_with_their_count() -> None:
    listing = Listing(10, Marks())
    for at in (1, 2, 3):
        listing.add(buried(source(), at))
    listing.add(buried(source()._replace(timestamp_ms=1_701), 4))  # the topic was made anew: another record
    assert [(row.letter.place.offset, row.times) for row in listing.rows()] == [(1, 3), (4, 1)]
    assert "written 3 times" in list_text(listing.rows(), listing.sums())


def test_the_list_holds_no_values_and_few_kinds_whatever_is_added() -> None:
    listing = Listing(10, Marks())
    for at in range(500):
        listing.add(buried(source(offset=at, value=b"x" * 5_000), at, reason=f"odd-{at}"))
    assert all(row.letter.value is None and row.letter.size == 5_000 for row in listing.rows())
    assert len(listing.sums()) <= 201
    assert sum(one.count for one in listing.sums()) == 500


def test_only_the_last_keys_are_remembered() -> None:
    recent: Recent[int, str] = Recent(2)
    for number in range(3):
        recent.put(number, "x")
    assert [recent.get(number) for number in range(3)] == [None, "x", "x"]


def test_a_mark_is_for_one_letter_its_repeats_and_no_letter_of_a_topic_made_anew() -> None:
    marks = Marks()
    marks.add(mark(buried(source(), 7)))
    assert marks.has(buried(source(), 7))
    assert marks.has(buried(source(), 8))
    assert not marks.has(buried(source(offset=43), 8))
    assert not marks.has(buried(source()._replace(timestamp_ms=1_900), 7, written_ms=9_000))


def test_each_letter_goes_back_once_unless_somebody_insists() -> None:
    marks = Marks()
    marks.add(mark(buried(source(), 7)))
    asked = [buried(source(), 7), buried(source(), 8), buried(source(offset=50), 9), buried(source(offset=50), 10)]
    judge = Judge(Selection(), marks)
    assert [judge.of(letter)[0] for letter in asked] == [Fate.BEFORE, Fate.BEFORE, Fate.BACK, Fate.REPEAT]
    judge = Judge(Selection(again=True), marks)
    assert [judge.of(letter)[0] for letter in asked] == [Fate.BACK, Fate.REPEAT, Fate.BACK, Fate.REPEAT]


def test_what_is_cut_strange_or_elsewhere_is_not_put_back() -> None:
    cut = replace(buried(source(), 1), cut_from=10**7)
    assert "cut" in str(cut.refusal())
    assert cut.refusal(mended=True) is None
    assert "do not say" in str(replace(cut, source=None).refusal(mended=True))
    elsewhere = replace(buried(source(), 1), place=Place(MODELS.dead, 0, 1))
    assert "elsewhere" in str(elsewhere.refusal())


def test_ids_become_spans_and_those_that_do_not_exist_are_named() -> None:
    whole = [Span(EVENTS.dead, 0, 5, 5, 9)]
    there, before, after = (Place(EVENTS.dead, 0, at) for at in (8, 4, 9))
    spans, missing = spans_of(whole, [there, before, after, there, Place("x.dead", 0, 1)])
    assert [(span.start, span.end) for span in spans] == [(8, 9)]
    assert missing == [before, after, Place("x.dead", 0, 1)]


class Broker:
    """A producer's broker that refuses values of b"bad"."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Any, bytes | None, dict[str, Any]]] = []

    async def send(self, topic: str, key: Any, value: bytes | None, headers: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if value == b"bad":
            future.set_exception(PoisonError("too_large", "refused"))
        else:
            self.taken.append((topic, key, value, dict(headers)))
            future.set_result(SimpleNamespace(partition=3, offset=100 + len(self.taken)))
        return future

    async def send_and_wait(self, topic: str, key: Any, value: bytes | None) -> None:
        self.taken.append((topic, key, value, {}))


async def judged(letters: Iterable[Letter]) -> AsyncIterator[tuple[Letter, Fate, str]]:
    for letter in letters:
        yield letter, Fate.BACK, ""


async def test_a_replay_sends_what_came_and_notes_it_only_when_the_broker_has_it() -> None:
    broker, done = Broker(), Done()
    good, bad = buried(source(headers=(("trace", b"t"),)), 7), buried(source(offset=43, value=b"bad"), 8)
    await replay(cast(Producer, broker), judged([good, bad]), Selection(), done)
    (sent, noted) = broker.taken
    assert sent[:3] == (EVENTS.name, b"k\xff", b"{}")
    assert sent[3] == {"trace": b"t", REPLAY_OF: "flywheel.events.dead:0:7", "flywheel-attempts": "1"}
    assert noted[0] == REPLAYS.name
    assert Replayed.parse(noted[2]).replayed_to == "flywheel.events:3:101"
    assert (done.replayed, done.failed, done.failures) == (1, 1, ["flywheel.events.dead:0:8: refused"])


async def test_an_edited_replay_sends_the_other_value() -> None:
    broker, done = Broker(), Done()
    await replay(cast(Producer, broker), judged([buried(source(), 7)]), Selection(edited=b"mended"), done)
    assert broker.taken[0][2] == b"mended"
    assert Replayed.parse(broker.taken[1][2]).edited


def test_a_value_is_shown_as_json_as_text_or_as_bytes() -> None:
    assert value_text('{"a": "ü"}'.encode()) == '{\n  "a": "ü"\n}'
    assert value_text(b"not\tJSON") == "not    JSON"
    assert value_text(b"\x1b[2J").startswith("00000000  1b 5b 32 4a")
    assert value_text(b"\xff" * 600).endswith("88 bytes more: --raw")
    assert value_text(b"[" * 100_000).endswith("--raw")


def test_nothing_shown_can_command_a_terminal() -> None:
    listing = Listing(1, Marks())
    letter = buried(source(value=b'{"a": "\\u009b2J\\u202e"}'), 7)
    listing.add(letter)
    shown = list_text(listing.rows(), listing.sums()) + letter_text(letter, [mark(letter)])
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "to flywheel.events:3:99" in shown


def test_the_document_says_what_the_list_says() -> None:
    listing = Listing(1, Marks())
    listing.add(buried(source(), 7))
    document = list_document(listing.rows(), listing.sums(), read=1, older=False)
    assert document["dead_letters"][0]["id"] == "flywheel.events.dead:0:7"
    assert document["dead_letters"][0]["source"] == "flywheel.events:3:42"
    assert document["summary"][0]["count"] == 1


def test_nothing_is_listed_as_nothing() -> None:
    assert list_text([], []) == "no dead letters"
