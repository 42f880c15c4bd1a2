"""The file's tables: how they are brought up to date, and the rules that they must keep."""

from __future__ import annotations

import sqlite3

from apothic.errors import ConfigError
from apothic.protocol.lifecycle import ARROWS, FINAL, LEASED, Status
from apothic.store.queries import invariants, migrations


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest schema, each step in a transaction of its own."""
    have: int = connection.execute("PRAGMA user_version").fetchone()[0]
    steps = migrations()
    if have > steps[-1][0]:
        raise ConfigError(
            f"the data directory was written by a newer apothic (schema {have}, this one knows {steps[-1][0]})",
            hint="upgrade apothic-runtime, or use another --data-dir",
        )
    for number, sql in steps:
        if number > have:
            connection.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")


def fill_lifecycle(connection: sqlite3.Connection) -> None:
    """Write the lifecycle table into the database, so that SQL never repeats it."""
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO statuses (status, final, leased) VALUES (?, ?, ?) "
        "ON CONFLICT (status) DO UPDATE SET final = excluded.final, leased = excluded.leased",
        [(status.value, status in FINAL, status in LEASED) for status in Status],
    )
    connection.execute("DELETE FROM arrows")
    connection.executemany(
        "INSERT INTO arrows (move, source, target) VALUES (?, ?, ?)",
        [(move.value, source.value, target.value) for move, row in ARROWS.items() for source, target in row.items()],
    )
    connection.execute("COMMIT")


def audit(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Run the auditor's rules; return for each broken one the first ten ids that break it."""
    broken = {
        name: [str(row[0]) for row in connection.execute(sql).fetchmany(10)] for name, sql in invariants().items()
    }
    return {name: ids for name, ids in broken.items() if ids}
