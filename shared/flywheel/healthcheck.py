"""Asks a service how it is, for containers' health checks: ``python -m flywheel.healthcheck http://127.0.0.1:9101/readyz``.

Exit status 0 when the answer is 200; otherwise 1, and what the service says is wrong in one line. Imports the standard
library alone: it is run every few seconds.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

_TIMEOUT_S = 4.0


def ask(url: str) -> str | None:
    """Return None when ``GET url`` answers 200, else what came instead, in one line."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            return None if answer.status == 200 else f"{answer.status} {answer.reason}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {' '.join(error.read().decode('utf-8', 'replace').split())}"
    except (OSError, ValueError) as error:
        return str(error)


def main() -> int:
    """Ask the one address that is given; return the exit status."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m flywheel.healthcheck URL\n")
        return 2
    wrong = ask(sys.argv[1])
    if wrong is not None:
        sys.stdout.write(f"{sys.argv[1]}: {wrong}\n")
    return 0 if wrong is None else 1


if __name__ == "__main__":
    sys.exit(main())
