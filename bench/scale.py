"""`python -m bench.scale`: what grows with jobs, events, streams and apps, and what does not. Takes some minutes."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from pathlib import Path

from bench import scale_apps, scale_costs, scale_http, scale_streams
from bench.scale_figures import Found
from bench.scale_store import make
from bench.table import figure

SIZES = (1_000, 100_000, 1_000_000)
PARTS = ("store", "http", "streams", "apps")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.scale", description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=SIZES, help="how many jobs each store holds")
    parser.add_argument("--rounds", type=int, default=300, help="how often each thing is timed in each store")
    parser.add_argument("--streams", type=int, default=10_000, help="how many event streams are opened")
    parser.add_argument("--apps", type=int, default=200, help="how many apps are deployed, of five functions each")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part of it; may be given several times")
    parser.add_argument("--keep", type=Path, help="a folder for the stores, which are used again if they are there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apothic-scale-") as folder:
        _run(given, (given.keep or Path(folder)).resolve())


def _run(given: argparse.Namespace, folder: Path) -> None:
    chosen = given.only or PARTS
    dirs = {jobs: folder / f"jobs-{jobs}" for jobs in sorted(given.jobs)}
    for jobs, path in dirs.items():
        make(path, jobs)
    smallest = next(iter(dirs.values()))
    grown, other = Found(), Found()
    if "store" in chosen:
        sys.setswitchinterval(0.0002)  # as the server has it
        asyncio.run(scale_costs.measure(grown, dirs, given.rounds))
    if "http" in chosen:
        scale_http.measure(grown, dirs, given.rounds)
    for jobs, path in dirs.items():
        size = sum(file.stat().st_size for file in path.glob("apothic.db*"))
        grown.keep(f"bytes of database and log {jobs}", size)
    if "streams" in chosen:
        scale_streams.measure(other, smallest, given.streams)
    if "apps" in chosen:
        scale_apps.measure(other, smallest, given.apps)
    _report(grown, other, list(dirs))


def _report(grown: Found, other: Found, sizes: list[int]) -> None:
    print(
        f"\n| µs, medians | {' | '.join(f'{jobs:,} jobs' for jobs in sizes)} | growth |\n|---|{'---|' * len(sizes)}---|"
    )
    for name in dict.fromkeys(name.rsplit(" ", 1)[0] for name in grown):
        medians = [statistics.median(grown[f"{name} {jobs}"]) for jobs in sizes]
        cells = " | ".join(figure(median) for median in medians)
        print(f"| {name} | {cells} | {medians[-1] / medians[0]:.2f} |")
    print("\n| | |\n|---|---|")
    for name in other:
        print(f"| {name} | {figure(statistics.median(other[name]))} |")


if __name__ == "__main__":
    main()
