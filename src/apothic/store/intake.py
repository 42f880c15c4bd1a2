"""How jobs come in: checked, numbered and stored, any number of them in a few statements."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from functools import lru_cache
from typing import Any

from msgspec import Struct

from apothic.errors import ConflictError, InvalidRequestError, NotFoundError, QueueFullError
from apothic.protocol import ids
from apothic.protocol.messages import CallOptions, Encoding
from apothic.protocol.services import described
from apothic.protocol.session import Packed
from apothic.store import views
from apothic.store.attempts import Moves
from apothic.store.room import Room
from apothic.store.tx import Tx, dumps

KEY_S = 86400.0  # how long an idempotency key is kept at the least: a job may go before
HOLD_S = 60.0  # how long items are kept for a reader whose connection is lost, or that is still to come


class NewJob(Struct, frozen=True, kw_only=True):
    """All that a submit brings, checked and packed."""

    function_id: str
    input: Packed
    accept: tuple[Encoding, ...]
    options: CallOptions
    deployment_id: str | None = None
    idempotency_key: str | None = None
    parent: str | None = None
    retry_of: str | None = None
    attached: bool = False  # items are kept for its caller


class Intake:
    """Takes the jobs of one submit in, all of one function and deployment; holds begin at `monotonic`."""

    def __init__(self, tx: Tx, moves: Moves, room: Room, monotonic: float) -> None:
        self._tx = tx
        self._moves = moves
        self._room = room
        self._monotonic = monotonic
        self.refused: QueueFullError | None = None  # why there was no room for all
        self.stored = 0  # how many are new

    def take(self, batch: list[NewJob]) -> list[str]:
        """Store as many as the queue has room for, the first ones; return their ids, or those that their keys have.

        Raises `NotFoundError`, `ConflictError`, `InvalidRequestError`, `StorageFullError`.
        """
        known = self._by_key(batch) if batch else {}
        taken: list[str] = []
        rows: list[tuple[Any, ...]] = []
        version: sqlite3.Row | None = None
        first = room = 0
        for new in batch:
            input_hash = hash_of(new.input)
            # Before all else: a submit that is sent again gets its job, also when the app was stopped in between.
            earlier = known.get(new.idempotency_key) if new.idempotency_key is not None else None
            if earlier is not None:
                taken.append(_same(*earlier, input_hash, new.idempotency_key))
                continue
            if version is None:
                version = self._version(new)
                room = version["max_pending"] - version["waiting"]
                shared = _shared(new, version, self._moves.now)
                counted = self._tx.one("last_job")
                first = 1 + (counted[0] if counted is not None else 0)
            if len(rows) >= room:
                self.refused = _full(version)
                break
            self._check_blob(new.input)
            job = ids.new_job(self._moves.now)
            self._tx.reach("submit.before")
            about = (views.encode(new.input), new.input.sha256, input_hash, new.idempotency_key)
            rows.append((first + len(rows), job, *shared, *about, new.parent, new.retry_of))
            taken.append(job)
            if new.idempotency_key is not None:
                known[new.idempotency_key] = job, input_hash
        if rows:
            self._store(rows, attached=batch[0].attached)
        return taken

    def _by_key(self, batch: list[NewJob]) -> dict[str, tuple[str, str]]:
        """Return the jobs that have one of the keys already: id and hash of the input."""
        keys = [new.idempotency_key for new in batch if new.idempotency_key is not None]
        if not keys:
            return {}
        asked = {"function_id": batch[0].function_id, "keys": dumps(keys)}
        found = self._tx.all("gone_jobs_by_key", since=self._moves.now - KEY_S, **asked)
        return {key: (job, input_hash) for key, job, input_hash in (*found, *self._tx.all("jobs_by_key", **asked))}

    def _version(self, new: NewJob) -> sqlite3.Row:
        self._room.check()
        version = self._tx.one("version_for_submit", function_id=new.function_id, deployment_id=new.deployment_id)
        if version is None or version["stopped"]:
            raise NotFoundError(
                f"there is no function {new.function_id} that takes jobs",
                hint="deploy its app (again), and look it up by app and name",
            )
        if version["serves"]:
            where = f"{version['app']}.{version['name']}"
            raise InvalidRequestError(
                f"{where} is {described(views.spec(version['spec']).kind)} and runs no jobs", hint="ask its URL"
            )
        return version

    def _check_blob(self, value: Packed) -> None:
        if value.sha256 is not None and not self._tx.all("known_blobs", hashes=json.dumps([value.sha256])):
            raise InvalidRequestError(
                f"the input's blob {value.sha256} is not here", hint="PUT /v1/blobs/{sha256} before the submit"
            )

    def _store(self, rows: list[tuple[Any, ...]], *, attached: bool) -> None:
        self._tx.many("insert_job", rows)
        self.stored = len(rows)
        for row in rows:
            self._moves.queue(row[0], row[1])
        if attached:
            for row in rows:
                self._tx.run("insert_hold", job=row[0], until=self._monotonic + HOLD_S)
        self._tx.reach("submit.after")


def hash_of(value: Packed) -> str:
    """Return what tells two inputs apart."""
    body = value.sha256 or hashlib.sha256(value.data or b"").hexdigest()
    return f"{value.encoding}:{body}"


def _shared(new: NewJob, version: sqlite3.Row, now: float) -> tuple[Any, ...]:
    """Return the columns that all jobs of a submit have in common."""
    asked, given = new.options, views.spec(version["spec"]).options
    return (
        version["id"],
        new.function_id,
        now,
        asked.run_at if asked.run_at is not None and asked.run_at > now else 0.0,
        now + asked.expires_in_s if asked.expires_in_s is not None else None,
        asked.timeout_s if asked.timeout_s is not None else float(given.timeout_s),
        views.encode(asked.retries or given.retries or views.no_retries()),
        asked.delivery,
        _accepted(new.accept),
    )


@lru_cache(64)
def _accepted(encodings: tuple[Encoding, ...]) -> str:
    return json.dumps(encodings)


def _same(job: str, hash_before: str, input_hash: str, key: str | None) -> str:
    if hash_before != input_hash:
        raise ConflictError(
            f"the idempotency key {key!r} belongs to job {job}, which has another input",
            hint="use a fresh key for a new input",
            details={"job": job},
        )
    return job


def _full(version: sqlite3.Row) -> QueueFullError:
    return QueueFullError(
        f"{version['app']}.{version['name']} has {version['waiting']} jobs waiting, its max_pending_tasks",
        hint="wait a little and submit again, or raise max_pending_tasks",
        details={"retry_after_s": 1.0},
    )
