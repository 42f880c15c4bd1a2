"""Why a job is not at work, and how many are before it: in its view, in snapshots of its stream, in `job show`."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from apothic.protocol.lifecycle import CLAIMABLE, Status
from apothic.store import views
from apothic.store.tx import Tx


class Why(NamedTuple):
    """One of the reasons that docs/lifecycle.md lists, and how many jobs are before it."""

    reason: str | None = None
    ahead: int | None = None


def why(tx: Tx, job: sqlite3.Row, now: float) -> Why:
    """Return why the job of a `job_view` row does not run at this moment; nothing for one that does, or has ended."""
    status = Status(job["status"])
    if status in CLAIMABLE:
        if job["run_at"] > now:
            return Why("backoff" if status == Status.RETRYING else "delayed")
        ahead = tx.one("job_ahead", version=job["version"], seq=job["seq"], now=now)
        limit = tx.one("version_limit", version=job["version"])
        assert ahead is not None and limit is not None
        return Why("concurrency_limit" if limit["used"] >= limit["max_containers"] else "no_capacity", ahead[0])
    if status not in (Status.STARTING, Status.RUNNING):
        return Why()
    at = tx.one("work_of_job", job=job["seq"])
    if at is None:
        return Why()
    if status == Status.RUNNING:
        return Why("paused") if at["paused"] else Why()
    if at["state"] == "starting":
        return Why("building_env")
    return Why("batching") if views.spec(job["spec"]).options.batching is not None else Why()
