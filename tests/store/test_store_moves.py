"""Every move tried from every status: the table's arrows move, all others leave the row and its events as they were."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from storerig import DONE, RAISED, Store, spec

from apothic.protocol.lifecycle import ARROWS, FINAL, Move, Status
from apothic.protocol.messages import Failure
from apothic.protocol.session import Outcome
from apothic.store.pending import IllegalMove

TIMED_OUT = Outcome(failure=Failure(kind="timeout", type="TimeoutError", message="late"))
SQUARE = [(move, status) for move in Move for status in Status]
PAIRS = [(a, b) for a in Status for b in Status if a != b and b not in {row.get(a) for row in ARROWS.values()}]


class Undo(Exception):
    """Raised to leave a transaction without a trace."""


async def bring(store: Store, status: Status) -> str:
    """Drive a fresh job into a status by what really happens; return its id."""
    function = await store.live("app", spec(retries=1))
    if status == Status.QUEUED:
        return await store.submit(function, run_at=store.clock.now() + 60)
    job = await store.submit(function)
    (given,) = store.taken()
    if status == Status.STARTING:
        return job
    if status == Status.RETRYING:
        await store.finish(given, RAISED)
    elif status == Status.SUCCEEDED:
        await store.finish(given, DONE)
    elif status == Status.FAILED:
        await store.finish(given, Outcome(failure=Failure(kind="serialization", type="T", message="no")))
    elif status == Status.TIMED_OUT:
        await store.finish(given, TIMED_OUT)
        await store.clock.advance(5)
        await store.fleet.sweep()
        (given,) = store.taken()
        await store.finish(given, TIMED_OUT)
    else:
        await store.report(given, began=True)
        if status != Status.RUNNING:
            await store.jobs.cancel(job)
        if status == Status.CANCELLED:
            await store.report(given, seq=1, outcome=Outcome(failure=Failure(kind="cancelled", type="C", message="")))
    return job


async def snapshot(store: Store, job: str) -> list[tuple[Any, ...]]:
    row = await store.rows("SELECT * FROM jobs WHERE id = ?", job)
    return row + await store.rows("SELECT events.* FROM events JOIN jobs ON seq = job WHERE id = ? ORDER BY idx", job)


def fitting(move: Move, target: Status | None) -> dict[str, Any]:
    """What the constraints ask of a row after this move."""
    if move == Move.SUCCEED:
        return {"result": b"x"}
    return {"failure": b"x"} if target in FINAL or target is None else {}


@pytest.mark.parametrize("status", list(Status))
async def test_every_status_is_reached_by_what_really_happens(store: Store, status: Status) -> None:
    assert await store.status(await bring(store, status)) == status


@pytest.mark.parametrize("status", list(Status))
async def test_every_move_from_every_status(store: Store, status: Status) -> None:
    job = await bring(store, status)
    before = await snapshot(store, job)
    for move in Move:
        target = ARROWS[move].get(status)
        seen: list[str] = []

        def attempt(tx: Any, move: Move = move, target: Status | None = target, seen: list[str] = seen) -> None:
            moves = store.jobs.moves(tx)
            row = dict(tx.one("job_row", id=job))
            moves._move(row, move, 0, **fitting(move, target))
            seen.append(row["status"])
            raise Undo

        with pytest.raises(Undo if target is not None else IllegalMove) as caught:
            await store.db.write(attempt)
        if target is not None:
            assert seen == [target]
        else:
            assert job in str(caught.value) and move.value in str(caught.value)
        assert await snapshot(store, job) == before


@pytest.mark.parametrize("status", list(Status))
async def test_every_pending_move_from_every_status(store: Store, status: Status) -> None:
    job = await bring(store, status)
    before = await snapshot(store, job)
    for move in (Move.CLAIM, Move.BEGIN, Move.CANCEL, Move.SUCCEED):
        target = ARROWS[move].get(status)

        def attempt(tx: Any, move: Move = move, target: Status | None = target) -> None:
            moves, row = store.jobs.moves(tx), dict(tx.one("job_row", id=job))
            if move == Move.SUCCEED:
                moves.pending.succeed(row, b"x", 1.0, 0)
            else:
                moves.pending.step(row, move)
            if target in FINAL and move == Move.CANCEL:
                raise Undo  # what ends a job without a value is no step
            moves.pending.flush()
            assert tx.one("job_row", id=job)["status"] == row["status"] == target
            raise Undo

        with pytest.raises(Undo if target is not None else IllegalMove):
            await store.db.write(attempt)
        assert await snapshot(store, job) == before


async def test_a_pending_move_of_a_job_that_has_moved_meanwhile_is_refused(store: Store) -> None:
    job = await bring(store, Status.STARTING)

    def twice(tx: Any) -> None:
        one, other = store.jobs.moves(tx).pending, store.jobs.moves(tx).pending
        one.step(dict(tx.one("job_row", id=job)), Move.BEGIN)
        other.step(dict(tx.one("job_row", id=job)), Move.CANCEL)

    before = await snapshot(store, job)
    with pytest.raises(IllegalMove):
        await store.db.write(twice)
    assert await snapshot(store, job) == before


async def test_the_trigger_refuses_what_the_table_does_not_know(store: Store) -> None:
    job = await store.submit(await store.live())
    connection = sqlite3.connect(store.path)
    refused = 0
    for source, target in PAIRS:
        connection.execute("BEGIN")
        connection.execute("DROP TRIGGER jobs_move")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE jobs SET status = ? WHERE id = ?", (source, job))
        trigger = (await store.rows("SELECT sql FROM sqlite_master WHERE name = 'jobs_move'"))[0][0]
        connection.execute(trigger)
        with pytest.raises(sqlite3.IntegrityError, match="not in the lifecycle table"):
            connection.execute("UPDATE jobs SET status = ? WHERE id = ?", (target, job))
        connection.execute("ROLLBACK")
        refused += 1
    connection.close()
    assert refused == len(PAIRS) > 40


async def test_a_lease_ends_with_the_move_that_ends_the_attempt(store: Store) -> None:
    job = await bring(store, Status.RUNNING)
    assert await store.rows("SELECT count(*) FROM leases") == [(1,)]
    await store.jobs.cancel(job)
    assert await store.rows("SELECT count(*) FROM leases") == [(1,)]
    (token,) = (await store.rows("SELECT token FROM leases"))[0]
    await store.fleet.dead("h", 1)
    assert await store.status(job) == "cancelled"
    assert await store.rows("SELECT count(*) FROM leases WHERE token = ?", token) == [(0,)]


async def test_every_move_has_its_event(store: Store) -> None:
    function = await store.live()
    job = await store.submit(function)
    (given,) = store.taken()
    await store.finish(given, DONE, "hello")
    events = await store.rows("SELECT idx, type, attempt FROM events ORDER BY idx")
    assert events == [
        (0, "job.status", 0), (1, "job.status", 1), (2, "job.status", 1), (3, "job.log", 1),
        (4, "job.status", 1), (5, "job.result", 1), (6, "job.end", 1),
    ]  # fmt: skip
    words = await store.rows("SELECT json_extract(data, '$.status') FROM events WHERE type = 'job.status' ORDER BY idx")
    assert [word for (word,) in words] == ["queued", "starting", "running", "succeeded"]
    assert await store.rows("SELECT json_extract(data, '$.last_index') FROM events WHERE type = 'job.end'") == [(6,)]
    assert store.rung.count(job) >= 2
