"""The table of checks: printed as it grows, and written down as JSON."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec

from deploy.local.parts import Say, StackError
from tests.cluster.kubectl import KubectlError

P = ParamSpec("P")

#: What a row of the table keeps of a reason; the report has all of it.
_WIDTH = 150


@dataclass(frozen=True, slots=True)
class Result:
    """One check: of which part, what should hold, whether it did, what was seen or why not."""

    part: str
    title: str
    ok: bool
    seen: str
    seconds: float


class Report:
    """Asks the questions of a run one after the other. A failed one does not keep the next from being asked."""

    def __init__(self, say: Say, alive: Callable[[], None]) -> None:
        self._say = say
        self._alive = alive
        self._started = time.monotonic()
        self.results: list[Result] = []

    @property
    def failed(self) -> list[Result]:
        """The checks that did not hold."""
        return [result for result in self.results if not result.ok]

    @property
    def ok(self) -> bool:
        """Whether something was checked, and all of it held."""
        return bool(self.results) and not self.failed

    def check(self, part: str, title: str, question: Callable[P, str], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Ask a question whether something holds, say the answer, and return it.

        The question returns what it saw, and raises AssertionError or KubectlError with the reason where it does not
        hold; what else it raises is an error of its own, reported with where it happened. Raises StackError when the
        control plane is gone.
        """
        begun = time.monotonic()
        try:
            ok, seen = True, question(*args, **kwargs)
        except (AssertionError, KubectlError) as error:
            ok, seen = False, str(error) or "no reason given"
        except StackError:
            raise
        except Exception as error:
            ok, seen = False, "".join(traceback.format_exception(error))
        result = Result(part, title, ok, seen, round(time.monotonic() - begun, 2))
        self.results.append(result)
        self._say(row(result))
        if not ok:
            self._alive()
        return ok

    def written(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return the report as it is written down, ``about`` first."""
        return {
            "ok": self.ok,
            **about,
            "seconds": round(time.monotonic() - self._started, 1),
            "checks": len(self.results),
            "failed": [f"{result.part}: {result.title}" for result in self.failed],
            "results": [asdict(result) for result in self.results],
        }


def row(result: Result) -> str:
    """Return a check as a line of the table; why one failed stands below it."""
    verdict = "PASS" if result.ok else "FAIL"
    line = f"{verdict}  {result.part:<10} {result.title:<72} {result.seconds:>6.1f} s"
    lines = result.seen.strip().splitlines() or [""]
    seen = " ".join(result.seen.split()) if result.ok else lines[-1 if lines[0].startswith("Traceback") else 0]
    return f"{line}\n      {'':<10} {seen[:_WIDTH]}" if seen else line


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, in whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
