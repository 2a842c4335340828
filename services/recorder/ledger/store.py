"""Storage of the ledger of reward entries.

The ledger is a function of the stored outcomes and the stored steps. Whoever adds to either brings it in line: the
events' transaction for the trajectories that it touches, the application of an outcome for those that it judges.
Neither misses what the other writes: events are stored under the shared form of a lock, outcomes under its exclusive
form, so that of the two the later sees the earlier.

An outcome that a newer release stored may be one that we cannot read. What it concerns stays as it is, and is queued
to be brought in line by a recorder that can.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import from_json

from flywheel import metrics
from flywheel.exact import exact_sum
from flywheel.log import Seldom, get_logger
from flywheel.outcomes import About, Outcome
from services.recorder.ledger import statements as sql
from services.recorder.ledger.cache import OutcomeCache
from services.recorder.ledger.judging import EntryKey, Judgment

_log = get_logger(__name__)
_gone_seldom, _newer_seldom = Seldom(), Seldom()

_LOCK = 0x6F757463  # "outc"

#: Longest silence of who holds events up: a process that the network cut off, or that sleeps, is ended by the server.
_SILENCE_MS = 5000

#: Steps in memory at once. One may have the size of the largest event.
_PREFETCH = 50

#: Rules from which on a step is judged beside the event loop, so that this keeps answering.
_COSTLY = 500

#: The same outcomes are asked for again and again. Bytes.
_cache = OutcomeCache(16 * 1024 * 1024)

Row = Mapping[str, Any]
Entries = dict[EntryKey, float]
#: Scope and key of outcomes.
Judged = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a transaction changed in the ledger: the rows of trajectories as they are now, and numbers of entries."""

    rows: Sequence[Row] = ()
    written: int = 0
    removed: int = 0

    def count(self) -> None:
        """Count it, once it is committed."""
        metrics.OUTCOME_ENTRIES.labels("removed").inc(self.removed)
        metrics.OUTCOME_ENTRIES.labels("written").inc(self.written)


async def share(conn: Any) -> None:
    """Keep outcomes from being stored until the caller's transaction ends. To be called before it locks anything."""
    await conn.execute("SELECT pg_advisory_xact_lock_shared($1)", _LOCK)


async def exclude(conn: Any, patience_s: float) -> None:
    """Keep events from being stored until the caller's transaction ends. To be called before it locks anything.

    Raises LockNotAvailableError when it would have to wait longer: everybody who stores events waits behind us, and
    the one that we wait for may be a process that the network cut off in the middle of a batch.
    """
    await conn.execute(
        f"SET LOCAL lock_timeout = '{round(patience_s * 1000)}ms';"
        f" SET LOCAL idle_in_transaction_session_timeout = '{_SILENCE_MS}ms'"
    )
    await conn.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)


async def settle(conn: Any, rows: Sequence[Row]) -> Changes:
    """Bring the ledger in line for trajectories that the caller's transaction, under :func:`share`, has just written.

    Returns all their rows as they are now. One query where no outcome concerns any of them. ``rows`` need what
    :data:`services.recorder.ledger.statements.NEEDED` names.
    """
    changes = await bring_in_line(conn, rows, revise=False)
    changed = {row["trajectory_id"]: row for row in changes.rows}
    return replace(changes, rows=[changed.get(row["trajectory_id"], row) for row in rows])


async def readable(conn: Any, scope: str, key: str) -> int | None:
    """Return how many outcomes there are about a scenario or a window; None when this release cannot read one."""
    scenarios, windows = ([key], []) if scope == "scenario" else ([], [key])
    found, newer = await _outcomes(conn, scenarios, windows)
    return None if newer else len(found[scope, key])


