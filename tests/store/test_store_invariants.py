"""Each rule of the auditor, shown able to fail: on a copy that was forced past every guard."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from storerig import DONE, Store, broken, items, lines, spec

from apothic.store.queries import invariants
from apothic.store.schema import audit

# What is done to a sound database, by the rule that must notice.
CORRUPTIONS: dict[str, list[str]] = {
    "end_iff_final": [
        "DELETE FROM events WHERE type = 'job.end'",
        "UPDATE events SET type = 'job.end' WHERE job = 2 AND idx = 0",
    ],
    "end_is_last": ["UPDATE jobs SET next_index = next_index + 1 WHERE status = 'succeeded'"],
    "indices_whole": [
        "DELETE FROM events WHERE type = 'job.log'",
        "UPDATE windows SET lost = lost + 1",
        "UPDATE jobs SET next_index = next_index + 3 WHERE status = 'queued'",
    ],
    "lease_iff_leased": [
        "DELETE FROM leases",
        "INSERT INTO leases SELECT seq, 'x', 1, 'none', 0, -1 FROM jobs WHERE status = 'queued'",
    ],
    "lease_is_of_the_attempt": ["UPDATE leases SET attempt = attempt + 1"],
    "slots": ["UPDATE versions SET slots = 0"],
    "lease_on_its_version": ["UPDATE containers SET version = 999"],
    "attempts_by_one": [
        "UPDATE jobs SET attempt = attempt + 1 WHERE status = 'running'",
        "UPDATE events SET attempt = 7 WHERE json_extract(data, '$.status') = 'starting'",
    ],
    "attempts_in_order": ["UPDATE events SET attempt = 5 WHERE idx = 0"],
    "outcome_events": [
        "DELETE FROM events WHERE type = 'job.result'",
        "UPDATE events SET type = 'job.error' WHERE type = 'job.result'",
    ],
    "status_events": ["UPDATE jobs SET status = 'retrying' WHERE status = 'queued'"],
    "windows_whole": ["UPDATE windows SET kept = kept + 1", "UPDATE windows SET trimmed = 99"],
    "named_blobs": ["INSERT INTO event_blobs VALUES (1, 99, 'x', 1)"],
    "items_counted": ["UPDATE events SET data = json_set(data, '$.item_index', 9) WHERE type = 'job.stream_item'"],
    "restarts_open": ["INSERT INTO restarts VALUES (2, 0)"],
    "waiting_counted": ["UPDATE versions SET waiting = waiting + 1", "DELETE FROM jobs WHERE status = 'queued'"],
    "nothing_in_limbo": ["DELETE FROM leases", "UPDATE jobs SET ended_at = NULL WHERE status = 'succeeded'"],
    "live_is_live": [
        "UPDATE apps SET live = NULL",
        "UPDATE apps SET live = 'dep_none'",
        "UPDATE deployments SET status = 'ready'",
    ],
    "ticks_of_jobs": [
        "INSERT INTO ticks SELECT id, 1, 'job', 'job_none' FROM functions",
        "INSERT INTO ticks SELECT 'fn_none', 1, 'job', id FROM jobs LIMIT 1",
        "DROP INDEX ticks_by_job;"
        "INSERT INTO ticks SELECT function_id, column1, 'job', jobs.id FROM jobs, (VALUES (1), (2)) WHERE seq = 1",
    ],
    "schedules_of_live": [
        "INSERT INTO schedules VALUES (999, 0, 0)",
        "INSERT INTO schedules SELECT id, 0, 0 FROM versions; UPDATE apps SET live = NULL",
    ],
    "gone_is_gone": [
        "INSERT INTO gone_jobs SELECT id, version, function_id, 'succeeded', 1, 1, 2, 3, 'x', NULL FROM jobs LIMIT 1",
    ],
    "unwanted_has_no_name": [
        "INSERT INTO deployment_blobs VALUES ('dep_none', 'x'); INSERT INTO unwanted_blobs VALUES ('x', 1)",
        "UPDATE jobs SET result_sha256 = 'x'; INSERT INTO unwanted_blobs VALUES ('x', 1)",
    ],
    "blobs_counted": ["UPDATE blob_total SET bytes = bytes + 1", "INSERT INTO blobs VALUES (printf('%064d', 1), 7, 0)"],
    "deployments_told": [
        "DELETE FROM deployment_events",
        "DELETE FROM deployment_events WHERE idx = 1",
        "UPDATE deployments SET status = 'ready'",
        "UPDATE deployments SET status = 'starting'",
        "UPDATE deployments SET status = 'ready'; DELETE FROM containers;"
        "UPDATE deployment_events SET status = 'draining' WHERE status = 'live'",
    ],
    "services_have_addresses": [
        "INSERT INTO services (version) SELECT version FROM containers",
        "INSERT INTO addresses (container_id, secret) SELECT id, 's' FROM containers",
    ],
    "services_run_no_jobs": ["INSERT INTO services (version) SELECT version FROM jobs LIMIT 1"],
}


def test_every_rule_has_a_corruption() -> None:
    assert set(CORRUPTIONS) == set(invariants())


@pytest.mark.parametrize(("rule", "sql"), [(rule, sql) for rule, each in CORRUPTIONS.items() for sql in each])
async def test_each_rule_finds_what_breaks_it(store: Store, tmp_path: Path, rule: str, sql: str) -> None:
    function = await store.live("app", spec(max_containers=1))
    ended, running, queued = [await store.submit(function) for _ in range(3)]
    await store.finish(store.taken()[0], DONE, "one", "two")
    (given,) = store.taken()
    await store.report(given, began=True, said=[*lines("three"), *items("four", "five")])
    assert [await store.status(job) for job in (ended, running, queued)] == ["succeeded", "running", "queued"]
    await store.db.close()
    assert broken(store.path) == {}
    copy = tmp_path / "copy.db"
    shutil.copy(store.path, copy)
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.executescript(sql)
    assert rule in audit(connection)
    connection.close()
