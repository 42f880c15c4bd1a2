"""`python -m bench`: every workload beside its floors and peers, round by round, then medians, ranges and ratios."""

from __future__ import annotations

import argparse
import platform
import sqlite3
from importlib.metadata import version

import apothic
from bench import calls, ours, peers, services, streams
from bench.table import Found

SECTIONS = ("calls", "streams", "services")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each workload runs")
    parser.add_argument("--only", choices=SECTIONS, help="one part of it")
    parser.add_argument("--peers", default="ray", help=f"whom to measure beside us, of {', '.join(peers.KNOWN)}; or ''")
    given = parser.parse_args()
    chosen = SECTIONS if given.only is None else (given.only,)
    try:
        names = peers.chosen(given.peers) if chosen != ("calls",) else []
    except ValueError as error:
        parser.error(str(error))
    beside = peers.prepare(names)
    versions = "".join(f"{name} {peers.version(name)}, " for name in beside)
    print(
        f"apothic {apothic.__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"uvicorn {version('uvicorn')}, {versions}{platform.machine()}; {given.rounds} rounds. "
        "Ours is durable (synced before it is said); nothing beside it is, but where it says synced."
    )
    found = Found()
    with ours.server() as data_dir:  # one for all: a process's clients stay with the server that they have found
        if "calls" in chosen:
            calls.measure(found, given.rounds, data_dir)
        if "streams" in chosen:
            streams.measure(found, given.rounds, beside, data_dir)
        if "services" in chosen:
            services.measure(found, given.rounds, beside)
    if "calls" in chosen:
        calls.measure_start(found, given.rounds)
        calls.report(found)
    if "streams" in chosen:
        streams.report(found, names)
    if "services" in chosen:
        services.report(found, names)


if __name__ == "__main__":
    main()
