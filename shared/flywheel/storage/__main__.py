"""Applies the migrations that the database does not have yet, then ends: ``python -m flywheel.storage``."""

from __future__ import annotations

import asyncio
import sys

from flywheel.errors import EXIT_FATAL, FlywheelError
from flywheel.settings import Connections
from flywheel.storage import postgres


async def run(dsn: str) -> int:
    """Apply what is new and say what it was; return the exit status: 0, or EXIT_FATAL with the reason on stderr."""
    try:
        pool = await postgres.connect(dsn)
        try:
            applied = await postgres.migrate(pool)
        finally:
            pool.terminate()
    except FlywheelError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FATAL
    except TimeoutError:  # says nothing itself
        sys.stderr.write("Postgres did not answer in time\n")
        return EXIT_FATAL
    sys.stdout.write("".join(f"applied {name}\n" for name in applied) or "nothing to apply\n")
    return 0


def main() -> int:
    """Read the settings, run, and return the exit status."""
    return asyncio.run(run(Connections.load().postgres))


if __name__ == "__main__":
    sys.exit(main())
