"""Releases a brake: shows what paused a consumer, and lets it go on."""

from __future__ import annotations

import getpass
import socket

import typer

from flywheel.storage import brakes, postgres
from flywheel.tools.dead.view import safe, table


async def release_brakes(dsn: str, topic: str | None, allow: int, *, yes: bool) -> bool:
    """Show the brakes that are on, ask unless ``yes``, and release them; return False when nobody said yes."""
    pool = await postgres.connect(dsn, max_size=1)
    try:
        async with pool.acquire() as conn:
            paused = [brake for brake in await brakes.brakes_on(conn) if topic in (None, brake.topic)]
        if not paused:
            typer.echo("nothing is paused" + (f" on {topic}" if topic else ""))
            return True
        for brake in paused:
            typer.echo(described(brake))
        if allow:
            typer.echo(f"{allow:,} records of each topic would go through unjudged")
        if not yes and not typer.confirm("Release?"):
            return False
        by = f"{getpass.getuser()}@{socket.gethostname()}"
        async with pool.acquire() as conn:
            for brake in paused:
                released = await brakes.release(conn, brake.id, by, allow)
                typer.echo(f"{brake.topic}: " + ("released" if released else "was released meanwhile"))
        return True
    finally:
        await pool.close()


def described(brake: brakes.Brake) -> str:
    """Return what there is to say of a brake that is on, safe for a terminal."""
    lines = [
        f"{safe(brake.consumer)} is paused on {safe(brake.topic)} since {brake.since:%Y-%m-%d %H:%M:%S} UTC: "
        f"{brake.share:.0%} of {brake.records:,} records were dead letters",
        table(("", "reason", "records"), (("", reason, f"{count:,}") for reason, count in brake.causes.items())),
    ]
    if brake.examples:
        rows = (
            ("", f"{brake.topic}:{one['partition']}:{one['offset']}", str(one["reason"]), str(one["message"]))
            for one in brake.examples
        )
        lines.append(table(("", "for example", "reason", "message"), rows))
    return "\n".join(lines)
