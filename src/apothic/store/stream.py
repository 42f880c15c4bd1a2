"""A job's event log as it is read (and a deployment's): one rule of resuming, one code path of both transports.

Let F be the types asked for (all if none is named), c the cursor (all up to it has been dealt with), R the highest
index ever trimmed of a type in F. A page is read in one snapshot of the database:

1. c is above the head: declare `cursor_ahead`, go on from -1. A job that has ended simply has nothing more.
2. R > c: what is kept of F up to R, then one reset that has R for its id. A reader that is cut off before it still owes
   it, because c < R; one that is cut off after it is not told twice; and nothing that is kept is passed over.
3. Items of F that begin again in a new attempt: the same, at the status event that opened the attempt.
4. Otherwise what is kept of F behind c. Who has read all of it stands at the head, filtered or not (Kubernetes'
   KEP-956: a filtered reader whose place is its last match falls out of the window without having lost anything).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from apothic.protocol.events import DEPLOYMENT_STATUS, END, ITEM, NUMBERED, STORED
from apothic.protocol.messages import JobView
from apothic.store.db import Database
from apothic.store.jobs import Jobs, absent, found
from apothic.store.rollout import no_deployment
from apothic.store.tx import Tx, dumps

# A connection holds at most one page: what a slow reader costs in memory.
PAGE_BYTES = 256 * 1024
FEW_EVENTS = 50  # of which a page is read on the event loop
PAGE_EVENTS = 1_000
WINDOW_ROTATED, CURSOR_AHEAD, ATTEMPT_RESTARTED = "window_rotated", "cursor_ahead", "attempt_restarted"


@dataclass(frozen=True)
class Page:
    """What comes next in a stream: a snapshot, events (index, type, JSON), a reset (id, JSON), in this order.

    `next_index` is the cursor behind it. `more` tells that it stops before the head, `end` that nothing follows ever.
    """

    next_index: int
    head: int
    end: bool
    more: bool = False
    events: list[tuple[int, str, str]] = field(default_factory=list)
    reset: tuple[int, str] | None = None
    snapshot: str | None = None
    oldest: int | None = None


@dataclass(frozen=True)
class Wish:
    """What a reader asks for: of which job, behind which cursor, which types, how many at the most.

    Of a deployment there is one type of event, and nothing but its events.
    """

    job: str
    after: int | None = None
    types: tuple[str, ...] = ()
    snapshot: bool = False
    limit: int = PAGE_EVENTS
    oldest: bool = False  # say the lowest index that is kept; it takes a search
    deployment: bool = False  # `job` is the id of one

    @property
    def wanted(self) -> tuple[str, ...]:
        """Return the stored types that are sent."""
        return tuple(kind for kind in STORED if not self.types or kind in self.types or kind == END)


class Stream:
    """Reads pages of jobs' event logs."""

    def __init__(self, db: Database, jobs: Jobs) -> None:
        self._db = db
        self._jobs = jobs

    async def page(self, wish: Wish) -> Page:
        """Return what comes next. Raises `NotFoundError`."""
        if wish.deployment:
            return await self._db.read(lambda tx: read_rollout(tx, wish))
        page = self._db.look(lambda tx: self._few(tx, wish))
        return page if page is not None else await self._db.read(lambda tx: read_page(tx, wish, self._jobs.view))

    def _few(self, tx: Tx, wish: Wish) -> Page | None:
        """Read a page that is short; `None` for another, or one whose snapshot may count all jobs that wait."""
        if wish.snapshot:
            return None
        if wish.limit > FEW_EVENTS:
            job = tx.one("streamed_job", id=wish.job)
            if job is not None and job["next_index"] - 1 - (wish.after if wish.after is not None else -1) > FEW_EVENTS:
                return None
        return read_page(tx, wish, self._jobs.view)


def read_page(tx: Tx, wish: Wish, view: Callable[[Tx, sqlite3.Row], JobView]) -> Page:
    """Read what comes next, in the transaction's snapshot. Raises `NotFoundError`, `JobGoneError`."""
    tx.reach("page.read")
    job = tx.one("streamed_job", id=wish.job)
    if job is None:
        raise absent(tx, wish.job)
    head = int(job["next_index"]) - 1
    snapshot = _snapshot(tx, job, view(tx, found(tx, wish.job))) if wish.snapshot else None
    after = wish.after if wish.after is not None else (head if wish.snapshot else -1)
    oldest = _oldest(tx, job, wish.wanted) if wish.oldest else None
    if job["ended_at"] is not None and after >= head:
        return Page(after, head, end=True, snapshot=snapshot, oldest=oldest)
    windows = {row["type"]: row for row in tx.all("windows", job=job["seq"]) if row["type"] in wish.wanted}
    if after > head:
        told = _reset(tx, job, wish, CURSOR_AHEAD, after, -1, windows)
        return Page(-1, head, end=False, more=True, reset=(-1, told), snapshot=snapshot, oldest=oldest)
    stop, reason = _stop(tx, job["seq"], after, windows)
    upto = head if stop is None else stop
    events, whole = _events(tx, job["seq"], wish, after, upto)
    place = upto if whole else events[-1][0]
    reset = None
    if whole and stop is not None:
        reset = (stop, _reset(tx, job, wish, reason, after, stop, windows))
    return Page(
        place, head, end=job["ended_at"] is not None and place >= head, more=place < head, events=events, reset=reset,
        snapshot=snapshot, oldest=oldest,
    )  # fmt: skip


