"""Items that are kept for one attached reader until it has them. Each method is one transaction.

A hold begins with the job, and ends when its reader has been gone for `HOLD_S`, with all of it or not. How far the
connection has got is remembered in memory, for the writer's trims; the database's own mark is older, so at worst more
is kept than need be.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable

from apothic.clock import Clock
from apothic.protocol.session import Resume
from apothic.store import events
from apothic.store.db import Database
from apothic.store.intake import HOLD_S
from apothic.store.jobs import Jobs
from apothic.store.tx import Tx

Push = Callable[[str, Resume], None]  # (agent id, frame), called on the loop after the commit

# What was sent may still be on its way when a connection is cut, and its reader comes back for it. Linux lets a
# connection buffer 4 MiB where it is written and 6 MiB where it is read; a proxy in between has less.
ON_ITS_WAY_BYTES = 16 * 1024 * 1024
_MARK_BYTES = 64 * 1024


class Holds:
    """The table of holds. `push` tells an agent that a generator may go on."""

    def __init__(self, db: Database, clock: Clock, jobs: Jobs, push: Push) -> None:
        self._db = db
        self._clock = clock
        self.readers = jobs.readers
        self._push = push
        self._renewed_at = 0.0

    async def restart(self) -> None:
        """Begin a control plane's life: no reader is connected, each has its time to come back."""
        await self._db.write(lambda tx: tx.run("restart_holds", until=self._until()))

    async def attach(self, job_id: str, cursor: int) -> Held | None:
        """Note that the reader is connected and has had all up to `cursor`; `None` when nothing is kept for it."""

        row = self._db.look(lambda tx: tx.one("held_job", id=job_id))
        if row is None:
            return None
        if row["paused"]:
            self.readers.waiting.add(row["seq"])
        # A commit would be a third of the time to the first item, and the sweep renews in time.
        if row["until"] - self._clock.monotonic() < HOLD_S / 2:
            await self._renew(row["seq"], cursor)
        return Held(self, job_id, row["seq"], cursor)

    async def caught_up(self, job_id: str) -> None:
        """Let go of what its reader has; when little enough is left, let the generator go on that waits for it."""

        def write(tx: Tx) -> None:
            row = tx.one("held_job", id=job_id)
            if row is None or not row["paused"]:
                return
            items = events.window(tx, row["seq"], events.ITEM)
            items.trim(tx, row["seq"], row["stream_window"], self.readers.sent.get(row["seq"], -1))
            if items.bytes <= events.HELD_BYTES:
                tx.run("pause_hold", job=row["seq"], paused=False)
                self.readers.waiting.discard(row["seq"])
                self._resume(tx, row["agent_id"], row["token"])

        await self._db.write(write)

    async def lost(self, job: int, sent: int) -> None:
        """Give a reader whose connection is lost its time to come back."""
        await self._renew(job, sent)

    async def end(self, job_id: str) -> None:
        """Keep nothing more for this reader: the ordinary window holds."""
        await self._db.write(lambda tx: self._end(tx, job_id))

    async def sweep(self, at: float | None = None) -> None:
        """Renew the holds of readers that are connected; end those of readers that have not come back by a moment of
        the monotonic clock.
        """
        now = self._clock.monotonic() if at is None else at
        if self.readers.sent and now - self._renewed_at > HOLD_S / 3:
            connected = json.dumps(list(self.readers.sent))
            await self._db.write(lambda tx: tx.run("renew_holds", jobs=connected, until=self._until()))
            self._renewed_at = now

        def write(tx: Tx) -> None:
            for row in tx.all("lapsed_holds", now=now):
                self._end(tx, row["id"])

        if await self._db.read(lambda tx: bool(tx.all("lapsed_holds", now=now))):
            await self._db.write(write)

    async def _renew(self, job: int, sent: int) -> None:
        def write(tx: Tx) -> None:
            tx.reach("hold.before")
            tx.run("renew_hold", job=job, sent=sent, until=self._until())
            tx.reach("hold.after")

        await self._db.write(write)

    def _until(self) -> float:
        return self._clock.monotonic() + HOLD_S

    def _end(self, tx: Tx, job_id: str) -> None:
        row = tx.one("held_job", id=job_id)
        if row is None:
            return
        tx.reach("hold.before")
        tx.run("end_hold", job=row["seq"])
        events.release(tx, row["seq"], row["stream_window"])
        tx.reach("hold.after")
        if row["paused"]:
            self._resume(tx, row["agent_id"], row["token"])
        self.readers.sent.pop(row["seq"], None)
        self.readers.waiting.discard(row["seq"])

    def _resume(self, tx: Tx, agent: str | None, token: str | None) -> None:
        if agent is not None and token is not None:
            tx.then(lambda: self._push(agent, Resume(token=token)))


class Held:
    """The hold of one connected reader."""

    def __init__(self, holds: Holds, job_id: str, job: int, cursor: int) -> None:
        self._holds = holds
        self._job_id = job_id
        self._job = job
        self._total = 0
        self._marks: deque[tuple[int, int]] = deque()  # a cursor, and how many bytes had been sent up to it
        self._holds.readers.sent[job] = cursor

    async def sent(self, cursor: int, size: int) -> None:
        """Note that the connection was sent everything up to `cursor`, in so many bytes more.

        Lets a generator go on that waits for this reader.
        """
        marks, before = self._marks, self._total
        self._total += size
        if len(marks) > 1 and before - marks[-2][1] < _MARK_BYTES:
            marks[-1] = cursor, self._total
        else:
            marks.append((cursor, self._total))
        while marks and self._total - marks[0][1] >= ON_ITS_WAY_BYTES:
            self._holds.readers.sent[self._job] = marks.popleft()[0]
        if self._job in self._holds.readers.waiting:
            await self._holds.caught_up(self._job_id)

    async def close(self) -> None:
        """Note that the connection is gone. Its reader may come back for what was on its way."""
        sent = self._holds.readers.sent.pop(self._job, -1)
        await self._holds.lost(self._job, sent)
