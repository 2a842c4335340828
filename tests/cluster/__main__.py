"""``deploy/k8s`` on a real Kubernetes API server: ``make cluster-test``, or ``python -m tests.cluster --help``.

Real: etcd, API server with its admission, controller manager, scheduler, and the definitions of Strimzi, CloudNativePG
and its Barman plugin, KEDA and the Prometheus operator. Played: nodes and the readiness of pods, by kwok; the secrets,
pods and scaling that operators make of their resources, by this program. So no image is pulled, no probe is asked, no
network policy is enforced.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from deploy.local.fetching import default_cache
from deploy.local.parts import StackError
from tests.cluster.plane import ControlPlane
from tests.cluster.programs import KUBERNETES, KWOK, find_programs, version
from tests.cluster.report import Report, write
from tests.cluster.scenario import scenario
from tests.cluster.world import World
from tests.manifests.tools import find_definitions

#: What a shell reports for a process ended by Ctrl-C.
INTERRUPTED = 130
#: Of a reason, so much is printed; the API server may answer with a whole pod.
_LONG = 1500


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201


def options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--var",
        type=Path,
        default=Path("var/cluster"),
        help="folder of the report and, while it runs, of the cluster (%(default)s)",
    )
    parser.add_argument(
        "--build", action="store_true", help="build and fetch what is missing into the cache, and do no more"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave the cluster up after the checks, until Ctrl-C, and its folder afterwards",
    )
    return parser.parse_args()


def run(told: argparse.Namespace) -> int:
    """Build what is missing, start the cluster, ask everything, write the report; return the exit status."""
    begun = time.monotonic()
    programs = find_programs(os.environ, say)
    definitions = find_definitions(os.environ, say)
    built = round(time.monotonic() - begun, 1)
    if told.build:
        say(f"in the cache: {default_cache(os.environ)}")
        return 0
    var: Path = told.var.resolve()
    var.mkdir(parents=True, exist_ok=True)
    (var / "report.json").unlink(missing_ok=True)  # of another run
    folder = Path(tempfile.mkdtemp(dir=var, prefix="run-"))
    kept = True
    try:
        with ControlPlane(programs, folder) as plane:
            say(f"cluster: Kubernetes {version(KUBERNETES)} at {plane.address}, nodes by kwok {version(KWOK)}")
            report = Report(say, plane.check)
            work = folder / "overlays"
            work.mkdir()
            scenario(World(plane.kubectl, work), report, programs, definitions)
            written = report.written(_about(built))
            write(var / "report.json", written)
            kept = told.keep or not report.ok
            _conclude(report, written, var / "report.json")
            if told.keep:
                _stay(plane)
    except KeyboardInterrupt:
        kept = told.keep
        raise
    finally:
        if kept:
            say(f"cluster: logs and all else of this run are in {folder}")
        else:
            shutil.rmtree(folder)
    return 0 if report.ok else 1


def _about(built: float) -> dict[str, Any]:
    return {"kubernetes": version(KUBERNETES), "kwok": version(KWOK), "build_seconds": built}


def _conclude(report: Report, written: dict[str, Any], path: Path) -> None:
    held = len(report.results) - len(report.failed)
    say(f"\ncluster: {held} of {len(report.results)} checks hold, {written['seconds']:.0f} s; {path}")
    for result in report.failed:
        say(f"\n{result.part}: {result.title}\n{result.seen[:_LONG]}")


def _stay(plane: ControlPlane) -> None:
    say(f"cluster: it stays until Ctrl-C: export KUBECONFIG={plane.kubeconfig}")
    with suppress(KeyboardInterrupt):
        while True:
            plane.check()
            time.sleep(1.0)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    told = options()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        return run(told)
    except KeyboardInterrupt:
        say("cluster: interrupted; everything is stopped")
        return INTERRUPTED
    except StackError as error:
        say(f"cluster: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
