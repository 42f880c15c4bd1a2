"""Jobs: submit, look, cancel, list. Each method is one transaction."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from msgspec import Struct

from apothic.clock import Clock
from apothic.errors import ApothicError, ConflictError, JobGoneError, NotFoundError
from apothic.protocol.lifecycle import CLAIMABLE, FINAL, Status
from apothic.protocol.messages import CallOptions, Failure, JobLogs, JobView, ListJobs
from apothic.protocol.session import Packed
from apothic.store import events, views
from apothic.store.attempts import Moves
from apothic.store.db import Database
from apothic.store.intake import Intake, NewJob
from apothic.store.pace import Pace
from apothic.store.readers import Readers
from apothic.store.reasons import why
from apothic.store.room import Room
from apothic.store.turns import Turns
from apothic.store.tx import Tx

Ring = Callable[[str], None]
LARGEST_PAGE = 1000
LARGEST_LOOK = 200  # jobs that are looked up on the event loop: a millisecond or two


class Ended(Struct, frozen=True, kw_only=True):
    """A job, and its value when it has one."""

    job: JobView
    value: Packed | None = None


class Taken(NamedTuple):
    """A job that was submitted, now or earlier under the same idempotency key."""

    id: str
    is_new: bool


class Running(NamedTuple):
    """An attempt that holds a lease, and the agent that runs it."""

    job: str
    token: str
    agent: str


class Jobs:
    """The table of jobs. `ring(job_id)` is called on the loop after each commit that moved a job."""

    def __init__(self, db: Database, clock: Clock, ring: Ring, dice: random.Random) -> None:
        self._db = db
        self._clock = clock
        self._ring = ring
        self._dice = dice
        self.pace = Pace()
        self.turns = Turns()
        self.readers = Readers()
        self.room = Room()
        self.refusals = 0  # of jobs that nothing can ever run

    def moves(self, tx: Tx) -> Moves:
        """Return the mover for a transaction; what it moved is rung after the commit."""
        moves = Moves(tx, self._clock.now(), self._dice.random(), self.pace, self.readers)

        def ring() -> None:
            for job in dict.fromkeys(moves.moved):
                self._ring(job)

        tx.then(ring)
        return moves

    async def submit(self, new: NewJob) -> str:
        """Store a job as queued; return its id, or the id of the one that has the same idempotency key.

        Raises `NotFoundError`, `QueueFullError`, `ConflictError` (the key belongs to another input),
        `StorageFullError`.
        """
        return (await self.take(new)).id

    async def take(self, new: NewJob) -> Taken:
        """Do as `submit`, and tell whether the job is new, and was not refused by the very commit that took it in."""
        refusals = self.refusals
        taken = await self._db.write(lambda tx: self._take(tx, new))
        return taken if self.refusals == refusals else taken._replace(is_new=False)

    def submit_within(self, tx: Tx, new: NewJob) -> str:
        """Submit in a transaction that is open already."""
        return self._take(tx, new).id

    def _take(self, tx: Tx, new: NewJob) -> Taken:
        intake = self._intake(tx)
        taken = intake.take([new])
        if intake.refused is not None:
            raise intake.refused
        return Taken(taken[0], is_new=intake.stored > 0)

    async def submit_batch(self, batch: list[NewJob]) -> list[str]:
        """Store as many jobs of one function as the queue has room for, the first ones; return their ids.

        Raises as `submit` does, but for a full queue.
        """
        return await self._db.write(lambda tx: self._intake(tx).take(batch))

    def _intake(self, tx: Tx) -> Intake:
        return Intake(tx, self.moves(tx), self.room, self._clock.monotonic())

    async def show(self, job_id: str) -> JobView:
        """Return one job, and why it waits if it does. Raises `NotFoundError`."""

        def read(tx: Tx) -> JobView:
            return self.view(tx, found(tx, job_id))

        # Why a job waits may take a count of all that wait before it: 30 ms behind 100,000.
        waits = self._db.look(lambda tx: found(tx, job_id)["status"] in CLAIMABLE)
        return await self._db.read(read) if waits else self._db.look(read)

    async def ended(self, job_ids: list[str]) -> tuple[list[Ended], list[str]]:
        """Return those of the jobs that have ended, in the given order, and those of the ids that are no job's."""
        if not job_ids:
            return [], []

        def read(tx: Tx) -> tuple[list[Ended], list[str]]:
            ids = json.dumps(job_ids)
            known = {row[0] for row in tx.all("known_jobs", ids=ids)}
            unknown = [job for job in job_ids if job not in known] if len(known) < len(job_ids) else []
            return [_ended(row) for row in tx.all("ended_jobs", ids=ids)], unknown

        return self._db.look(read) if len(job_ids) <= LARGEST_LOOK else await self._db.read(read)

    async def missing(self, job_ids: list[str]) -> ApothicError:
        """Return the error for jobs none of which is here: those that never were come first."""

        def read(tx: Tx) -> ApothicError:
            went = {row[0] for row in tx.all("gone_jobs", ids=json.dumps(job_ids))}
            never = [job for job in job_ids if job not in went]
            error = no_job(never[0]) if never else absent(tx, job_ids[0])
            error.details["jobs"] = (never or job_ids)[:100]
            return error

        return await self._db.read(read)

    async def remains(self, job_id: str) -> JobView:
        """Return what is left of a job past its retention. Raises `NotFoundError`."""

        def read(tx: Tx) -> JobView:
            row = tx.one("gone_job", id=job_id)
            if row is None:
                raise no_job(job_id)
            return views.job(row)

        return await self._db.read(read)

    async def whose(self, job_id: str) -> tuple[str, str]:
        """Return the app and the function of a job, also of one past its retention. Raises `NotFoundError`."""
        row = self._db.look(lambda tx: tx.one("function_of_job", id=job_id))
        if row is None:
            raise no_job(job_id)
        return row["app"], row["name"]

    async def result(self, job_id: str) -> Ended:
        """Return one job as it stands, with its value once it has succeeded. Raises `NotFoundError`."""
        return self._db.look(lambda tx: _ended(found(tx, job_id)))

    async def logs(self, job_id: str, *, after: int, limit: int) -> JobLogs:
        """Return the retained lines with a number above `after`. Raises `NotFoundError`."""
        return await self._db.read(
            lambda tx: events.read_logs(tx, found(tx, job_id), after=after, limit=max(0, min(limit, 10_000)))
        )

    async def list(self, ask: ListJobs) -> tuple[list[JobView], str | None]:
        """Return a page, newest first, and the cursor of the next one."""
        limit = max(1, min(ask.limit, LARGEST_PAGE))

        def read(tx: Tx) -> tuple[list[JobView], str | None]:
            rows = _listed(tx, ask, found(tx, ask.after)["seq"] if ask.after else events.FOREVER, limit + 1)
            page = [views.job(row) for row in rows[:limit]]
            return page, page[-1].id if len(rows) > limit else None

        return await self._db.read(read)

    async def cancel(self, job_id: str) -> tuple[Status, Running | None]:
        """Ask for a job's end; return its status, and the attempt that has to be told, if one runs.

        Raises `NotFoundError`.
        """

        def write(tx: Tx) -> tuple[Status, Running | None]:
            row = tx.one("job_row", id=job_id)
            if row is None:
                raise absent(tx, job_id)
            tx.reach("cancel.before")
            status = self.moves(tx).cancel(row)
            tx.reach("cancel.after")
            container = tx.one("container", id=row["container_id"])
            return status, None if container is None else Running(job_id, row["token"], container["agent_id"])

        return await self._db.write(write)

    async def again(self, job_id: str) -> NewJob:
        """Return an ended job's input as a new submit. Raises `ConflictError` while it has not ended."""

        def read(tx: Tx) -> NewJob:
            row = found(tx, job_id)
            if Status(row["status"]) not in FINAL:
                raise ConflictError(
                    f"{job_id} is {row['status']}; only an ended job can be retried", hint="cancel it first"
                )
            return NewJob(
                function_id=row["function_id"],
                input=views.packed(row["input"]),
                accept=tuple(json.loads(row["accept"])),
                options=CallOptions(
                    timeout_s=row["timeout_s"], retries=views.retries(row["retries"]), delivery=row["delivery"]
                ),
                retry_of=job_id,
            )

        return await self._db.read(read)

    async def unfinished(self) -> bool:
        """Tell whether any job has not ended."""
        return await self._db.read(lambda tx: bool(tx.all("unfinished_jobs")[0][0]))

    async def clock_put_back(self, by_s: float) -> None:
        """Move back-offs with a wall clock that was put back: an hour more would be a hundred times their length.

        An instant that a caller has named, and a queue deadline, stay as they are.
        """
        await self._db.write(lambda tx: tx.run("clock_put_back", by=by_s, now=self._clock.now()))

    async def expire(self) -> None:
        """Fail what was not begun before its queue deadline."""

        def write(tx: Tx) -> None:
            moves = self.moves(tx)
            for row in tx.all("expired_jobs", now=moves.now):
                late = Failure(kind="expired", type="QueueDeadline", message="not begun before its queue deadline")
                moves.fail_waiting(row, late)

        await self._db.write(write)

    def view(self, tx: Tx, row: sqlite3.Row) -> JobView:
        """Return a job of a `job_view` row, and why it waits if it does."""
        told = why(tx, row, self._clock.now())
        return views.job(row, reason=told.reason, ahead=told.ahead)


