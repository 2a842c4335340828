"""Puts dead letters back: each acknowledged by the broker, then noted on ``flywheel.replays``, so that it happens once.

A crash between the two lets at most one chunk happen again, which harms nothing: consumers drop what they have.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum

from flywheel.errors import FatalError, PoisonError
from flywheel.messages import Replayed
from flywheel.stream.cluster import Cluster
from flywheel.stream.letter import Letter, Place, Source
from flywheel.stream.producer import Producer
from flywheel.stream.scan import Span, scan, spans
from flywheel.tools.dead.listing import Marks, Recent
from flywheel.topics import REPLAYS

_CHUNK = 100
_CHUNK_BYTES = 16 * 1024 * 1024
_TOLD = 20


class Fate(Enum):
    """What becomes of a dead letter that was asked for."""

    BACK = "put back"
    BEFORE = "replayed before (--again insists)"
    REPEAT = "repeats of one that is put back"
    REFUSED = "cannot be put back"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant, within the spans read, and how they go back."""

    reason: str | None = None
    again: bool = False
    edited: bytes | None = None

    def wants(self, letter: Letter) -> bool:
        """Whether it is meant."""
        return self.reason is None or letter.reason == self.reason


@dataclass(slots=True)
class Plan:
    """What would happen. Nothing here grows with the number of dead letters."""

    back: Counter[tuple[str, str]] = field(default_factory=Counter)
    fates: Counter[Fate] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)

    def add(self, letter: Letter, fate: Fate, why: str) -> None:
        """Count one."""
        self.fates[fate] += 1
        if fate is Fate.BACK and letter.source is not None:
            self.back[letter.source.place.topic, letter.reason[:80]] += 1
        elif fate is Fate.REFUSED and len(self.refusals) < _TOLD:
            self.refusals.append(f"{letter.place}: {why}")


@dataclass(slots=True)
class Done:
    """What happened so far."""

    replayed: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)

    def fail(self, letter: Letter, error: BaseException) -> None:
        """Count one that the broker did not take."""
        self.failed += 1
        if len(self.failures) < _TOLD:
            self.failures.append(f"{letter.place}: {error}")


class Judge:
    """Says of one dead letter after the other, in the order they were written, what becomes of it."""

    def __init__(self, selection: Selection, marks: Marks) -> None:
        self._selection = selection
        self._marks = marks
        self._seen: Recent[Source, bool] = Recent()

    def of(self, letter: Letter) -> tuple[Fate, str]:
        """Return its fate, and why it is refused."""
        if why := letter.refusal(mended=self._selection.edited is not None):
            return Fate.REFUSED, why
        if self._seen.get(letter.identity):
            return Fate.REPEAT, ""
        if not self._selection.again and self._marks.has(letter):
            return Fate.BEFORE, ""
        self._seen.put(letter.identity, True)
        return Fate.BACK, ""


def spans_of(whole: Iterable[Span], places: Iterable[Place]) -> tuple[list[Span], list[Place]]:
    """Return the spans that hold these places and nothing else, and the places that no longer, or not yet, exist."""
    known = {(span.topic, span.partition): span for span in whole}
    found: list[Span] = []
    missing: list[Place] = []
    for place in sorted(set(places)):
        span = known.get((place.topic, place.partition))
        if span is None or not span.first <= place.offset < span.end:
            missing.append(place)
        else:
            found.append(Span(place.topic, place.partition, span.first, place.offset, place.offset + 1))
    return found, missing


async def letters(kafka: Cluster | str, wanted: Iterable[Span]) -> AsyncGenerator[Letter, None]:
    """Yield the dead letters of the spans."""
    async with aclosing(scan(kafka, wanted)) as records:
        async for record in records:
            yield Letter.of(record)


async def replays(kafka: Cluster | str) -> AsyncGenerator[Replayed, None]:
    """Yield every replay there was. What somebody else wrote there is none."""
    async with aclosing(scan(kafka, await spans(kafka, named=[REPLAYS.name]))) as records:
        async for record in records:
            try:
                yield Replayed.parse(record.value)
            except PoisonError:
                continue


async def marks(kafka: Cluster | str) -> Marks:
    """Return which dead letters were replayed."""
    found = Marks()
    async with aclosing(replays(kafka)) as source:
        async for mark in source:
            try:
                found.add(mark)
            except ValueError:  # it names no place, so it is not ours
                continue
    return found


async def judged(
    kafka: Cluster | str, wanted: Sequence[Span], selection: Selection, known: Marks
) -> AsyncGenerator[tuple[Letter, Fate, str], None]:
    """Yield each dead letter that is meant, with its fate. The same twice, as long as the broker keeps them."""
    judge = Judge(selection, known)
    async with aclosing(letters(kafka, wanted)) as source:
        async for letter in source:
            if selection.wants(letter):
                yield letter, *judge.of(letter)


async def plan(kafka: Cluster | str, wanted: Sequence[Span], selection: Selection, known: Marks) -> Plan:
    """Say what :func:`replay` would do."""
    out = Plan()
    async with aclosing(judged(kafka, wanted, selection, known)) as source:
        async for letter, fate, why in source:
            out.add(letter, fate, why)
    return out


async def replay(
    producer: Producer, source: AsyncIterator[tuple[Letter, Fate, str]], selection: Selection, done: Done
) -> None:
    """Put back what is to go back, counting in ``done``. Raises TransientError and FatalError."""
    chunk: list[Letter] = []
    size = 0
    async for letter, fate, _ in source:
        if fate is Fate.BACK:
            chunk.append(letter)
            size += letter.size
        if len(chunk) >= _CHUNK or size >= _CHUNK_BYTES:
            await _send(producer, chunk, selection, done)
            chunk, size = [], 0
    await _send(producer, chunk, selection, done)


async def _send(producer: Producer, chunk: Sequence[Letter], selection: Selection, done: Done) -> None:
    sent: list[tuple[Letter, Source, asyncio.Future[object]]] = []
    for letter in chunk:
        assert letter.source is not None  # else it is refused
        value = letter.value if selection.edited is None else selection.edited
        topic, key = letter.source.place.topic, letter.key
        if key is None and value is None:
            key = b""  # the client wants one of them
        try:
            sent.append((letter, letter.source, await producer.send(topic, key, value, letter.replay_headers())))
        except PoisonError as error:
            done.fail(letter, error)
    if sent:
        await asyncio.wait([future for _, _, future in sent])
    notes = []
    for letter, origin, future in sent:
        error = Producer.outcome(future)
        if isinstance(error, FatalError):
            raise error
        if error is not None:
            done.fail(letter, error)
            continue
        done.replayed += 1
        where: object = future.result()
        mark = Replayed(
            dead_letter=str(letter.place), written_ms=letter.written_ms, source=str(origin.place),
            source_ms=origin.timestamp_ms, edited=selection.edited is not None,
            replayed_to=f"{origin.place.topic}:{getattr(where, 'partition', '?')}:{getattr(where, 'offset', '?')}",
        )  # fmt: skip
        notes.append(producer.send_and_wait(REPLAYS.name, mark.dead_letter, mark.dump()))
    await asyncio.gather(*notes)