async def bring_in_line(conn: Any, rows: Sequence[Row], *, revise: bool) -> Changes:
    """Make the ledger of these trajectories, locked by the caller, what the stored outcomes say; return the rows of
    those that changed, as an announcement has them. With ``revise`` a change is a revision of a closed trajectory.

    Steps that retention removed cannot be judged any more: their entries stay as they are, until their outcome is
    retracted. Trajectories that an outcome concerns which we cannot read stay as they are, and are queued again.
    """
    scenarios = {row["scenario_id"] for row in rows} - {None}
    outcomes, newer = await _outcomes(conn, list(scenarios), list({row["window_id"] for row in rows}))
    if newer:
        await conn.execute(sql.QUEUE_AGAIN, *zip(*sorted(newer), strict=True))
    judging: dict[str, list[Outcome]] = {}
    concerned: dict[str, Row] = {}
    for row in rows:
        scenario, window = ("scenario", row["scenario_id"]), ("window", row["window_id"])
        found = [*outcomes.get(scenario, ()), *outcomes.get(window, ())]
        if newer.isdisjoint((scenario, window)) and (found or row["outcome_count"]):
            concerned[row["trajectory_id"]] = row
            judging[row["trajectory_id"]] = found
    if not concerned:
        return Changes()
    judged = {name: Judgment(judging[name]) for name in concerned}
    shown: Counter[str] = Counter()
    async for step in conn.cursor(sql.STEPS, list(concerned), prefetch=_PREFETCH):
        judgment, action = judged[step["trajectory_id"]], from_json(step["body"]).get("action")
        if judgment.cost > _COSTLY:
            await asyncio.to_thread(judgment.show, step["step"], action)
        else:
            judgment.show(step["step"], action)
        shown[step["trajectory_id"]] += 1
    gone = {name for name, row in concerned.items() if shown[name] < row["steps"]}
    if gone and _gone_seldom.due():
        _log.warning("steps are no longer kept: corrections pass them by", number=len(gone), example=min(gone))
    ledger = await _entries(conn, list(concerned))
    wanted = {
        name: judgment.entries_beside(ledger[name]) if name in gone else judgment.entries()
        for name, judgment in judged.items()
    }
    return await _change(conn, {name: (ledger[name], entries) for name, entries in wanted.items()}, revise)


async def _outcomes(
    conn: Any, scenarios: Sequence[str], windows: Sequence[str]
) -> tuple[dict[Judged, list[Outcome]], set[Judged]]:
    """Return the outcomes about scenarios and windows, and which of these have one that we cannot read."""
    found: dict[Judged, list[Outcome]] = defaultdict(list)
    newer: set[Judged] = set()
    for row in await conn.fetch(sql.OUTCOMES, scenarios, windows):
        outcome = _cache.read(row["body"])
        if outcome is None:
            newer.add((row["scope"], row["key"]))
        else:
            found[row["scope"], row["key"]].append(outcome)
    if newer and _newer_seldom.due():
        scope, key = min(newer)
        _log.error(
            "outcomes of a newer release cannot be read: what they judge stays as it is until this one is upgraded",
            number=len(newer), scope=scope, key=key,
        )  # fmt: skip
    return found, newer


async def _entries(conn: Any, names: list[str]) -> dict[str, Entries]:
    found: dict[str, Entries] = defaultdict(dict)
    for name, step, *about, value in await conn.fetch(sql.ENTRIES, names):
        found[name][EntryKey(step, About(*about))] = value
    return found


async def _change(conn: Any, ledgers: Mapping[str, tuple[Entries, Entries]], revise: bool) -> Changes:
    """Bring ledgers, by trajectory, from what they are to what they should be. Touches nothing that is so already."""
    changed = {name: (have, want) for name, (have, want) in ledgers.items() if have != want}
    if not changed:
        return Changes()
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
    totals = [(name, str(exact_sum(want.values())), len(want)) for name, (_, want) in changed.items()]
    rows = await conn.fetch(sql.TOTALS, *zip(*totals, strict=True), revise)
    return Changes(rows, written=len(new), removed=len(gone))
