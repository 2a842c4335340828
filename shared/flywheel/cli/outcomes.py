"""``flywheel outcome``: say what the world turned out to be."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flywheel.outcomes import Outcome
    from flywheel.stream.cluster import Cluster

#: Most faults that are shown.
_SHOWN = 10
_TELL_EVERY = 1000

outcomes = typer.Typer(name="outcome", help="Publish outcomes: rewards that come later.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group ``outcome`` to the command line."""
    app.add_typer(outcomes)


@outcomes.callback()
def _group() -> None:
    pass


def read(lines: Iterable[bytes]) -> tuple[list[Outcome], list[str]]:
    """Return the outcomes of JSON Lines, and what is wrong with which line. Empty lines are passed over.

    ``outcome_id`` and ``time`` are made here where a line has none.
    """
    from flywheel.errors import PoisonError
    from flywheel.outcomes import Outcome

    found: list[Outcome] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(Outcome.parse(_minted(line)))
        except PoisonError as error:
            faults.append(f"line {number}: {error.reason}: {error}")
    return found, faults


@outcomes.command()
def publish(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON Lines, an outcome a line; -: standard input")],
) -> None:
    """Publish outcomes, once all are found to be well-formed. Repeating it changes nothing."""
    from flywheel.errors import FlywheelError
    from flywheel.settings import Connections
    from flywheel.stream.cluster import Cluster

    kafka = Cluster(Connections.load())
    try:
        if file == "-":
            found, faults = read(sys.stdin.buffer)
        else:
            with open(file, "rb") as lines:  # noqa: PTH123 - a path as it was typed
                found, faults = read(lines)
    except OSError as error:
        raise _failed(str(error)) from None
    for fault in faults[:_SHOWN]:
        typer.echo(fault, err=True)
    if faults:
        raise _failed(f"{len(faults):,} lines are no outcomes; nothing was published (docs/events.md says what is)")
    try:
        asyncio.run(_send(kafka, found))
    except FlywheelError as error:
        raise _failed(f"{error}; publish again: repeats are harmless") from None
    typer.echo(f"published {len(found):,} outcomes")


async def _send(kafka: Cluster, found: Sequence[Outcome]) -> None:
    from flywheel.stream.producer import Producer
    from flywheel.topics import OUTCOMES

    producer = Producer(kafka, client_id="flywheel-cli")
    await producer.start()
    try:
        for begin in range(0, len(found), _TELL_EVERY):
            portion = found[begin : begin + _TELL_EVERY]
            sent = [await producer.send(OUTCOMES.name, outcome.key, outcome.dump()) for outcome in portion]
            await asyncio.gather(*sent)
            if sys.stderr.isatty():
                typer.echo(f"\r\x1b[K{begin + len(portion):,} of {len(found):,}", nl=False, err=True)
    finally:
        await producer.stop()
        if sys.stderr.isatty():
            typer.echo("", err=True)


def _minted(line: bytes) -> bytes:
    """Return the line with an id and a time where it has none; what is no JSON object as it is: parsing says so."""
    from datetime import UTC, datetime

    from flywheel.ids import uuid7

    try:
        given: Any = json.loads(line)
    except ValueError:
        return line
    if not isinstance(given, dict):
        return line
    return json.dumps({"outcome_id": str(uuid7()), "time": datetime.now(UTC).isoformat(), **given}).encode()


def _failed(message: str) -> typer.Exit:
    typer.echo(f"flywheel outcome: {message}", err=True)
    return typer.Exit(1)
