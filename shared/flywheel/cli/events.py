"""The command ``flywheel events days``."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flywheel.settings import Connections
    from flywheel.storage.days import Day

events = typer.Typer(help="Recorded events, as they are kept.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.add_typer(events, name="events")


@events.command("days")
def list_days(as_json: Annotated[bool, typer.Option("--json", help="print a JSON list")] = False) -> None:
    """List the days of events, oldest first: in the database, archived, dropped, and why one past its time stays."""
    from flywheel.settings import Connections

    found = asyncio.run(_days(Connections.load()))
    if as_json:
        typer.echo(json.dumps([_document(day, size) for day, size in found], indent=2))
        return
    if not found:
        typer.echo("no days yet: the recorder makes them when it starts")
    for day, size in found:
        amount = f"{day.rows:,} events, {day.bytes or 0:,} bytes archived" if day.rows is not None else ""
        held = f"{size:,} bytes in the database" if size is not None else ""
        typer.echo("  ".join(part for part in (f"{day.day}", f"{day.state:<8}", held, amount, day.blocked) if part))


async def _days(connections: Connections) -> list[tuple[Day, int | None]]:
    from flywheel.storage import days, postgres

    pool = await postgres.connect(connections.postgres, max_size=1)
    try:
        sizes = await days.sizes(pool)
        return [(day, sizes.get(day.day)) for day in await days.days(pool)]
    finally:
        await pool.close()


def _document(day: Day, size: int | None) -> dict[str, object]:
    times = {name: getattr(day, name) for name in ("sealed_at", "archived_at", "dropped_at")}
    return {
        "day": day.day.isoformat(),
        "state": day.state,
        "database_bytes": size,
        "events": day.rows,
        "archive_bytes": day.bytes,
        "manifest": day.manifest,
        "manifest_sha256": day.manifest_sha256,
        "blocked": day.blocked,
        **{name: None if time is None else time.isoformat() for name, time in times.items()},
    }
