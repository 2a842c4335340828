"""Runs the ``flywheel`` command.

Exit status: 0 done, 1 failed or unhealthy (the reason is the last line on stderr), 2 wrong usage or a setting that does
not fit (the line names the variable). Heavy imports stay inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from flywheel.errors import FlywheelError

if TYPE_CHECKING:
    from pydantic import ValidationError

USAGE = 2


def main() -> None:
    """Run the command line and end the process with its exit status."""
    try:
        from flywheel.cli.app import build
    except ModuleNotFoundError as error:
        _end(f'flywheel: the command line is not installed ({error}): pip install "flywheel[local]"', 1)
    try:
        build()()
    except FlywheelError as error:
        _end(f"flywheel: {error}", 1)
    except ModuleNotFoundError as error:
        _end(f'flywheel: this command needs more than is installed here ({error}): pip install "flywheel[local]"', 1)
    except Exception as error:
        from pydantic import ValidationError

        if not isinstance(error, ValidationError):
            raise
        _end(f"flywheel: {describe(error)}", USAGE)


def describe(error: ValidationError) -> str:
    """Return one line that names each setting that does not fit, by its environment variable where there is one."""
    from flywheel import misfits
    from flywheel.sections import SECTIONS

    prefixes = {section.__name__: section.model_config.get("env_prefix", "") for section in SECTIONS}
    return misfits.describe(error, prefixes.get(error.title))


def _end(line: str, status: int) -> NoReturn:
    sys.stderr.write(line + "\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
