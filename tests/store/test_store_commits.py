"""Commits are shared, each write stands or falls alone, and nobody sees what is not committed."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storerig import Store

from apothic.clock import ManualClock
from apothic.errors import NotFoundError, ServerUnavailableError
from apothic.probe import Probe
from apothic.store.db import LARGEST_BATCH, Database
from apothic.store.tx import Tx


def secret(tx: Tx, name: str) -> None:
    tx.run("insert_secret", name=name, value=b"x")


class Gate:
    """Holds a write at its commit until it is opened."""

    def __init__(self, db: Database, fn: Callable[[Tx], None] = lambda tx: None) -> None:
        self._db = db
        self._fn = fn
        self._inside, self._open = threading.Event(), threading.Event()

    async def __aenter__(self) -> Gate:
        def wait() -> None:
            self._inside.set()
            assert self._open.wait(10)

        self._db.commit_s = 1.0  # a slow disk: its commits are made in a thread
        self._db._probe.on("commit.before", wait)
        self._write = asyncio.ensure_future(self._db.write(self._fn))
        await asyncio.to_thread(self._inside.wait, 10)
        self._db._probe.clear()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._open.set()
        await self._write


async def test_writes_that_wait_share_a_commit(store: Store) -> None:
    before = store.db.commits
    async with Gate(store.db):
        writes = [asyncio.ensure_future(store.db.write(lambda tx, n=n: secret(tx, f"s{n}"))) for n in range(100)]
        await asyncio.sleep(0)
    await asyncio.gather(*writes)
    assert store.db.commits - before == 2
    assert await store.rows("SELECT count(*) FROM secrets") == [(100,)]


async def test_one_failing_write_does_not_undo_its_neighbours(store: Store) -> None:
    def fails(tx: Tx) -> None:
        secret(tx, "half")
        raise NotFoundError("on purpose")

    async with Gate(store.db):
        first = asyncio.ensure_future(store.db.write(lambda tx: secret(tx, "first")))
        bad = asyncio.ensure_future(store.db.write(fails))
        last = asyncio.ensure_future(store.db.write(lambda tx: secret(tx, "last")))
        await asyncio.sleep(0)
    await asyncio.gather(first, last)
    with pytest.raises(NotFoundError, match="on purpose"):
        await bad
    assert await store.rows("SELECT name FROM secrets ORDER BY name") == [("first",), ("last",)]


async def test_what_failed_does_nothing_afterwards(store: Store) -> None:
    deeds: list[str] = []

    def fails(tx: Tx) -> None:
        tx.then(lambda: deeds.append("bad"))
        tx.queue_changed = True
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await store.db.write(fails)
    await store.db.write(lambda tx: tx.then(lambda: deeds.append("good")))
    await asyncio.sleep(0)
    assert deeds == ["good"]


async def test_deeds_come_after_the_commit(store: Store) -> None:
    order: list[str] = []
    store.db._probe.on("commit.after", lambda: order.append("committed"))
    await store.db.write(lambda tx: tx.then(lambda: order.append("told")))
    await asyncio.sleep(0)
    assert order == ["committed", "told"]


async def test_a_commit_that_fails_fails_every_write_of_it_and_leaves_nothing(store: Store) -> None:
    def breaks() -> None:
        raise RuntimeError("the disk is gone")

    store.db._probe.on("commit.before", breaks)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        await store.db.write(lambda tx: secret(tx, "lost"))
    store.db._probe.on("commit.before", lambda: None)
    await store.db.write(lambda tx: secret(tx, "kept"))
    assert await store.rows("SELECT name FROM secrets") == [("kept",)]


async def test_readers_never_see_what_is_not_committed(store: Store) -> None:
    def looked() -> int:
        return int(store.db.look(lambda tx: tx._connection.execute("SELECT count(*) FROM secrets").fetchone()[0]))

    async with Gate(store.db, lambda tx: secret(tx, "soon")):
        assert await store.rows("SELECT count(*) FROM secrets") == [(0,)]
        assert looked() == 0
    assert looked() == 1
    assert await store.rows("SELECT count(*) FROM secrets") == [(1,)]


async def test_a_reader_keeps_its_snapshot(store: Store) -> None:
    looked, go_on = threading.Event(), threading.Event()

    def read(tx: Tx) -> tuple[int, int]:
        count = "SELECT count(*) FROM secrets"
        first = tx._connection.execute(count).fetchone()[0]
        looked.set()
        assert go_on.wait(10)
        return first, tx._connection.execute(count).fetchone()[0]

    reading = asyncio.ensure_future(store.db.read(read))
    await asyncio.to_thread(looked.wait, 10)
    await store.db.write(lambda tx: secret(tx, "later"))
    go_on.set()
    assert await reading == (0, 0)


async def test_readers_cannot_write(store: Store) -> None:
    with pytest.raises(Exception, match="readonly"):
        await store.db.read(lambda tx: secret(tx, "sneaked"))
    with pytest.raises(Exception, match="readonly"):
        store.db.look(lambda tx: secret(tx, "sneaked"))


async def test_what_follows_a_write_is_done_after_its_commit(store: Store) -> None:
    order: list[str] = []
    place = store.db.last_word

    def word(tx: Tx) -> None:
        assert place is not None
        place(tx)
        tx.then(lambda: order.append("told"))

    def write(tx: Tx) -> None:
        tx.at_end(lambda: order.append("last"))
        order.append("first")
        tx.queue_changed = True

    store.db.last_word = word
    async with Gate(store.db, write):
        assert order == ["first", "last"]
    assert order == ["first", "last", "told"]


async def test_a_quick_commit_is_made_on_the_loop_and_a_slow_one_beside_it(store: Store) -> None:
    where: list[str] = []

    def commits(seconds: float) -> Callable[[], None]:
        def note() -> None:
            where.append(threading.current_thread().name)
            store.clock._pass(seconds)

        return note

    async def write(times: int) -> list[str]:
        where.clear()
        for _ in range(times):
            await store.db.write(lambda tx: None)
        return where

    store.db._probe.on("commit.before", commits(0.0002))
    assert set(await write(20)) == {"MainThread"}
    store.db._probe.on("commit.before", commits(0.02))
    assert set((await write(20))[2:]) == {"apothic-committer"}
    store.db._probe.on("commit.before", commits(0.0002))
    assert set((await write(80))[60:]) == {"MainThread"}


async def test_a_look_in_the_middle_of_a_commit_sees_what_was_before(store: Store) -> None:
    await store.db.write(lambda tx: secret(tx, "old"))
    names = "SELECT name FROM secrets ORDER BY name DESC"

    def look() -> list[str]:
        return store.db.look(lambda tx: [row[0] for row in tx._connection.execute(names)])

    async with Gate(store.db, lambda tx: secret(tx, "new")):
        assert look() == ["old"]
    assert look() == ["old", "new"]


async def test_nothing_follows_a_commit_that_fails(store: Store) -> None:
    order: list[str] = []

    def breaks() -> None:
        raise RuntimeError("the disk is gone")

    def word(tx: Tx) -> None:
        tx.then(lambda: order.append("told"))

    def write(tx: Tx) -> None:
        tx.queue_changed = True

    store.db.last_word = word
    store.db._probe.on("commit.before", breaks)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        await store.db.write(write)
    assert order == []


async def test_a_batch_ends_when_it_has_many_rows(store: Store) -> None:
    def many(n: int) -> Callable[[Tx], None]:
        return lambda tx: [secret(tx, f"{n}.{m}") for m in range(LARGEST_BATCH // 2)] and None

    before = store.db.commits
    async with Gate(store.db):
        writes = [asyncio.ensure_future(store.db.write(many(n))) for n in range(4)]
        await asyncio.sleep(0)
    await asyncio.gather(*writes)
    assert store.db.commits - before == 1 + 2


async def test_a_program_that_writes_to_the_file_holds_up_writes_and_nothing_else(store: Store) -> None:
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(store.db.write(lambda tx: secret(tx, "late")))
    for _ in range(50):  # the loop goes on
        await asyncio.sleep(0)
    assert not writing.done()
    other.execute("ROLLBACK")
    other.close()
    await writing
    assert await store.rows("SELECT name FROM secrets") == [("late",)]


async def test_a_caller_that_is_cancelled_does_not_break_the_writer(store: Store) -> None:
    async with Gate(store.db):
        gone = asyncio.ensure_future(store.db.write(lambda tx: secret(tx, "gone")))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    await store.db.write(lambda tx: secret(tx, "kept"))
    assert await store.rows("SELECT name FROM secrets ORDER BY name") == [("gone",), ("kept",)]


async def test_a_slip_of_the_dispatcher_does_not_lose_what_was_submitted(store: Store) -> None:
    function = await store.live()
    place = store.db.last_word

    def slips(tx: Tx) -> None:
        assert place is not None
        place(tx)
        raise RuntimeError("a bug")

    store.db.last_word = slips
    job = await store.submit(function)
    assert await store.status(job) == "queued"
    assert store.taken() == []
    store.db.last_word = place
    await store.fleet.sweep()
    assert [given.job for given in store.taken()] == [job]


async def test_what_waits_is_finished_before_the_store_closes(tmp_path: Path) -> None:
    made = Store(tmp_path / "apothic.db")
    made.db.open()
    writes = [asyncio.ensure_future(made.db.write(lambda tx, n=n: secret(tx, f"s{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    await made.db.close()
    await asyncio.gather(*writes)
    with pytest.raises(ServerUnavailableError):
        await made.db.write(lambda tx: None)


async def test_full_durability_is_said_to_sqlite(tmp_path: Path) -> None:
    for durable, level in ((True, 2), (False, 1)):
        db = Database(tmp_path / f"{level}.db", clock=ManualClock(), probe=Probe(), durable=durable)
        db.open()
        seen = await db.write(lambda tx: tuple(tx._connection.execute("PRAGMA synchronous").fetchone()))
        mode = await db.write(lambda tx: tuple(tx._connection.execute("PRAGMA journal_mode").fetchone()))
        assert (seen, mode) == ((level,), ("wal",))
        await db.close()


async def test_a_deed_that_fails_does_not_stop_the_writer(store: Store) -> None:
    def breaks() -> None:
        raise RuntimeError("a bug")

    def write(tx: Tx) -> None:
        secret(tx, "kept")
        tx.then(breaks)

    await asyncio.wait_for(store.db.write(write), 5)
    await asyncio.wait_for(store.db.write(lambda tx: secret(tx, "next")), 5)
    assert await store.rows("SELECT count(*) FROM secrets") == [(2,)]


async def test_what_waits_is_finished_before_the_store_closes_on_a_slow_disk(tmp_path: Path) -> None:
    made = Store(tmp_path / "apothic.db")
    made.db.open()
    await made.db.write(lambda tx: secret(tx, "first"))
    made.db.commit_s = 1.0
    last = asyncio.ensure_future(made.db.write(lambda tx: secret(tx, "last")))
    await asyncio.sleep(0)
    await made.db.close()
    await asyncio.wait_for(last, 5)


async def test_a_look_that_fails_leaves_nothing_and_one_within_a_write_commits_nothing(store: Store) -> None:
    def bad(tx: Tx) -> None:
        secret(tx, "sneaked")
        raise KeyError

    with pytest.raises(KeyError):
        store.db.look(bad)

    def write(tx: Tx) -> None:
        secret(tx, "half")
        assert store.db.look(lambda tx: tx._connection.execute("SELECT count(*) FROM secrets").fetchone()[0]) == 0
        raise KeyError

    with pytest.raises(KeyError):
        await store.db.write(write)
    assert await store.rows("SELECT count(*) FROM secrets") == [(0,)]
