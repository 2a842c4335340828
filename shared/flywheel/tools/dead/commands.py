"""The commands ``flywheel dead list``, ``show``, ``replay`` and ``release``."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flywheel.messages import Replayed
    from flywheel.stream.cluster import Cluster
    from flywheel.stream.letter import Letter, Place
    from flywheel.stream.scan import Span
    from flywheel.tools.dead.listing import Listing
    from flywheel.tools.dead.replay import Done, Plan, Selection

dead = typer.Typer(
    help="List, show and replay what could not be processed.", no_args_is_help=True, rich_markup_mode=None
)

#: Without --since, so many of the newest records of a partition are read.
NEWEST = 10_000

Topic = Annotated[str | None, typer.Option(help="only of this topic, such as flywheel.events; default: of all")]
Reason = Annotated[str | None, typer.Option(help="only with this reason, such as schema")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]
Since = Annotated[str | None, typer.Option(help="only those written since: 90s, 30m, 2h, 7d, or a UTC time")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.add_typer(dead, name="dead")


@dead.command("list")
def list_command(
    topic: Topic = None,
    reason: Reason = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=0, max=100_000, help="how many to list, the newest; all are counted")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """List dead letters, newest last, and count them by topic and reason.

    Without --since, the newest 10,000 of each topic are read.
    """
    from flywheel.tools.dead.view import list_document, list_text

    listing, read, older = asyncio.run(_list(topic, reason, _moment(since), limit))
    rows, sums = listing.rows(), listing.sums()
    if as_json:
        typer.echo(json.dumps(list_document(rows, sums, read=read, older=older), indent=2))
        return
    typer.echo(list_text(rows, sums))
    if older:
        typer.echo(f"only the newest {read:,} were read; --since 30d reads them all", err=True)


async def _list(topic: str | None, reason: str | None, since: int | None, limit: int) -> tuple[Listing, int, bool]:
    from flywheel.settings import Connections
    from flywheel.stream.cluster import Cluster
    from flywheel.stream.scan import Span
    from flywheel.tools.dead.listing import Listing
    from flywheel.tools.dead.replay import Selection, letters, marks

    kafka = Cluster(Connections.load())
    wanted = await _spans(kafka, topic, since)
    if since is None:
        wanted = [
            Span(s.topic, s.partition, s.first, max(s.start, s.end - max(NEWEST, limit)), s.end) for s in wanted
        ]  # fmt: skip
    listing, read, selection = Listing(limit, await marks(kafka)), 0, Selection(reason)
    async with aclosing(letters(kafka, wanted)) as source:
        async for letter in source:
            read += 1
            if selection.wants(letter):
                listing.add(letter)
    return listing, read, since is None and not all(span.whole for span in wanted)


@dead.command()
def show(
    place: Annotated[str, typer.Argument(metavar="ID", help="as listed: flywheel.events.dead:0:17")],
    raw: Annotated[bool, typer.Option("--raw", help="write the value alone, byte for byte")] = False,
) -> None:
    """Show one dead letter: why it is there, its headers, its value."""
    from flywheel.tools.dead.view import letter_text

    (wanted,) = _places([place])
    letter, marks = asyncio.run(_show(wanted))
    if letter is None:
        typer.echo(f"flywheel dead: no dead letter {wanted}", err=True)
        raise typer.Exit(1)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
        sys.stdout.buffer.flush()
    else:
        typer.echo(letter_text(letter, marks))


async def _show(place: Place) -> tuple[Letter | None, list[Replayed]]:
    from flywheel.settings import Connections
    from flywheel.stream.cluster import Cluster
    from flywheel.stream.scan import spans
    from flywheel.tools.dead.replay import letters, replays, spans_of

    kafka = Cluster(Connections.load())
    wanted, _ = spans_of(await spans(kafka, named=[place.topic]), [place])
    async with aclosing(letters(kafka, wanted)) as source:
        letter = await anext(source, None)
    async with aclosing(replays(kafka)) as marks:
        about = [mark async for mark in marks if mark.dead_letter == str(place)]
    return letter, [mark for mark in about if letter is not None and mark.written_ms == letter.written_ms]


@dead.command()
def replay(
    places: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="as listed")] = None,
    topic: Topic = None,
    reason: Reason = None,
    since: Since = None,
    edit: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="put this file in place of the value of one ID")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="also what was replayed before")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would happen")] = False,
    yes: Yes = False,
) -> None:
    """Put dead letters back on the topic they came from, as they came.

    Harmless: ids stay the same, so what was recorded meanwhile is dropped as a duplicate. Each is replayed once,
    unless --again. Exit status 1 when one that was asked for was not put back.
    """
    from flywheel.tools.dead.replay import Selection

    if bool(places) == bool(topic or reason or since):
        raise typer.BadParameter("either IDs, or some of --topic, --reason, --since")
    wanted = _places(places or [])
    if edit is not None and len(wanted) != 1:
        raise typer.BadParameter("goes with one ID", param_hint="--edit")
    selection = Selection(reason, again, edit.read_bytes() if edit is not None else None)
    failed = asyncio.run(_replay(wanted, topic, _moment(since), selection, dry_run=dry_run, yes=yes))
    raise typer.Exit(1 if failed else 0)


async def _replay(
    places: list[Place], topic: str | None, since: int | None, selection: Selection, *, dry_run: bool, yes: bool
) -> bool:
    from flywheel.settings import Connections, ServiceSettings
    from flywheel.stream.admin import ensure_topics
    from flywheel.stream.cluster import Cluster
    from flywheel.stream.producer import Producer
    from flywheel.stream.scan import spans
    from flywheel.tools.dead.replay import Done, Fate, judged, marks, plan, replay, spans_of
    from flywheel.topics import REPLAYS

    kafka = Cluster(Connections.load())
    missing: list[Place] = []
    if places:
        wanted, missing = spans_of(await spans(kafka, named={place.topic for place in places}), places)
    else:
        wanted = await _spans(kafka, topic, since)
    for place in missing:
        typer.echo(f"no dead letter {place}", err=True)
    known = await marks(kafka)
    intended = await plan(kafka, wanted, selection, known)
    _tell(intended, selection)
    short = bool(missing) or intended.fates[Fate.REFUSED] > 0
    if dry_run or not intended.fates[Fate.BACK]:
        return short
    if not yes and not typer.confirm("Go ahead?"):
        return True
    await ensure_topics(kafka, [REPLAYS], ServiceSettings.load().topic_replication)
    producer, done = Producer(kafka, client_id="flywheel-cli"), Done()
    await producer.start()
    try:
        async with aclosing(judged(kafka, wanted, selection, known)) as source:
            await replay(producer, source, selection, done)
    finally:
        await producer.stop()
        _tell_done(done)
    return short or done.failed > 0


@dead.command()
def release(
    topic: Annotated[
        str | None, typer.Option(help="only on this topic; default: every consumer that is paused")
    ] = None,
    allow: Annotated[
        int,
        typer.Option(min=0, max=2**53, help="let so many records of the topic through unjudged, dead letters or not"),
    ] = 0,
    yes: Yes = False,
) -> None:
    """Let consumers go on that paused because too much of what came were dead letters.

    Shows why they did. They go on within a second or two, where they stopped, judged anew from nothing; what is still
    poison is then buried. Exit status 1 when nobody said yes.
    """
    from flywheel.settings import Connections
    from flywheel.tools.dead.release import release_brakes
    from flywheel.topics import BY_NAME

    if topic is not None and topic not in BY_NAME:
        raise typer.BadParameter(f"there is no topic {topic}; known are {', '.join(BY_NAME)}", param_hint="--topic")
    done = asyncio.run(release_brakes(Connections.load().postgres, topic, allow, yes=yes))
    raise typer.Exit(0 if done else 1)


def _tell(plan: Plan, selection: Selection) -> None:
    from flywheel.errors import PoisonError
    from flywheel.events import parse
    from flywheel.tools.dead.replay import Fate
    from flywheel.tools.dead.view import safe, table
    from flywheel.topics import EVENTS

    typer.echo(f"{plan.fates[Fate.BACK]:,} to be put back" + (", edited" if selection.edited is not None else ""))
    if plan.back:
        rows = [("", topic, reason, f"{count:,}") for (topic, reason), count in sorted(plan.back.items())]
        typer.echo(table(("", "onto", "reason", "dead letters"), rows))
    for fate in (Fate.BEFORE, Fate.REPEAT, Fate.REFUSED):
        if count := plan.fates[fate]:
            typer.echo(f"{count:,} left alone: {fate.value}")
    for line in plan.refusals:
        typer.echo(f"  {safe(line)}")
    if selection.edited is not None and any(topic == EVENTS.name for topic, _ in plan.back):
        try:
            parse(selection.edited)
        except PoisonError as error:
            typer.echo(f"the edited event would be refused again: {error.reason}: {safe(str(error))}", err=True)


def _tell_done(done: Done) -> None:
    from flywheel.tools.dead.view import safe

    typer.echo(f"{done.replayed:,} replayed" + (f", {done.failed:,} failed" if done.failed else ""))
    for line in done.failures:
        typer.echo(f"  {safe(line)}", err=True)


async def _spans(kafka: Cluster, topic: str | None, since: int | None) -> list[Span]:
    """Return what the broker has of the topic's dead letters, or of all. Ends the command for a topic without."""
    from flywheel.stream import scan
    from flywheel.stream.letter import SUFFIX
    from flywheel.tools.dead.listing import dead_topic

    if topic is None:
        found = await scan.spans(kafka, suffix=SUFFIX)
    elif not (found := await scan.spans(kafka, named=[dead_topic(topic)])):
        typer.echo(f"flywheel dead: no topic {dead_topic(topic)}", err=True)
        raise typer.Exit(1)
    return found if since is None else await scan.since(kafka, found, since)


def _places(texts: list[str]) -> list[Place]:
    from flywheel.stream.letter import SUFFIX, Place

    try:
        places = [Place.parse(text) for text in texts]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="ID") from None
    for place in places:
        if not place.topic.endswith(SUFFIX):
            raise typer.BadParameter(f"{place} is not in a dead-letter topic (…{SUFFIX})", param_hint="ID")
    return places


def _moment(text: str | None) -> int | None:
    from flywheel.tools.dead.listing import since_ms

    if text is None:
        return None
    try:
        return since_ms(text, datetime.now(UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