def read_rollout(tx: Tx, wish: Wish) -> Page:
    """Read what became of a deployment, of which nothing is ever trimmed. Raises `NotFoundError`."""
    newest = tx.one("newest_deployment_event", id=wish.job)
    if newest is None:
        raise no_deployment(wish.job)
    head, after = int(newest["idx"]), wish.after if wish.after is not None else -1
    oldest = 0 if wish.oldest else None
    if after > head:
        told = {
            "reason": CURSOR_AHEAD, "requested_index": after, "resume_index": -1, "oldest_index": 0,
            "head_index": head, "retained_from": {}, "trimmed": {}, "status": newest["status"],
        }  # fmt: skip
        return Page(-1, head, end=False, more=True, reset=(-1, dumps(told)), oldest=oldest)
    rows = tx.all("deployment_events", id=wish.job, after=after, limit=max(1, min(wish.limit, PAGE_EVENTS)))
    place = int(rows[-1]["idx"]) if rows else head
    events = [(int(row["idx"]), DEPLOYMENT_STATUS, str(row["data"])) for row in rows]
    return Page(place, head, end=False, more=place < head, events=events, oldest=oldest)


def _stop(tx: Tx, job: int, after: int, windows: dict[str, sqlite3.Row]) -> tuple[int | None, str]:
    """Return the next place behind `after` at which something has to be declared, and what."""
    gap = max((row["trimmed"] for row in windows.values()), default=-1)
    again = tx.one("next_restart", job=job, after=after) if ITEM in windows else None
    opened = again[0] if again is not None else None
    if opened is not None and not after < gap < opened:
        return opened, ATTEMPT_RESTARTED
    return (gap, WINDOW_ROTATED) if gap > after else (None, "")


def _events(tx: Tx, job: int, wish: Wish, after: int, upto: int) -> tuple[list[tuple[int, str, str]], bool]:
    """Return what is kept of the types behind `after` up to `upto`, and whether that is all of it."""
    types = dumps(wish.wanted) if len(wish.wanted) < len(STORED) else None
    limit = max(1, min(wish.limit, PAGE_EVENTS))
    asked = {"job": job, "after": after, "upto": upto, "types": types, "limit": limit + 1, "bytes": PAGE_BYTES}
    row = tx.one("page", **asked)
    assert row is not None, "an aggregate has one row"
    count, text = row
    if count == 0:
        return [], True
    if text is None:
        cut = tx.one("page_cut", **asked)
        assert cut is not None
        text = cut[0]
    found = [(int(index), kind, data) for index, kind, data in (one.split("\x1f") for one in text.split("\x1e"))]
    return found[:limit], len(found) == count <= limit


def _reset(
    tx: Tx, job: sqlite3.Row, wish: Wish, reason: str, after: int, resume: int, windows: dict[str, sqlite3.Row]
) -> str:
    retained: dict[str, int] = {}
    for kind, row in windows.items():
        first = tx.one("first_event", job=job["seq"], type=kind, trimmed=row["trimmed"])
        number = msgspec.json.decode(first["data"])[NUMBERED[kind]] if first is not None else None
        retained[kind] = number if number is not None else row["kept"] + row["lost"]
    return dumps(
        {
            "reason": reason,
            "requested_index": after,
            "resume_index": resume,
            "oldest_index": _oldest(tx, job, wish.wanted),
            "head_index": job["next_index"] - 1,
            "retained_from": retained,
            "trimmed": {kind: row["trimmed"] for kind, row in windows.items() if row["trimmed"] > after},
            "status": job["status"],
            "attempt": job["attempt"],
        }
    )


def _oldest(tx: Tx, job: sqlite3.Row, wanted: tuple[str, ...]) -> int | None:
    row = tx.one("oldest_of_types", job=job["seq"], types=dumps(wanted))
    return row[0] if row is not None else None


def _snapshot(tx: Tx, job: sqlite3.Row, view: JobView) -> str:
    """Return the job's state, without logs and items, as JSON."""
    windows = {row["type"]: row for row in tx.all("windows", job=job["seq"])}
    result: Any = None
    error: Any = None
    if job["ended_at"] is not None:
        # An ended job's last three events are its status, its outcome and its end.
        row = tx.one("outcome_event", job=job["seq"], since=job["next_index"] - 2)
        assert row is not None, f"{view.id} has an outcome"
        told: dict[str, msgspec.Raw] = msgspec.json.decode(row["data"], type=dict[str, msgspec.Raw])
        if row["type"] == "job.error":
            error = told
        else:
            result = {name: told[name] for name in ("value", "ref") if name in told}
    return dumps(
        {
            "as_of_index": job["next_index"] - 1,
            "status": view.status,
            "attempt": view.attempt,
            "created_at": view.created_at,
            "started_at": view.started_at,
            "ended_at": view.ended_at,
            "cancel_requested": view.status == "cancelling",
            "oldest_index": _oldest(tx, job, STORED),
            "trimmed": {kind: row["trimmed"] for kind, row in windows.items() if row["trimmed"] >= 0},
            "counts": {kind: row["kept"] + row["lost"] for kind in NUMBERED if (row := windows.get(kind))}
            | {kind: 0 for kind in NUMBERED if kind not in windows},
            "result": result,
            "error": error,
            **{name: told for name in ("reason", "ahead") if (told := getattr(view, name)) is not None},
        }
    )
