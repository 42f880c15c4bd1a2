"""`python -m bench`: every workload beside its floors and peers, round by round, then medians, ranges and ratios."""

from __future__ import annotations

import argparse
import compileall
import json
import platform
import sqlite3
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import apothic
from bench import calls, ours, peers, services, streams
from bench.table import Found

SECTIONS = ("calls", "streams", "services")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often all of it runs, one after the other")
    parser.add_argument("--only", choices=SECTIONS, help="one part of it")
    known = ",".join(peers.PACKAGES)
    parser.add_argument("--peers", default=known, help=f"whom to measure beside us, of {known}; or ''")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures of all rounds")
    given = parser.parse_args()
    chosen = SECTIONS if given.only is None else (given.only,)
    try:
        names = peers.chosen(given.peers)
    except ValueError as error:
        parser.error(str(error))
    # As pip does for what it installs; an editable install has what an earlier start has left, or nothing.
    compileall.compile_dir(Path(apothic.__file__).parent, quiet=1)
    beside = peers.prepare([name for name in names if any(peers.scripts(each, [name]) for each in chosen)])
    versions = "".join(f"{each}, " for each in peers.versions(beside))
    print(
        f"apothic {apothic.__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"uvicorn {version('uvicorn')}, {versions}{platform.machine()}; {given.rounds} rounds. "
        "Ours is durable: synced before it is said. "
        "Redis syncs its append-only file at each write, PostgreSQL has fsync on."
    )
    found = Found()
    with ours.server() as data_dir:  # one for all: a process's clients stay with the server that they have found
        for number in range(given.rounds):
            print(f"round {number + 1} of {given.rounds}", file=sys.stderr)
            try:
                _round(found, chosen, beside, data_dir)
            except KeyboardInterrupt:
                if number == 0:
                    raise
                print(f"interrupted in round {number + 1}: this is what was found", file=sys.stderr)
                break
    if "calls" in chosen:
        calls.report(found, names)
    if "streams" in chosen:
        streams.report(found, names)
    if "services" in chosen:
        services.report(found, names)
    if given.json:
        given.json.write_text(json.dumps({"versions": versions, "figures": found.all()}, indent=1))


def _round(found: Found, chosen: Sequence[str], beside: list[str], data_dir: Path) -> None:
    if "calls" in chosen:
        calls.measure(found, beside)
        calls.measure_start(found)
    if "streams" in chosen:
        streams.measure(found, beside, data_dir)
    if "services" in chosen:
        services.measure(found, beside)


if __name__ == "__main__":
    main()
