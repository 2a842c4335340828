"""Storage of the ledger of reward entries.

The ledger is a function of the stored outcomes and the stored steps. Whoever adds to either brings it in line: the
events' transaction for the trajectories that it touches, the application of an outcome for those that it judges.
Neither misses what the other writes: events are stored under the shared form of a lock, outcomes under its exclusive
form, so that of the two the later sees the earlier.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic_core import from_json

from flywheel import metrics
from flywheel.exact import exact_sum
from flywheel.log import get_logger
from flywheel.outcomes import About, Outcome
from services.recorder.ledger import statements as sql
from services.recorder.ledger.judging import EntryKey, Judgment

_log = get_logger(__name__)

_LOCK = 0x6F757463  # "outc"

#: Longest wait for batches of events that are being stored.
_PATIENCE_MS = 2000

#: Longest silence of who holds events up: a process that the network cut off, or that sleeps, is ended by the server.
_SILENCE_MS = 5000

#: Steps in memory at once. One may have the size of the largest event.
_PREFETCH = 50

Row = Mapping[str, Any]
Entries = dict[EntryKey, float]


async def share(conn: Any) -> None:
    """Keep outcomes from being stored until the caller's transaction ends. To be called before it locks anything."""
    await conn.execute("SELECT pg_advisory_xact_lock_shared($1)", _LOCK)


async def exclude(conn: Any) -> None:
    """Keep events from being stored until the caller's transaction ends. To be called before it locks anything.

    Raises a transient error when it would have to wait for long: everybody who stores events waits behind us, and the
    one that we wait for may be a process that the network cut off in the middle of a batch.
    """
    await conn.execute(
        f"SET LOCAL lock_timeout = '{_PATIENCE_MS}ms'; SET LOCAL idle_in_transaction_session_timeout = '{_SILENCE_MS}ms'"
    )
    await conn.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)


async def settle(conn: Any, rows: Sequence[Row]) -> list[Row]:
    """Bring the ledger in line for trajectories that the caller's transaction, under :func:`share`, has just written.

    Returns their rows as they are now. One query where no outcome concerns any of them. ``rows`` need what
    :data:`services.recorder.ledger.statements.NEEDED` names.
    """
    changed = {row["trajectory_id"]: row for row in await bring_in_line(conn, rows, revise=False)}
    return [changed.get(row["trajectory_id"], row) for row in rows]


async def bring_in_line(conn: Any, rows: Sequence[Row], *, revise: bool) -> list[Row]:
    """Make the ledger of these trajectories, locked by the caller, what the stored outcomes say; return the rows of
    those that changed, as an announcement has them. With ``revise`` a change is a revision of a closed trajectory.

    Steps that retention removed cannot be judged any more: the entries of such a trajectory stay as they are.
    """
    outcomes = await _outcomes(conn, rows)
    judging = {
        row["trajectory_id"]: [*outcomes["scenario", row["scenario_id"]], *outcomes["window", row["window_id"]]]
        for row in rows
    }
    concerned = {row["trajectory_id"]: row for row in rows if row["outcome_count"] or judging[row["trajectory_id"]]}
    if not concerned:
        return []
    judged = {name: Judgment(judging[name]) for name in concerned}
    shown: Counter[str] = Counter()
    async for step in conn.cursor(sql.STEPS, list(concerned), prefetch=_PREFETCH):
        judged[step["trajectory_id"]].show(step["step"], from_json(step["body"]).get("action"))
        shown[step["trajectory_id"]] += 1
    if gone := [name for name, row in concerned.items() if shown[name] < row["steps"]]:
        _log.warning("steps are no longer kept: their rewards stay as they are", number=len(gone), first=gone[0])
    ledger = await _entries(conn, list(concerned))
    wanted = {name: judgment.entries() for name, judgment in judged.items() if name not in gone}
    return await _change(conn, {name: (ledger[name], entries) for name, entries in wanted.items()}, revise)


async def _outcomes(conn: Any, rows: Sequence[Row]) -> dict[tuple[str, str], list[Outcome]]:
    scenarios = {row["scenario_id"] for row in rows} - {None}
    found: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for row in await conn.fetch(sql.OUTCOMES, list(scenarios), list({row["window_id"] for row in rows})):
        found[row["scope"], row["key"]].append(_parse(row["body"]))
    return found


#: One that is stored was parsed before, and the same ones are asked for again and again.
_parse = lru_cache(maxsize=1024)(Outcome.parse)


async def _entries(conn: Any, names: list[str]) -> dict[str, Entries]:
    found: dict[str, Entries] = defaultdict(dict)
    for name, step, *about, value in await conn.fetch(sql.ENTRIES, names):
        found[name][EntryKey(step, About(*about))] = value
    return found


async def _change(conn: Any, ledgers: Mapping[str, tuple[Entries, Entries]], revise: bool) -> list[Row]:
    """Bring ledgers, by trajectory, from what they are to what they should be. Touches nothing that is so already."""
    changed = {name: (have, want) for name, (have, want) in ledgers.items() if have != want}
    if not changed:
        return []
    gone = [(name, key.step, *key.about) for name, (have, want) in changed.items() for key in have.keys() - want.keys()]
    new = [
        (name, key.step, *key.about, value)
        for name, (have, want) in changed.items()
        for key, value in want.items()
        if have.get(key) != value
    ]
    if gone:
        await conn.execute(sql.REMOVE, *zip(*gone, strict=True))
    if new:
        await conn.execute(sql.WRITE, *zip(*new, strict=True))
    metrics.OUTCOME_ENTRIES.labels("removed").inc(len(gone))
    metrics.OUTCOME_ENTRIES.labels("written").inc(len(new))
    totals = [(name, str(exact_sum(want.values())), len(want)) for name, (_, want) in changed.items()]
    return await conn.fetch(sql.TOTALS, *zip(*totals, strict=True), revise)
