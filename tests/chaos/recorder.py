"""A storm over the recorder: ``make chaos``, or ``python -m tests.chaos.recorder --help``.

Producers send events with repeats, disorder, late ones, conflicts and poison; meanwhile recorders are killed and
scaled, Kafka and Postgres restarted, the network between them cut and slowed. Then the books are held against each
other: status 0 only if nothing was lost, nothing stored or counted twice, and exactly what was poison is dead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

from tests.chaos.storm import Options, Outcome, storm
from tests.chaos.view import View

#: What a shell reports for a process ended by Ctrl-C.
INTERRUPTED = 130


def options() -> tuple[Options, Path]:
    """Return what the command line asks for: the storm, and where its result goes."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.recorder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    full = Options()
    parser.add_argument("--seed", type=int, default=full.seed, help="the same seed sends the same events (%(default)s)")
    parser.add_argument("--events", type=int, help=f"distinct good events ({full.events:,}; short {SHORT.events:,})")
    parser.add_argument("--kills", type=int, help=f"recorders killed ({full.kills}; short {SHORT.kills})")
    parser.add_argument("--producers", type=int, default=full.producers, help="producer processes (%(default)s)")
    parser.add_argument("--short", action="store_true", help="a few minutes' worth of everything, for CI")
    parser.add_argument("--var", type=Path, default=Path("var/chaos"), help="folder of the run and its result")
    parser.add_argument("--keep", action="store_true", help="keep the stack's data and logs when all is well")
    told = parser.parse_args()
    base = SHORT if told.short else full
    chosen = replace(
        base, seed=told.seed, producers=told.producers, keep=told.keep, var=told.var.resolve(),
        events=told.events or base.events, kills=base.kills if told.kills is None else told.kills,
    )  # fmt: skip
    return chosen, chosen.var / "recorder.json"


SHORT = Options(events=20_000, kills=6, servers=4, networks=2, scales=(2, 1))


def report(outcome: Outcome, chosen: Options) -> dict[str, object]:
    """Return the result as it is written down."""
    verdict = outcome.verdict
    return {
        "ok": outcome.ok,
        "sent": verdict.sent,
        "recorded": verdict.recorded,
        "dead": sum(verdict.dead.values()),
        "lost": verdict.lost,
        "twice": verdict.twice,
        "kills": sum(outcome.kills.values()),
        "restarts": sum(outcome.restarts.values()),
        "seconds": round(outcome.seconds, 1),
        "trajectories": verdict.trajectories,
        "messages": outcome.messages,
        "outcomes": outcome.outcomes,
        "traffic": outcome.traffic,
        "dead_by_reason": dict(verdict.dead),
        "injected_by_reason": dict(verdict.injected),
        "dead_again": verdict.dead_again,
        "announced": verdict.announced,
        "kills_by_signal": outcome.kills,
        "restarts_by_server": dict(outcome.restarts),
        "network_faults": outcome.faults,
        "scaled_to": list(chosen.scales),
        "drained": outcome.drained,
        "crashes": outcome.crashes,
        "unclean_stops": outcome.unclean,
        "sent_again": outcome.sent_again,
        "wrong": verdict.examples(),
        "seed": chosen.seed,
        "config": {**asdict(chosen), "var": str(chosen.var)},
    }


async def run(chosen: Options, view: View) -> Outcome | None:
    """Run the storm; Ctrl-C ends it, and everything it started: None."""
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(storm(chosen, view))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, running.cancel)
    try:
        return await running
    except asyncio.CancelledError:
        return None


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    chosen, result = options()
    with View() as view:
        outcome = asyncio.run(run(chosen, view))
    if outcome is None:
        view.say("interrupted; everything is stopped")
        return INTERRUPTED
    found = report(outcome, chosen)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    view.conclude(found, result)
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
