"""The commands ``flywheel generate`` and ``flywheel validate``; ``dead``, ``events`` and ``outcome`` are put beside."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from flywheel.cli import events, outcomes
from flywheel.tools.dead import commands as dead

if TYPE_CHECKING:
    from flywheel.settings import Connections
    from flywheel.storage.days import Day
    from flywheel.tools.findings import Finding
    from flywheel.tools.generator import Recipe
    from flywheel.tools.publish import Published
    from flywheel.tools.store import Amounts, BatchRow, Scope
    from flywheel.tools.validation import Validation


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command()(generate)
    app.command()(validate)
    dead.register(app)
    events.register(app)
    outcomes.register(app)


def generate(
    trajectories: Annotated[int, typer.Option(min=1, help="how many to publish")] = 100,
    groups: Annotated[
        int | None, typer.Option(min=1, help="how many groups: --trajectories becomes groups x group size")
    ] = None,
    group_size: Annotated[int, typer.Option(min=0, help="attempts at the same start; 0: no groups")] = 8,
    agents: Annotated[int, typer.Option(min=1, help="agents that play at once")] = 4,
    scenarios: Annotated[int, typer.Option(min=1, help="distinct scenarios")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="turns of a whole trajectory")] = 5,
    tokens: Annotated[int, typer.Option(min=16, max=8000, help="tokens of a typical first prompt")] = 600,
    seed: Annotated[int, typer.Option(help="same seed and same --start: the same events, ids included")] = 0,
    start: Annotated[
        datetime | None, typer.Option(help="UTC time of the first trajectory; default: the last full hour")
    ] = None,
    split: Annotated[str, typer.Option(help="train or held_out")] = "train",
    channel: Annotated[str | None, typer.Option(help="model channel of the agents")] = None,
    model_version: Annotated[str | None, typer.Option(help="model version that the agents claim")] = None,
    failures: Annotated[float, typer.Option(min=0, max=1, help="share ended early by the agent's own fault")] = 0.05,
    errors: Annotated[float, typer.Option(min=0, max=1, help="share ended by failed infrastructure")] = 0.02,
    late: Annotated[
        float, typer.Option(min=0, max=1, help="share of events that arrive thousands of events later")
    ] = 0.0,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="share of events that are sent twice")] = 0.0,
    shuffles: Annotated[
        float, typer.Option(min=0, max=1, help="share of trajectories whose events arrive in any order")
    ] = 0.0,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="most events a second; default: as fast as it goes")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="wait until the database has everything, and compare")] = False,
    patience: Annotated[float, typer.Option(min=1, help="--wait gives up after so many seconds without news")] = 60.0,
) -> None:
    """Publish realistic trajectories from a seed through Kafka."""
    from flywheel.settings import Connections
    from flywheel.tools.generator import Recipe

    if split not in ("train", "held_out"):
        raise typer.BadParameter("train or held_out", param_hint="--split")
    if groups is not None:
        if not group_size:
            raise typer.BadParameter("needs a group size", param_hint="--groups")
        trajectories = groups * group_size
    first = start.replace(tzinfo=UTC) if start else _last_hour()
    recipe = Recipe(
        seed=seed, start=first, trajectories=trajectories, agents=agents, group_size=group_size, scenarios=scenarios,
        steps=steps, tokens=tokens, split=split, channel=channel, model_version=model_version, failures=failures,
        errors=errors, late=late, duplicates=duplicates, shuffled=shuffles,
    )  # fmt: skip
    differences = asyncio.run(_generate(Connections.load(), recipe, rate, patience if wait else None))
    for line in differences:
        typer.echo(f"differs     {line}", err=True)
    raise typer.Exit(1 if differences else 0)


async def _generate(
    connections: Connections, recipe: Recipe, rate: float | None, patience_s: float | None
) -> list[str]:
    from flywheel.storage import postgres
    from flywheel.stream.cluster import Cluster
    from flywheel.tools.publish import reconcile, send_all

    def told(out: Published) -> None:
        _progress(f"published {out.trajectories:,}/{recipe.trajectories:,} trajectories, {out.sent:,} events")

    def seen(now: Amounts) -> None:
        _progress(f"stored {now.closed:,}/{recipe.trajectories:,} closed trajectories, {now.events:,} events")

    out = await send_all(Cluster(connections), recipe, rate=rate, tell=told)
    _progress("")
    speed = out.sent / out.seconds if out.seconds else 0.0
    typer.echo(f"published   {out.trajectories:,} trajectories, {out.events:,} events, {out.repeats:,} of them twice")
    typer.echo(f"            {', '.join(f'{n:,} {kind}' for kind, n in sorted(out.kinds.items()))}")
    typer.echo(f"            {out.prompt_tokens:,} prompt and {out.completion_tokens:,} completion tokens")
    typer.echo(f"            {out.bytes / 1e6:,.1f} MB in {out.seconds:.1f} s, {speed:,.0f} events/s")
    typer.echo(f"ids         {recipe.prefix}…")
    typer.echo(f"again       --seed {recipe.seed} --start {recipe.start:%Y-%m-%dT%H:%M:%S} and the same sizes")
    if patience_s is None:
        return []
    pool = await postgres.connect(connections.postgres, max_size=1)
    try:
        differences = await reconcile(pool, recipe, out, patience_s=patience_s, tell=seen)
    finally:
        await pool.close()
    _progress("")
    if not differences:
        typer.echo("reconciled  everything is in the database, once")
    return differences


def validate(
    window: Annotated[str | None, typer.Option(help="only this window, such as 2026-11-23T04")] = None,
    agent: Annotated[str | None, typer.Option(help="only this agent")] = None,
    scenario: Annotated[str | None, typer.Option(help="only this scenario")] = None,
    prefix: Annotated[str | None, typer.Option(help="only trajectories whose id starts so")] = None,
    open_minutes: Annotated[float, typer.Option(min=0, help="an open trajectory may be silent for so long")] = 30.0,
    archive: Annotated[bool, typer.Option("--archive", help="verify every ready batch and archived day, too")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="a WARN counts as a failure")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list")] = False,
) -> None:
    """Check stored data: PASS, WARN or FAIL a check, with examples and what to do. Exit status 1 when any fails."""
    from flywheel.settings import Connections
    from flywheel.tools.store import Scope
    from flywheel.tools.validation import as_document, as_text

    scope = Scope(window_id=window, agent_id=agent, scenario_id=scenario, prefix=prefix)
    result = asyncio.run(_validate(Connections.load(), scope, timedelta(minutes=open_minutes), archive))
    report = json.dumps(as_document(result.tallies), indent=2) if as_json else as_text(result.tallies)
    typer.echo(report)
    raise typer.Exit(1 if result.failed(strict=strict) else 0)


async def _validate(connections: Connections, scope: Scope, open_for: timedelta, archive: bool) -> Validation:
    from flywheel.storage import postgres
    from flywheel.storage.days import days as known_days
    from flywheel.tools import store
    from flywheel.tools.findings import Limits
    from flywheel.tools.validation import Validation

    result = Validation(Limits(now=datetime.now(UTC), open_for=open_for))
    pool = await postgres.connect(connections.postgres, max_size=1)
    try:
        async for stored in store.trajectories(pool, scope):
            result.judge(stored)
        if left_out := await store.archived(pool, scope):
            typer.echo(f"{left_out:,} trajectories not looked at: retention has put events of theirs away", err=True)
        if archive:
            batches = await store.ready_batches(pool)
            result.add(
                "batches_verify", "Do the archived batches agree with their manifests, byte for byte?",
                "objects were changed or lost in the store: restore them; never train from such a batch",
                await asyncio.to_thread(_judge_archive, connections, batches),
            )  # fmt: skip
            if archived := [day for day in await known_days(pool) if day.manifest is not None]:
                result.add(
                    "days_verify", "Do the archived days of events agree with their manifests, byte for byte?",
                    "objects were changed or lost in the store: restore them",
                    await asyncio.to_thread(_judge_days, connections, archived),
                )  # fmt: skip
    finally:
        await pool.close()
    return result


def _judge_archive(connections: Connections, batches: list[BatchRow]) -> list[Finding]:
    from flywheel.storage.s3 import S3ObjectStore
    from flywheel.tools.archive import judge_batches

    return list(judge_batches(S3ObjectStore.from_settings(connections), batches))


def _judge_days(connections: Connections, archived: list[Day]) -> list[Finding]:
    from flywheel.storage.s3 import S3ObjectStore
    from flywheel.tools.archive import judge_days

    return list(judge_days(S3ObjectStore.from_settings(connections), archived))


def _last_hour() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def _progress(line: str) -> None:
    """Show one changing line on a terminal; say nothing to a file."""
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{line}", nl=False, err=True)