def found(tx: Tx, job_id: str) -> sqlite3.Row:
    """Return a job's row. Raises `NotFoundError`, `JobGoneError`."""
    row = tx.one("job_view", id=job_id)
    if row is None:
        raise absent(tx, job_id)
    return row


def _listed(tx: Tx, ask: ListJobs, before: int, limit: int) -> list[sqlite3.Row]:
    """Read a page by whatever of it is fewest: one query that fits all looked at every job there is."""
    asked = {"before": before, "status": ask.status, "limit": limit}
    of = {"function": ask.function, "app": ask.app}
    if ask.status is not None and ask.status not in FINAL:
        return tx.all("list_unfinished", **asked, **of)
    if ask.status is not None and ask.status != Status.SUCCEEDED:
        return tx.all("list_ended_badly", **asked, **of)
    if ask.function is not None or ask.app is not None:
        return tx.all("list_jobs_of", **asked, **of)
    return tx.all("list_jobs", **asked)


def absent(tx: Tx, job_id: str) -> ApothicError:
    """Return the error for a job that is not here: it is past its retention, or it never was."""
    row = tx.one("gone_job", id=job_id)
    return no_job(job_id) if row is None else gone(job_id, row["gone_at"])


def gone(job_id: str, at: float) -> JobGoneError:
    """Return the error for a job past its retention."""
    when = datetime.fromtimestamp(at, UTC).isoformat(" ", "seconds").replace("+00:00", " UTC")
    return JobGoneError(
        f"{job_id} is past its retention: it was deleted at {when}",
        hint="the server's retention_days and disk_ceiling say how long ended jobs are kept",
        details={"job": job_id, "gone_at": at},
    )


def no_job(job_id: str) -> NotFoundError:
    """Return the error for an id that is no job's."""
    return NotFoundError(f"there is no job {job_id}", hint="`apothic job list` shows those that are kept")


def _ended(row: sqlite3.Row) -> Ended:
    return Ended(job=views.job(row), value=views.packed(row["result"]) if row["result"] is not None else None)
