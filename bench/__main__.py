"""`python -m bench [--rounds N]`: every workload and its floor, round by round, then medians, ranges and ratios."""

from __future__ import annotations

import argparse
import platform
import sqlite3
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import apothic
from bench import floors, ours


@dataclass(frozen=True)
class Line:
    """A line of the table: ours beside a floor. `better` says which way is good."""

    name: str
    unit: str
    ours: list[float]
    floor_name: str
    floor: list[float]

    def text(self) -> str:
        """Return the line of a Markdown table: medians, ranges, and the ratio of the medians."""
        mine, bare = statistics.median(self.ours), statistics.median(self.floor)
        return (
            f"| {self.name} | {_figure(mine)} ({_figure(min(self.ours))}–{_figure(max(self.ours))}) {self.unit} "
            f"| {self.floor_name} | {_figure(bare)} {self.unit} | {mine / bare:.2f} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(
        f"apothic {apothic.__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{platform.machine()}; {rounds} rounds; ours is durable (synced before it is said), the floors are not"
    )
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)
        print(f"  {name}: {_figure(value)}", file=sys.stderr)

    with ours.server() as data_dir:
        for number in range(rounds):
            print(f"round {number + 1}", file=sys.stderr)
            _warm_calls(note)
            note("map", ours.map_rate(5000))
            note("pool map", floors.pool_map(5000))
            note("spawn", ours.spawn_rate(1000))
            note("spawn 32", ours.spawn_rate_of_threads(3000, 32))
            note("append", 1 / statistics.median(floors.synced_appends(500)))
            note("memory", ours.idle_memory_mib(data_dir))
    for number in range(rounds):
        print(f"cold round {number + 1}", file=sys.stderr)
        note("first result", ours.first_result())
        note("pool first result", floors.pool_first_result())
        bare = statistics.median(floors.interpreter(10))
        note("bare interpreter", bare * 1000)
        note("import", (statistics.median(floors.interpreter(10, "import apothic")) - bare) * 1000)
    _print(found)


def _warm_calls(note: Callable[[str, float], None]) -> None:
    for name, taken in (
        ("remote", ours.remote_calls(1000)),
        ("http", floors.http_round_trips(1000)),
        ("pool call", floors.pool_calls(1000)),
    ):
        ordered = sorted(each * 1000 for each in taken)
        for percent in (50, 95, 99):
            note(f"{name} p{percent}", ordered[len(ordered) * percent // 100])


def _print(found: dict[str, list[float]]) -> None:
    lines = [
        Line(f"warm `remote` p{p}", "ms", found[f"remote p{p}"], f"{what} p{p}", found[f"{key} p{p}"])
        for p in (50, 95, 99)
        for key, what in (("http", "bare HTTP round trip"), ("pool call", "process pool call"))
    ]
    lines += [
        Line("`map` of 5,000 no-ops", "calls/s", found["map"], "process pool, no chunks", found["pool map"]),
        Line("`spawn` one by one", "jobs/s", found["spawn"], "synced appends of 4 KiB", found["append"]),
        Line("`spawn` from 32 threads", "jobs/s", found["spawn 32"], "synced appends of 4 KiB", found["append"]),
        Line("start of server to first result", "s", found["first result"], "process pool", found["pool first result"]),
        Line("`import apothic`", "ms", found["import"], "bare interpreter", found["bare interpreter"]),
    ]
    print("\n| Workload | Median (range) | Floor in the same run | Median | Ratio |\n|---|---|---|---|---|")
    for line in lines:
        print(line.text())
    memory = found["memory"]
    print(f"\nIdle stack (server, agent, warm containers), PSS: {statistics.median(memory):.0f} MiB")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    main()
