"""Days past their time: sealed, archived in the object store, verified, and only then dropped from the database.

Each step is recorded in ``event_days`` before the next one begins, and can be done again: whoever dies in between
leaves a day that the next cycle, or process, goes on with.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import asyncpg

from flywheel import archive, metrics, naming
from flywheel.archive import ArchivedEvent, DayManifest, DayWriter
from flywheel.canonical import sha256_bytes
from flywheel.days import today
from flywheel.errors import PoisonError, TransientError
from flywheel.health import Health
from flywheel.log import get_logger
from flywheel.retry import Stopped, retry_in_place
from flywheel.settings import ArchiverSettings
from flywheel.storage import days
from flywheel.storage.days import Day
from flywheel.storage.objects import ObjectStore
from flywheel.storage.postgres import Connection, transient
from flywheel.topics import EVENTS
from flywheel.waiting import first_of

_log = get_logger(__name__)

_TASK = 1
_BEAT = "days"
#: Longest silence, in seconds: a step on a whole large day.
_LONGEST_STEP_S = 3600.0

#: When a day that did not read back well is written again, in seconds.
_AGAIN_S = 60.0

#: A trajectory that changed within this time may be on its way to a batch, and its events may be replayed.
_SETTLED = timedelta(days=EVENTS.retention_days or 0)


def overdue(known: Sequence[Day], retention_days: int | None, now: date) -> list[Day]:
    """Return the days in the database that are past their time, oldest first."""
    if retention_days is None:
        return []
    # A day is as old as its youngest event.
    last = now - timedelta(days=retention_days + 1)
    return [day for day in known if day.day <= last and day.state != "dropped"]


class DayKeeper:
    """Brings days past their time to an end. One at a time works, however many archivers there are."""

    def __init__(self, pool: asyncpg.Pool, objects: ObjectStore, settings: ArchiverSettings, health: Health) -> None:
        self._pool = pool
        self._objects = objects
        self._settings = settings
        self._health = health
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Look for such days every ``retention_check_s`` until ``stop``. Outages are waited out."""
        self._stop = stop
        try:
            while not stop.is_set():
                await retry_in_place(self.cycle, transient=transient, health=self._health, check="days", stop=stop)
                self._health.beat(_BEAT, within_s=_LONGEST_STEP_S + self._settings.retention_check_s)
                await first_of(stop, timeout=self._settings.retention_check_s)
        except Stopped:
            _log.info("stopped; what was begun is completed at the next start")
        finally:
            self._health.retire(_BEAT)

    async def cycle(self) -> None:
        """Go on with every day past its time, oldest first. Raises TransientError, Stopped."""
        async with days.only_keeper(self._pool, _TASK) as conn:
            if conn is not None:
                for day in overdue(await days.days(conn), self._settings.retention_days, today()):
                    self._health.beat(_BEAT, within_s=_LONGEST_STEP_S)
                    await self._advance(conn, day)
        self._show(await days.days(self._pool))

    async def _advance(self, conn: Connection, day: Day) -> None:
        try:
            if day.state == "open" and not await self._seal(conn, day.day):
                return
            if day.state != "archived" or not await asyncio.to_thread(self._still_there, day):
                await self._archive(conn, day.day)
            (day,) = [found for found in await days.days(conn) if found.day == day.day]
            await days.drop(conn, day)
            _log.info("day dropped", day=str(day.day), events=day.rows, strays=day.strays)
        except asyncpg.LockNotAvailableError:
            _log.info("somebody reads the day for long; later", day=str(day.day), state=day.state)

    async def _seal(self, conn: Connection, day: date) -> bool:
        changed_since = datetime.now(UTC) - _SETTLED
        kept = await days.why_kept(conn, day, changed_since)  # first without a lock: it may be so for long
        kept = kept or await days.seal(conn, day, changed_since)
        if kept:
            await days.note(conn, day, kept)
            _log.info("day past its time is still needed", day=str(day), why=kept)
        return kept is None

    async def _archive(self, conn: Connection, day: date) -> None:
        started = time.monotonic()
        rows, strays = await days.count(conn, day)
        manifest, sha256 = await self._found_whole(day, rows) or await self._written(conn, day, rows)
        await days.archived(
            conn, day, rows=rows, size=manifest.bytes, strays=strays, manifest=naming.day_manifest(day),
            manifest_sha256=sha256,
        )  # fmt: skip
        metrics.DAY_SECONDS.observe(time.monotonic() - started)
        metrics.DAY_EVENTS.inc(rows)
        metrics.DAY_BYTES.inc(manifest.bytes)
        _log.info("day archived", day=str(day), events=rows, bytes=manifest.bytes, files=len(manifest.files))

    async def _written(self, conn: Connection, day: date, rows: int) -> tuple[DayManifest, str]:
        """Write the archive and read it back."""
        manifest, sha256 = await self._write(conn, day)
        try:
            kept = await self._verify(day, sha256)
        except PoisonError as error:  # a store that does not keep what it was given holds up retention, nothing else
            raise TransientError(f"{day} reads back damaged: {error}", retry_after=_AGAIN_S) from error
        if kept != rows:
            raise TransientError(f"{day}: {rows} events recorded, {kept} read back", retry_after=_AGAIN_S)
        return manifest, sha256

    async def _verify(self, day: date, sha256: str) -> int:
        """Read the whole archive; return how many events it holds. Raises as ``read_day``, and Stopped."""
        parts = archive.verify_parts(self._objects, day, sha256)
        kept = 0
        while (events := await asyncio.to_thread(next, parts, None)) is not None:
            kept += events
            self._health.beat(_BEAT, within_s=_LONGEST_STEP_S)
            if self._stop.is_set():
                parts.close()
                raise Stopped("a day is half read")
        return kept

    async def _write(self, conn: Connection, day: date) -> tuple[DayManifest, str]:
        with DayWriter(self._objects, day) as writer:
            async for events in days.events(conn, day):
                self._health.beat(_BEAT, within_s=_LONGEST_STEP_S)
                if self._stop.is_set():
                    raise Stopped("a day is half written")
                await asyncio.to_thread(_add, writer, events)
            return await asyncio.to_thread(writer.finish)

    async def _found_whole(self, day: date, rows: int) -> tuple[DayManifest, str] | None:
        """Return the archive of an earlier try that died after it was written, read whole, or None where it has to be
        written.
        """

        def look() -> tuple[DayManifest, str] | None:
            key = naming.day_manifest(day)
            if not self._objects.exists(key):
                return None
            sha256 = sha256_bytes(self._objects.get(key))
            return archive.read_day_manifest(self._objects, day, sha256), sha256

        try:
            found = await asyncio.to_thread(look)
            return found if found and await self._verify(day, found[1]) == rows else None
        except PoisonError as error:
            _log.warning("an earlier try left a damaged archive: written anew", day=str(day), error=str(error))
            return None

    def _still_there(self, day: Day) -> bool:
        """Whether the archive that was verified before is there, by names and sizes; for the moment before a drop."""
        assert day.manifest_sha256 is not None  # a constraint of the table
        try:
            manifest = archive.read_day_manifest(self._objects, day.day, day.manifest_sha256)
        except PoisonError as error:
            _log.error("an archived day is damaged: written anew", day=str(day.day), error=str(error))
            return False
        sizes = {info.key: info.size for info in self._objects.list(naming.day_prefix(day.day))}
        return all(sizes.get(file.key) == file.bytes for file in manifest.files)

    def _show(self, known: Sequence[Day]) -> None:
        counts = Counter(day.state for day in known)
        for state in ("open", "sealed", "archived", "dropped"):
            metrics.EVENT_DAYS.labels(state).set(counts[state])
        oldest = min((day.day for day in known if day.state != "dropped"), default=today())
        metrics.OLDEST_DAY.set(max(0, (today() - oldest).days))
        metrics.OVERDUE_DAYS.set(len(overdue(known, self._settings.retention_days, today())))


def _add(writer: DayWriter, events: Sequence[ArchivedEvent]) -> None:
    for event in events:
        writer.add(event)
