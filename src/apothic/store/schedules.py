"""Schedules: a job for each tick of a live deployment, once, and a row that says what became of it."""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Callable

import msgspec

from apothic.clock import Clock
from apothic.errors import ApothicError
from apothic.protocol import ticks, values
from apothic.protocol.messages import CallOptions
from apothic.protocol.specs import Cron, Period
from apothic.store import views
from apothic.store.db import Database
from apothic.store.intake import NewJob
from apothic.store.jobs import Jobs
from apothic.store.tx import Tx

log = logging.getLogger("apothic.store")

# A tick that was missed by more than this makes no job any more.
CATCH_UP_S = 3600.0
# How many ticks of a function are kept. At one a minute that is most of a day, and what is kept is looked through at
# each tick for a job that still runs, which takes 1 ms.
KEPT = 1_000


class Schedules:
    """What comes round by itself, by wall time.

    A clock that jumps ahead is a time in which nobody looked. One that jumps back makes no tick again: the next one
    comes when the clock is there, or, after hours, when the schedule says so by the new time. Any number of these may
    look at one database: each tick is looked at in one transaction, and its row is inserted once.
    """

    def __init__(self, db: Database, clock: Clock, jobs: Jobs) -> None:
        self._db = db
        self._clock = clock
        self._jobs = jobs
        self._looked = 0.0

    async def restart(self) -> None:
        """Go by the clock as it is now, whatever it has shown before.

        Live versions that were deployed when schedules had no effect begin theirs.
        """

        def write(tx: Tx) -> None:
            now = self._clock.now()
            for row in tx.all("unscheduled"):
                _alone(tx, row, lambda tx, row: _insert(tx, row, now))
            for row in tx.all("schedules"):
                _alone(tx, row, lambda tx, row: _hurry(tx, row, now))

        await self._db.write(write)

    async def any(self) -> bool:
        """Tell whether anything comes round by itself."""
        return await self._next_tick() is not None

    async def tick(self) -> float | None:
        """Make the jobs whose time has come; return when the next one's comes (wall time), if any does."""
        if self._clock.now() < self._looked - ticks.CORRECTION_S:
            log.warning("schedules.clock_set_back seconds=%d", self._looked - self._clock.now())
            await self.restart()
        self._looked = self._clock.now()
        due = await self._next_tick()
        if due is None or due > self._clock.now():  # nothing is written, so it costs no sync
            return due

        def write(tx: Tx) -> float | None:
            now = self._clock.now()
            for row in tx.all("due_schedules", now=now):
                _alone(tx, row, lambda tx, row: self._come_round(tx, row, now))
            return _next_tick(tx, now)

        return await self._db.write(write)

    async def _next_tick(self) -> float | None:
        return await self._db.read(lambda tx: _next_tick(tx, 0.0))

    def _come_round(self, tx: Tx, row: sqlite3.Row, now: float) -> None:
        """Let the newest tick that is due make a job; of those before it, note the newest as missed."""
        tx.reach("tick.before")
        schedule, since, first = _schedule(row), row["since"], row["next_at"]
        assert schedule is not None
        newest = ticks.newest(schedule, since, first, now)
        assert newest is not None
        earlier = ticks.newest(schedule, since, first, math.nextafter(newest, 0.0))
        if now - newest > CATCH_UP_S:
            self._note(tx, row, newest)
        else:
            if earlier is not None:
                self._note(tx, row, earlier)
            if self._note(tx, row, newest):
                self._run(tx, row, newest)
        tx.run("forget_ticks", function_id=row["function_id"], kept=KEPT)
        following = ticks.after(schedule, since, now)
        if following is None:
            tx.run("delete_schedule", version=row["version"])
        else:
            tx.run("move_schedule", version=row["version"], next_at=following)
        tx.reach("tick.after")

    def _note(self, tx: Tx, row: sqlite3.Row, at: float) -> bool:
        """Take a tick, as missed so far; return whether nobody had it before."""
        return tx.run("insert_tick", function_id=row["function_id"], at=at) > 0

    def _run(self, tx: Tx, row: sqlite3.Row, at: float) -> None:
        function_id, job = row["function_id"], None
        if tx.one("tick_unfinished", function_id=function_id) is not None:
            outcome = "overlap"
        else:
            new = NewJob(
                function_id=function_id, input=values.plain_arguments([], {}), accept=("json", "pickle"),
                options=CallOptions(), deployment_id=row["deployment_id"], idempotency_key=key_of(function_id, at),
            )  # fmt: skip
            try:
                outcome, job = "job", tx.guarded(lambda: self._jobs.submit_within(tx, new))
            except ApothicError:
                outcome = "refused"
        tx.run("set_tick", function_id=function_id, at=at, outcome=outcome, job=job)


def key_of(function_id: str, at: float) -> str:
    """Return the idempotency key of a tick's job."""
    return f"sched:{function_id}:{at:.17g}"


def hand_over(tx: Tx, app: str, deployment_id: str, now: float) -> None:
    """Let the schedules of a deployment that goes live begin, and those of the app's deployment before it end.

    A tick that was due by then, and that nobody has looked at yet, is still made.
    """
    due = {row["function_id"]: row["next_at"] for row in tx.all("schedules_of_app", app=app) if row["next_at"] <= now}
    tx.run("end_schedules", app=app)
    for row in tx.all("versions_of_deployment", id=deployment_id):
        _insert(tx, row, now, due.get(row["function_id"]))


def _alone(tx: Tx, row: sqlite3.Row, deed: Callable[[Tx, sqlite3.Row], None]) -> None:
    """Do it, unless the schedule cannot be read (its zone has left this machine, say): it must hold up no other."""
    try:
        tx.guarded(lambda: deed(tx, row))
    except (ValueError, LookupError, msgspec.MsgspecError):
        log.exception("schedule.failed function=%s", row["function_id"])


def _hurry(tx: Tx, row: sqlite3.Row, now: float) -> None:
    """Bring what comes next forward, where a clock that was ahead had put it off."""
    schedule = _schedule(row)
    assert schedule is not None
    following = ticks.after(schedule, row["since"], now)
    if following is not None and following < row["next_at"]:
        tx.run("move_schedule", version=row["version"], next_at=following)


def _insert(tx: Tx, row: sqlite3.Row, since: float, due: float | None = None) -> None:
    schedule = _schedule(row)
    if schedule is None:
        return
    next_at = due if due is not None else ticks.after(schedule, since, since)
    if next_at is not None:
        tx.run("insert_schedule", version=row["id"], since=since, next_at=next_at)


def _schedule(row: sqlite3.Row) -> Cron | Period | None:
    return views.spec(row["spec"]).options.schedule


def _next_tick(tx: Tx, after: float) -> float | None:
    row = tx.one("next_tick", after=after)
    return row[0] if row is not None else None
