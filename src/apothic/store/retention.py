"""Jobs past their retention: deleted in small steps, the oldest first, and remembered by a line each.

Whoever else wants to write waits for one step at the most. A job with much output is shortened first, as its window
would be, piece by piece; so what is stored is right at every moment, and a crash in between leaves a shorter job.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from functools import partial
from math import inf

from apothic.clock import Clock
from apothic.protocol.events import ITEM, LOG
from apothic.store import events
from apothic.store.db import Database
from apothic.store.room import Room
from apothic.store.tx import Tx

log = logging.getLogger("apothic.store")

# That a job was is known for so long after it went; from then on it never was.
TOMBSTONE_S = 30 * 86400.0
# One step: 1,000 lines go in 9 ms, 30 jobs with two lines each in 9 ms, on one busy core.
STEP_EVENTS, STEP_BYTES, STEP_JOBS = 1_000, 1 << 20, 30
STEP_TOMBSTONES = 500
# Over the ceiling, jobs go until so much of it is in use; else each new job would cost an old one.
TARGET = 0.9


class Retention:
    """Deletes ended jobs after `keep_s` seconds, or earlier while the data directory is over its ceiling.

    `ring(job_id)` is called on the loop for each job that has gone: who reads it must hear of that.
    """

    def __init__(self, db: Database, clock: Clock, ring: Callable[[str], None], room: Room, keep_s: float) -> None:
        self._db = db
        self._clock = clock
        self._ring = ring
        self._room = room
        self._keep_s = keep_s
        self._excess = 0.0  # bytes that have to go early; above 0 from over the ceiling to well below it

    async def step(self) -> bool:
        """Do one small step of what is due; tell whether there is more. It writes only when something is due."""
        now = self._clock.now()
        await self._measure()
        before = now if self._excess > 0 else now - self._keep_s
        due = await self._db.read(lambda tx: bool(tx.all("due_jobs", before=before, limit=1)))
        self._judge(due)
        if due:
            went = await self._db.write(lambda tx: self._let_go(tx, before, now))
            self._room.gone += went
        old = now - TOMBSTONE_S
        if await self._db.read(lambda tx: bool(tx.all("old_tombstones", before=old))):
            await self._db.write(lambda tx: tx.run("forget_gone_jobs", before=old, limit=STEP_TOMBSTONES))
            return True
        return due

    async def _measure(self) -> None:
        """Add up what is held, and see whether jobs must go early."""
        room = self._room
        target = inf if room.ceiling is None else TARGET * room.ceiling

        def read(tx: Tx) -> tuple[int, int]:
            blobs = tx.one("bytes_of_blobs")
            assert blobs is not None
            held = _pages(tx) + blobs[0] + _log_bytes(self._db)
            doomed = tx.one("bytes_doomed") if held > target else None
            return held, doomed[0] if doomed is not None else 0

        room.held, doomed = await self._db.read(read)
        if room.ceiling is None:
            return
        over = room.held > room.ceiling
        if over and not room.haste:
            log.warning("retention.over_ceiling held=%d ceiling=%d", room.held, room.ceiling)
        room.haste = over or (room.haste and room.held > target)
        # What only waits to be collected is held, but no further job has to go for it.
        self._excess = room.held - doomed - target if over or self._excess > 0 else 0.0

    def _judge(self, due: bool) -> None:
        """Take nothing more when there is too much and nothing left to delete."""
        room = self._room
        full = room.ceiling is not None and room.held > room.ceiling and not due
        if full != room.full:
            room.full = full
            log.warning("retention.%s held=%d ceiling=%s", "full" if full else "room_again", room.held, room.ceiling)

    def _let_go(self, tx: Tx, before: float, now: float) -> int:
        """Delete the oldest jobs, as many as one step holds; return how many."""
        went, budget, enough = 0, _Budget(), self._excess if self._excess > 0 else inf
        pages, blobs = _pages(tx), 0
        for row in tx.all("due_jobs", before=before, limit=STEP_JOBS):
            upto = budget.take(tx, row["seq"])
            if upto is not None:
                _shorten(tx, row["seq"], upto, now)
                break
            blobs += _delete(tx, row["seq"], now)
            tx.then(partial(self._ring, row["id"]))
            went += 1
            if budget.spent or pages - _pages(tx) + blobs >= enough:
                break
        return went


def _pages(tx: Tx) -> int:
    """Return what the pages take that the database uses. Its file never shrinks: what is free is used again."""
    row = tx.one("bytes_of_pages")
    assert row is not None
    return int(row[0])


def _log_bytes(db: Database) -> int:
    """Return what SQLite's log takes. It is written from the start again, so the file keeps the size it once had."""
    try:
        return db.path.with_name(f"{db.path.name}-wal").stat().st_size
    except FileNotFoundError:
        return 0


class _Budget:
    """How much one step still may delete."""

    def __init__(self) -> None:
        self._events, self._bytes = STEP_EVENTS, STEP_BYTES

    @property
    def spent(self) -> bool:
        return self._events <= 0 or self._bytes <= 0

    def take(self, tx: Tx, job: int) -> int | None:
        """Take a job's output from it; return up to which index, or `None` for all of it."""
        upto = -1
        for row in tx.each("oldest_output", job=job):
            if self.spent:
                return upto
            upto = row["idx"]
            self._events -= 1
            self._bytes -= row["bytes"]
        return None


def _shorten(tx: Tx, job: int, upto: int, now: float) -> None:
    named = tx.all("blobs_of_items", job=job, upto=upto)
    tx.run("trim_event_blobs", job=job, upto=upto)
    for kind in (LOG, ITEM):
        kept = events.window(tx, job, kind)
        went = tx.run("trim_events", job=job, type=kind, trimmed=kept.trimmed, upto=upto)
        if went:
            tx.run(
                "set_window", job=job, type=kind, kept=kept.kept - went, lost=kept.lost + went, trimmed=upto,
                bytes=kept.bytes * (kept.kept - went) // kept.kept,
            )  # fmt: skip
    _mark(tx, named, now)


def _delete(tx: Tx, job: int, now: float) -> int:
    """Delete a job; return how many bytes the blobs have that it named."""
    named = tx.all("blobs_of_job", job=job)
    tx.run("insert_gone_job", job=job, now=now)
    tx.run("delete_event_blobs", job=job)
    tx.run("delete_events", job=job)
    tx.run("delete_windows", job=job)
    tx.run("delete_restarts", job=job)
    tx.run("delete_job", job=job)
    _mark(tx, named, now)
    return sum(row["size"] for row in named)


def _mark(tx: Tx, named: list[sqlite3.Row], now: float) -> None:
    if named:
        tx.run("mark_blobs", hashes=json.dumps([row["sha256"] for row in named]), now=now)
