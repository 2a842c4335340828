"""Postgres: the pool, the migrations, and which of its errors pass by themselves."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from flywheel.errors import FatalError, TransientError

#: A connection, whether it was borrowed from a pool or not.
Connection = asyncpg.Connection | PoolConnectionProxy

#: Serialises migrations; any number that nothing else in the database uses.
_MIGRATION_LOCK = 0x666C7977  # "flyw"

#: Longest wait for one statement and for a connection, in seconds: a silent network counts as down, not as slow.
_COMMAND_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 10.0
#: Longest time for one migration, and for the wait until another process has made its own: they rewrite tables and
#: make indexes, and one that is cut short begins again from nothing.
_MIGRATION_TIMEOUT_S = 24 * 3600.0

#: What every connection asks of the server. One whose client the network cut off still holds its locks, and everybody
#: waits for them: the server looks after 10 s, and gives it up within half a minute, not after the system's two hours.
_SERVER_SETTINGS = {
    "application_name": "flywheel", "jit": "off", "timezone": "UTC",
    "tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
}  # fmt: skip

_TRANSIENT = (
    TransientError,
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,         # 08, ConnectionDoesNotExistError among them
    asyncpg.OperatorInterventionError,       # 57: shutting down, starting up, cancelled
    asyncpg.InsufficientResourcesError,      # 53: disk full, too many connections
    asyncpg.TransactionRollbackError,        # 40: deadlock, serialisation
    asyncpg.LockNotAvailableError,           # 55P03
    asyncpg.PostgresSystemError,             # 58: an I/O error of the server
    asyncpg.ReadOnlySQLTransactionError,     # 25006: a failover is under way, this is the old primary
    asyncpg.IdleInTransactionSessionTimeoutError,  # 25P03: we were cut off, or asleep, in the middle of a transaction
)  # fmt: skip


def transient(error: BaseException) -> bool:
    """Return whether the same statement may succeed later without anybody changing it."""
    if isinstance(error, _TRANSIENT):
        return True
    if isinstance(error, asyncpg.InternalClientError):
        return True  # its protocol lost its place: the server said goodbye while we held the connection, idle
    # asyncpg says so when the connection or pool went away between two statements; it has no class of its own for that.
    # A pool takes back at once what the server ended while we held it.
    return type(error) is asyncpg.InterfaceError and any(words in str(error) for words in ("clos", "has been released"))


def data_error(error: BaseException) -> bool:
    """Return whether the database, or its driver, refused a value: some row of the batch is to blame."""
    if isinstance(error, asyncpg.InterfaceError):
        return isinstance(error, ValueError)  # the driver could not encode a value
    return isinstance(
        error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError | asyncpg.ProgramLimitExceededError
    )


async def connect(
    dsn: str, *, min_size: int = 1, max_size: int = 4, init: Callable[[Any], Awaitable[None]] | None = None,
    idle_in_transaction_s: float | None = None,
) -> asyncpg.Pool:  # fmt: skip
    """Return a pool for ``dsn`` (a connection URL); ``init`` prepares each connection once. A connection that sends
    nothing for ``idle_in_transaction_s`` within a transaction (None: however long) is ended by the server.

    Raises TransientError while the server is away, FatalError when it refuses us, is not who it should be, or ``dsn``
    makes no sense.
    """
    limit = (
        {}
        if idle_in_transaction_s is None
        else {"idle_in_transaction_session_timeout": str(round(idle_in_transaction_s * 1000))}
    )
    try:
        return await asyncpg.create_pool(
            dsn,
            min_size=min_size,
            max_size=max_size,
            init=init,
            timeout=_CONNECT_TIMEOUT_S,
            command_timeout=_COMMAND_TIMEOUT_S,
            server_settings={**_SERVER_SETTINGS, **limit},
        )
    except Exception as error:
        if wrong := _wrong_url(error, dsn):
            raise FatalError(f"FLYWHEEL_POSTGRES: {wrong}") from error
        if transient(error):
            raise TransientError(f"Postgres is away: {error!r}") from error
        if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError):
            raise FatalError(f"Postgres refuses us: {error}") from error
        raise


def _wrong_url(error: Exception, dsn: str) -> str:
    """Return what only another connection URL mends, nothing where it may pass by itself."""
    if isinstance(error, asyncpg.ClientConfigurationError):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server shows a certificate that sslmode and sslrootcert do not let us trust: {error}"
    if isinstance(error, FileNotFoundError) and "sslrootcert=" in dsn:
        return f"the file of its sslrootcert cannot be read: {error}"
    return ""


async def migrate(pool: asyncpg.Pool) -> list[str]:
    """Apply what is new in ``migrations/``, in order, each in its own transaction; return the names applied now.

    Safe to call from several processes at once, which then wait for the one that is at it. Raises FatalError when a
    migration that was applied has been changed since, TransientError for one that was not done within a day.
    """
    applied_now: list[str] = []
    async with pool.acquire() as conn:
        await _patiently(conn, "the migrations of another process", "SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
        try:
            await conn.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations ("
                " name text PRIMARY KEY, digest text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
            )
            known = dict(await conn.fetch("SELECT name, digest FROM schema_migrations"))
            for name, sql in _migrations():
                digest = hashlib.sha256(sql.encode()).hexdigest()
                if name in known:
                    if known[name] != digest:
                        raise FatalError(f"migration {name} was changed after it was applied to this database")
                    continue
                async with conn.transaction():
                    await _patiently(conn, f"migration {name}", sql)
                    await conn.execute("INSERT INTO schema_migrations (name, digest) VALUES ($1, $2)", name, digest)
                applied_now.append(name)
        finally:
            await conn.execute("SELECT pg_advisory_unlock($1)", _MIGRATION_LOCK)
    return applied_now


async def _patiently(conn: Connection, what: str, sql: str, *args: object) -> None:
    """Execute ``sql`` without the haste of other statements. Raises TransientError, naming ``what``, in the end."""
    try:
        await conn.execute(sql, *args, timeout=_MIGRATION_TIMEOUT_S)
    except TimeoutError as error:
        raise TransientError(f"{what}: not done within {_MIGRATION_TIMEOUT_S:g} s") from error


def _migrations() -> Iterator[tuple[str, str]]:
    installed = Path(__file__).parent / "migrations"  # in a wheel
    folder = installed if installed.is_dir() else Path(__file__).parents[3] / "migrations"
    paths = sorted(folder.glob("[0-9]*.sql"))
    if not paths:
        raise FatalError(f"no migrations in {folder}")
    for path in paths:
        yield path.name, path.read_text(encoding="utf-8")
