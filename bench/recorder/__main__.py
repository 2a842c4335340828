"""``python -m bench.recorder`` (``make bench``): one table, and ``var/bench/recorder.json``.

Everything in one run, on the same data, because machines differ and are noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.recorder import latency, memory, throughput
from bench.recorder.world import fresh_world
from deploy.local.stack import LocalStack
from flywheel.log import configure
from tests.support.collector import Collector
from tests.support.processes import ROOT

_FIGURES = ROOT / "var" / "bench" / "recorder.json"
_OPEN = (1_000, 100_000)


async def main(arguments: argparse.Namespace) -> int:
    """Measure what was asked for and write it down. Returns the exit status."""
    console = Console(stderr=True)
    var = ROOT / "var" / "bench" / f"run-{os.getpid()}"
    stack = LocalStack(var=var, services=False)
    figures: dict[str, object] = {}

    def note(**more: object) -> None:
        figures.update(more)
        for name, value in more.items():
            console.print(f"  {name} = {value}", highlight=False)

    began = time.monotonic()
    tracing = AsyncExitStack()
    try:
        await stack.start(on_progress=lambda line: console.print(line, style="dim", highlight=False))
        logs, env, traced = Path(stack.env["FLYWHEEL_VAR"]), dict(stack.env), arguments.traced or 0.0
        if arguments.traced is not None:
            collector = await tracing.enter_async_context(Collector(keep=False))
            env |= {
                "FLYWHEEL_OTEL": "on", "FLYWHEEL_OTEL_RATIO": str(traced), "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            }  # fmt: skip
        only = set(arguments.only or ("limit", "one", "two", "faust", "latency", "memory"))
        if "limit" in only:
            async with fresh_world(stack.env, logs) as world:
                rate = await throughput.copy_limit(world, arguments.events)
                note(copy_limit_rows_per_s=round(rate.per_s), copy_limit_cpu_us=round(rate.cpu_us, 1))
        for name, key, processes in (("one", "recorder", 1), ("two", "recorder_two_processes", 2)):
            if name in only:
                async with fresh_world(env, logs, traced) as world:
                    rate = await throughput.recorder(world, arguments.events, processes)
                    note(**{f"{key}_events_per_s": round(rate.per_s), f"{key}_cpu_us": round(rate.cpu_us, 1)})
        if "faust" in only:
            async with fresh_world(stack.env, logs) as world:
                rate = await throughput.faust_pipeline(world, max(arguments.events // 10, 5_000), logs)
                note(faust_events_per_s=round(rate.per_s), faust_cpu_us=round(rate.cpu_us, 1))
        if "latency" in only:
            async with fresh_world(stack.env, logs) as world:
                note(queryable_ms=await latency.queryable_ms(world, arguments.rate, arguments.seconds))
        if "memory" in only:
            async with fresh_world(stack.env, logs) as world:
                few, many = await memory.resident(world, _OPEN)
                note(rss_mb_1k_open=few, rss_mb_100k_open=many)
    finally:
        await tracing.aclose()
        await stack.stop()
        if not arguments.keep:
            shutil.rmtree(var, ignore_errors=True)
    _FIGURES.parent.mkdir(parents=True, exist_ok=True)
    _FIGURES.write_text(json.dumps({"events": arguments.events, "cores": os.cpu_count(), **figures}, indent=2) + "\n")
    Console().print(_table(figures, arguments))
    console.print(f"{_FIGURES.relative_to(ROOT)}, {time.monotonic() - began:.0f} s", style="dim")
    return 0


def _table(figures: dict[str, object], arguments: argparse.Namespace) -> Table:
    names = ("copy_limit_rows_per_s", "recorder_events_per_s", "faust_events_per_s")
    limit, one, faust = (figures.get(name) for name in names)
    title = f"recorder, {arguments.events:,} events of 0.9 to 2 KB, 20 a trajectory"
    table = Table("what", "measured", "aim", title=title)

    def row(what: str, key: str, unit: str, aim: str = "") -> None:
        if key in figures:
            value = figures[key]
            table.add_row(what, f"{value:,} {unit}" if isinstance(value, int | float) else str(value), aim)

    row("plain COPY of decoded rows: the limit", "copy_limit_rows_per_s", "rows/s")
    row("recorder, Kafka → durable rows, one process", "recorder_events_per_s", "events/s")
    if isinstance(one, int) and isinstance(limit, int):
        table.add_row("  of the limit", f"{one / limit:.2f}", "≥ 0.6")
    if isinstance(one, int) and isinstance(faust, int):
        table.add_row("  of Faust's", f"{one / faust:.1f} ×", "≥ 4 ×")
    row("  our processor time an event", "recorder_cpu_us", "µs")
    row("recorder, two processes", "recorder_two_processes_events_per_s", "events/s")
    row("a straightforward Faust pipeline", "faust_events_per_s", "events/s")
    delay = figures.get("queryable_ms")
    if isinstance(delay, dict):
        words = ", ".join(f"{name} {value:g} ms" for name, value in delay.items())
        table.add_row(f"event → queryable at {arguments.rate:,}/s", words, "p95 < 250 ms")
    row("memory with 1,000 open trajectories", "rss_mb_1k_open", "MB")
    few, many = figures.get("rss_mb_1k_open"), figures.get("rss_mb_100k_open")
    if isinstance(few, float) and isinstance(many, float):
        table.add_row("memory with 100,000", f"{many:,} MB ({many - few:+.1f})", "< +50 MB")
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.recorder", description=__doc__)
    parser.add_argument("--events", type=int, default=150_000, help="events for throughput (%(default)s)")
    parser.add_argument("--rate", type=int, default=5_000, help="events/s for latency (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of the latency run (%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=("limit", "one", "two", "faust", "latency", "memory"), help="measure these alone"
    )
    parser.add_argument(
        "--traced", type=float, metavar="SHARE", help="trace this share of trajectories; without it, tracing is off"
    )
    parser.add_argument("--keep", action="store_true", help="keep the stack's folder, with the services' logs")
    return parser.parse_args()


if __name__ == "__main__":
    configure("warning")
    sys.exit(asyncio.run(main(_arguments())))
