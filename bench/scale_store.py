"""Data directories with many ended jobs: a few real ones, run by a real server, and copies of their rows.

The copies are made by SQL under the schema's own triggers, checks and foreign keys; the auditor holds them for jobs.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from apothic.protocol import ids
from apothic.store.schema import audit
from bench import ours

SPAN_S = 6 * 86400.0  # over which the copies ended: less than the retention of a week
STEP = 20_000  # jobs a transaction
WARMED = 20  # rounds from one `into_memory` to the next


@dataclass(frozen=True)
class Ended:
    """A real job, and how many in a thousand of the copies are its."""

    job_id: str
    share: int


@contextmanager
def running(data_dir: Path, **settings: object) -> Iterator[None]:
    """Run a server on a data directory; clients of this process find it."""
    told = {f"APOTHIC_{name.upper()}": str(value) for name, value in settings.items()}
    environment = {**os.environ, "APOTHIC_DATA_DIR": str(data_dir), **told}
    ours.apothic("up", "--port=0", "--gateway-port=0", env=environment)
    before = os.environ.get("APOTHIC_DATA_DIR")
    os.environ["APOTHIC_DATA_DIR"] = str(data_dir)
    try:
        yield
    finally:
        ours.apothic("down", env=environment)
        os.environ.pop("APOTHIC_DATA_DIR")
        if before is not None:
            os.environ["APOTHIC_DATA_DIR"] = before


def make(data_dir: Path, jobs: int) -> None:
    """Fill a directory with so many ended jobs, unless it is there already."""
    if (data_dir / "made").exists():
        return
    began = time.perf_counter()
    data_dir.mkdir(parents=True)
    with running(data_dir):
        kinds = _real()
    with closing(sqlite3.connect(data_dir / "apothic.db", isolation_level=None)) as connection:
        # It is made anew if the power goes.
        connection.executescript("PRAGMA foreign_keys = ON; PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000;")
        now = time.time()
        for first in range(0, jobs, STEP):
            several = range(first, min(first + STEP, jobs))
            copy(connection, kinds, [(n, now - SPAN_S * (jobs - n) / jobs - 3600) for n in several])
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if jobs <= 100_000:
            assert audit(connection) == {}
    (data_dir / "made").touch()
    print(f"  {jobs:,} jobs made in {time.perf_counter() - began:.0f} s", file=sys.stderr)


def _real() -> list[Ended]:
    """Run one job of each kind to its end: four items, a failure, and one of a function that is seldom called."""
    words = [sys.executable, "-m", "bench.scale_app"]
    told = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    return [Ended(job_id, share) for job_id, share in zip(told, (989, 10, 1), strict=True)]


def copy(connection: sqlite3.Connection, kinds: list[Ended], which: list[tuple[int, float]]) -> None:
    """Copy each of the real jobs as often as it has a share of the numbers; each has a time as well."""
    connection.execute("BEGIN IMMEDIATE")
    by_share = [kind for kind in kinds for _ in range(kind.share)]
    seqs = {
        kind: connection.execute("SELECT seq FROM jobs WHERE id = ?", (kind.job_id,)).fetchone()[0] for kind in kinds
    }
    last = connection.execute("SELECT max(seq) FROM jobs").fetchone()[0]
    rows = [
        (last + 1 + place, seqs[by_share[number * 7919 % len(by_share)]], ids.new("job", at), number)
        for place, (number, at) in enumerate(which)
    ]
    times = [at for _, at in which]
    new = {"seq": "?1", "id": "?3", "idempotency_key": "iif(?4 % 10 = 0, ?3, NULL)"} | {
        name: f"?5 + {name} - created_at" for name in ("created_at", "started_at", "ended_at")
    }
    columns = _columns(connection, "jobs")
    connection.executemany(
        f"INSERT INTO jobs ({', '.join(columns)}) SELECT {', '.join(new.get(name, name) for name in columns)} "
        "FROM jobs WHERE seq = ?2",
        [(*row, at) for row, at in zip(rows, times, strict=True)],
    )
    for table in _of_jobs(connection):
        columns = _columns(connection, table)
        connection.executemany(
            f"INSERT INTO {table} ({', '.join(columns)}) "
            f"SELECT {', '.join('?1' if name == 'job' else name for name in columns)} FROM {table} WHERE job = ?2",
            [row[:2] for row in rows],
        )
    connection.execute("COMMIT")


def known(data_dir: Path) -> tuple[dict[str, str], list[str]]:
    """Return the ids of the functions by name, and those of some generators' jobs from all over the store."""
    with closing(sqlite3.connect(data_dir / "apothic.db")) as connection:
        functions = dict(connection.execute("SELECT name, id FROM functions"))
        ended = connection.execute(
            "SELECT id FROM jobs WHERE next_index = 10 AND seq % (SELECT max(1, max(seq) / 500) FROM jobs) = 0 "
            "ORDER BY seq LIMIT 500"
        )
        return functions, [row[0] for row in ended]


def into_memory(dirs: Iterable[Path]) -> None:
    """Have the kernel hold the files: one read of the disk takes twice what a resume does.

    A virtual machine may lose them at any time, so this is done now and then.
    """
    for path in dirs:
        with (path / "apothic.db").open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def _of_jobs(connection: sqlite3.Connection) -> list[str]:
    """Return the tables that say something of a job, but for what only one that has not ended has."""
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    naming = [
        table for table in tables for key in connection.execute(f"PRAGMA foreign_key_list({table})") if key[2] == "jobs"
    ]
    return [table for table in naming if table not in ("leases", "holds")]
