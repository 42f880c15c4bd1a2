"""Calls, jobs and the start, beside a bare HTTP round trip, a process pool and synced appends."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from bench import floors, ours
from bench.table import Found, Line, show, spread


def measure(found: Found, rounds: int, data_dir: Path) -> None:
    """Run every warm workload and its floor, round by round."""
    for number in range(rounds):
        print(f"calls, round {number + 1}", file=sys.stderr)
        _warm_calls(found)
        found.note("map", ours.map_rate(5000))
        found.note("pool map", floors.pool_map(5000))
        found.note("spawn", ours.spawn_rate(1000))
        found.note("spawn 32", ours.spawn_rate_of_threads(3000, 32))
        found.note("append", 1 / statistics.median(floors.synced_appends(500)))
        found.note("memory", ours.idle_memory_mib(data_dir))


def measure_start(found: Found, rounds: int) -> None:
    """Run what starts from nothing, and its floors, round by round; no server may be running."""
    for number in range(rounds):
        print(f"start, round {number + 1}", file=sys.stderr)
        found.note("first result", ours.first_result())
        found.note("pool first result", floors.pool_first_result())
        bare = statistics.median(floors.interpreter(10))
        found.note("bare interpreter", bare * 1000)
        found.note("import", (statistics.median(floors.interpreter(10, "import apothic")) - bare) * 1000)


def _warm_calls(found: Found) -> None:
    for name, taken in (
        ("remote", ours.remote_calls(1000)),
        ("http", floors.http_round_trips(1000)),
        ("pool call", floors.pool_calls(1000)),
    ):
        ordered = sorted(each * 1000 for each in taken)
        for percent in (50, 95, 99):
            found.note(f"{name} p{percent}", ordered[len(ordered) * percent // 100])


def report(found: Found) -> None:
    """Print the table."""
    lines = [
        Line(f"warm `remote` p{p}", "ms", f"remote p{p}", f"{what} p{p}", f"{key} p{p}")
        for p in (50, 95, 99)
        for key, what in (("http", "bare HTTP round trip"), ("pool call", "process pool call"))
    ]
    lines += [
        Line("`map` of 5,000 no-ops", "calls/s", "map", "process pool, no chunks", "pool map"),
        Line("`spawn` one by one", "jobs/s", "spawn", "synced appends of 4 KiB", "append"),
        Line("`spawn` from 32 threads", "jobs/s", "spawn 32", "synced appends of 4 KiB", "append"),
        Line("start of server to first result", "s", "first result", "process pool", "pool first result"),
        Line("`import apothic`", "ms", "import", "bare interpreter", "bare interpreter"),
    ]
    show("Calls", lines, found)
    print(f"\nIdle stack (server, agent, warm containers), PSS: {spread(found['memory'], 'MiB')}")
