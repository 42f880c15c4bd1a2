"""What the database itself refuses, and that its SQL files hold together."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from storerig import DONE, Store

from apothic.clock import ManualClock
from apothic.errors import ConfigError
from apothic.probe import Probe
from apothic.store import db as database
from apothic.store.queries import migrations, named, queries, read
from apothic.store.schema import migrate

SOURCES = Path(database.__file__).parents[1]
_USE = re.compile(r"\b(?:run|many|one|all|each)\(\s*\"(\w+)\"")


def schema(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()


def test_migrations_make_the_schema() -> None:
    stepped, whole = sqlite3.connect(":memory:"), sqlite3.connect(":memory:")
    migrate(stepped)
    whole.executescript(read("schema.sql"))
    assert schema(stepped) == schema(whole)
    assert len(schema(whole)) > 20
    assert stepped.execute("PRAGMA user_version").fetchone()[0] == migrations()[-1][0]
    before = schema(stepped)
    migrate(stepped)
    assert schema(stepped) == before
    stepped.close()
    whole.close()


def test_migrations_are_numbered_without_gaps() -> None:
    assert [number for number, _ in migrations()] == list(range(1, len(migrations()) + 1))


async def test_a_file_of_a_newer_apothic_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(ConfigError, match="newer apothic") as caught:
        database.Database(path, clock=ManualClock(), probe=Probe()).open()
    assert "upgrade" in caught.value.hint


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("this is no database, and it is long enough to be looked at as one" * 50)
    with pytest.raises(ConfigError, match="cannot be opened"):
        database.Database(path, clock=ManualClock(), probe=Probe()).open()


def test_every_query_is_used_and_every_used_name_is_a_query() -> None:
    used = {name for file in SOURCES.rglob("*.py") for name in _USE.findall(file.read_text("utf-8"))}
    assert used == set(queries())


def test_every_query_prepares_against_the_schema() -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(read("schema.sql"))
    for name, sql in queries().items():
        wanted = set(re.findall(r":(\w+)", sql))
        values = dict.fromkeys(wanted) if wanted else (None,) * sql.count("?")
        assert connection.execute(f"EXPLAIN {sql}", values).fetchall(), name
    connection.close()


def test_a_name_given_twice_is_an_error() -> None:
    assert named("-- a: why\nSELECT 1;\n\n-- b: why\nSELECT 2;") == {"a": "SELECT 1", "b": "SELECT 2"}
    assert named("-- a: why\nSELECT 1;")["a"] == "SELECT 1"


REFUSED = [
    ("UPDATE jobs SET ended_at = 1", "ended_at"),
    ("UPDATE jobs SET result = x'00'", "result"),
    ("UPDATE jobs SET failure = x'00'", "failure"),
    ("UPDATE jobs SET attempt = -1", "attempt"),
    ("UPDATE jobs SET timeout_s = 0", "timeout_s"),
    ("UPDATE jobs SET delivery = 'exactly_once'", "delivery"),
    ("UPDATE jobs SET idempotency_key = ''", "idempotency_key"),
    ("UPDATE jobs SET idempotency_key = printf('%201d', 1)", "idempotency_key"),
    ("UPDATE jobs SET input_sha256 = printf('%064d', 1)", "FOREIGN KEY"),
    ("UPDATE jobs SET status = 'sleeping'", "lifecycle table"),
    ("UPDATE events SET idx = -1", "idx"),
    ("INSERT INTO events VALUES (1, 999, 'job.log', 0, '{}')", "index that the job has given out"),
    ("INSERT INTO events VALUES (1, 0, 'job.log', 0, '{}')", "UNIQUE"),
    ("UPDATE events SET type = 'job.rumour'", "type"),
    ("UPDATE deployments SET status = 'dreaming'", "status"),
    ("UPDATE deployments SET failure = x'00'", "failure"),
    ("UPDATE deployments SET status = 'failed'", "failure"),
    ("UPDATE versions SET slots = 0", "slots"),
    ("UPDATE versions SET waiting = -1", "waiting"),
    ("UPDATE leases SET attempt = 0", "attempt"),
    ("UPDATE leases SET container_id = 'ctr_none'", "FOREIGN KEY"),
    ("DELETE FROM containers", "FOREIGN KEY"),
    ("UPDATE containers SET state = 'gone'", "state"),
    ("UPDATE agents SET connected = 2", "connected"),
    ("UPDATE agents SET connected = 0", "gone_at"),
    ("INSERT INTO blobs VALUES ('short', 1, 0)", "sha256"),
    ("INSERT INTO blobs VALUES (printf('%064d', 1), -1, 0)", "size"),
    ("UPDATE jobs SET attempt = 'one'", "TEXT value"),
    ("INSERT INTO services VALUES (1, 0, 0, 0)", "port"),
    ("INSERT INTO services VALUES (1, NULL, 0, -1)", "wanted"),
    ("INSERT INTO services VALUES (999, NULL, 0, 0)", "FOREIGN KEY"),
    ("INSERT INTO addresses SELECT id, '', '' FROM containers", "secret"),
    ("UPDATE deployment_events SET status = 'rumoured'", "status"),
]


@pytest.mark.parametrize(("sql", "why"), REFUSED)
async def test_the_database_refuses(store: Store, sql: str, why: str) -> None:
    function = await store.live()
    await store.submit(function)
    assert len(store.taken()) == 1
    connection = sqlite3.connect(store.path, isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    with pytest.raises(sqlite3.IntegrityError, match=why):
        connection.execute(sql)
    connection.close()


async def test_two_jobs_cannot_have_one_idempotency_key(store: Store) -> None:
    function = await store.live()
    await store.submit(function, key="k")
    await store.submit(function, key="l")
    connection = sqlite3.connect(store.path)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute("UPDATE jobs SET idempotency_key = 'k' WHERE idempotency_key = 'l'")
    connection.close()


async def test_the_lifecycle_table_is_written_again_at_every_open(store: Store, tmp_path: Path) -> None:
    connection = sqlite3.connect(store.path, isolation_level=None)
    connection.execute("INSERT INTO arrows VALUES ('resurrect', 'failed', 'queued')")
    connection.execute("UPDATE statuses SET leased = 0 WHERE status = 'running'")
    connection.close()
    again = Store(store.path)
    again.db.open()
    assert await again.rows("SELECT * FROM arrows WHERE move = 'resurrect'") == []
    assert await again.rows("SELECT leased FROM statuses WHERE status = 'running'") == [(1,)]
    await again.db.close()


async def test_what_was_written_is_there_after_a_new_open(store: Store) -> None:
    function = await store.live()
    job = await store.submit(function)
    (given,) = store.taken()
    await store.finish(given, DONE)
    await store.db.close()
    again = Store(store.path)
    again.db.open()
    assert await again.status(job) == "succeeded"
    await again.db.close()


def test_a_file_of_the_first_schema_keeps_its_events() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    (_, first), *_ = migrations()
    connection.executescript(f"{first}\nPRAGMA user_version = 1;")
    rows = [(1, n, kind, 1, "{}") for n, kind in enumerate(("job.status", "job.log", "job.end"))]
    connection.execute("DROP TRIGGER events_in_order")  # there is no job that has given the indices out
    connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
    connection.execute("CREATE TRIGGER events_in_order BEFORE INSERT ON events BEGIN SELECT 1; END")
    migrate(connection)
    assert connection.execute("SELECT * FROM events ORDER BY idx").fetchall() == rows
    connection.close()
