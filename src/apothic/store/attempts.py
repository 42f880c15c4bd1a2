"""The moves of a job: each a conditional UPDATE by the lifecycle table, together with its events.

These are functions of a transaction; `jobs.py` and `fleet.py` open the transactions.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from apothic.errors import ConflictError
from apothic.protocol.lifecycle import FINAL, LEASED, Move, Status
from apothic.protocol.messages import Failure
from apothic.protocol.session import Outcome, Report, Said
from apothic.store import events, views
from apothic.store.db import Tx
from apothic.store.pace import Pace
from apothic.store.readers import Readers
from apothic.store.verdicts import DRAIN_MOVES, Facts, Verdict, after_drain, after_failure


class Moves:
    """Moves jobs inside a transaction. `now` is wall time; `ring` is told of each job that moved, after the commit."""

    def __init__(self, tx: Tx, now: float, dice: float, pace: Pace, readers: Readers) -> None:
        self.tx = tx
        self.now = now
        self.dice = dice
        self.pace = pace
        self.readers = readers
        self.moved: list[str] = []
        self.paused: list[str] = []  # tokens whose generators have to wait for their reader

    def queue(self, job: int, job_id: str) -> None:
        """Record that a job was accepted."""
        events.store(self.tx, job, 0, 1, [(events.STATUS, self._status(Status.QUEUED, 0))])
        self.moved.append(job_id)
        self.tx.queue_changed = True

    def claim(self, job: sqlite3.Row, container_id: str, token: str, expires_at: float) -> int:
        """Give the job's next attempt to a container; return the attempt's number."""
        self.tx.reach("claim.before")
        attempt = int(job["attempt"]) + 1
        opened = self._take(job, Move.CLAIM, attempts=1)
        if attempt > 1 and views.retries(job["retries"]).stream == "restart" and _items(self.tx, job):
            self.tx.run("insert_restart", job=job["seq"], idx=opened)
        self.tx.run(
            "insert_lease",
            job=job["seq"],
            token=token,
            attempt=attempt,
            container_id=container_id,
            expires_at=expires_at,
        )
        self.tx.reach("claim.after")
        return attempt

    def report(self, report: Report, monotonic: float) -> bool:
        """Apply an agent's news of an attempt, once. Return whether its lease still counts."""
        job = self.tx.one("leased_job", token=report.token)
        if job is None or job["id"] != report.job:
            return False
        if report.seq <= job["last_report"]:
            return True
        if report.seq != job["last_report"] + 1:
            # One before it failed to be stored (a full disk): refuse, so that the agent sends both again, in order.
            raise ConflictError(f"{report.job}: report {report.seq} came before report {job['last_report'] + 1}")
        status = Status(job["status"])
        if report.began and status == Status.STARTING:
            self._take(job, Move.BEGIN, started_at=report.at)
            status = Status.RUNNING
        if report.outcome is None:
            # An outcome ends the lease, and with it whatever could come twice.
            self.tx.run("touch_report", job=job["seq"], seq=report.seq)
            self._append(job, report.said)
        else:
            if report.outcome.requeue is not None and not report.outcome.behind:
                # It takes no more work; without this it would be given the same job over and over until it is gone.
                self.tx.run("container_stopping", id=job["container_id"])
            self.end(job, report.outcome, report.said, monotonic, status=status)
        return True

    def end(
        self, job: sqlite3.Row, outcome: Outcome, said: list[Said], monotonic: float, *, status: Status | None = None
    ) -> None:
        """End a leased attempt: its last output, then what becomes of the job. `status` is newer than the row's."""
        self._append(job, said)
        self.tx.reach("release.before")
        facts = self._facts(job, status or Status(job["status"]), outcome)
        if outcome.value is not None and facts.status in (Status.RUNNING, Status.CANCELLING):
            self._succeed(job, outcome, facts)
            if outcome.ran_s > 0:
                self.pace.note(job["version"], outcome.ran_s)
        elif outcome.behind and facts.status == Status.STARTING:
            self._take(job, Move.REQUEUE, reason=outcome.requeue)
            if not self._ending(job["container_id"]):
                self.pace.slow(job["version"])
        elif outcome.failure is not None:
            verdict = after_failure(facts, outcome.failure, self.dice)
            self._fail(job, verdict, outcome.failure)
        else:
            reason = outcome.requeue or "given back"
            verdict = after_drain(facts)
            often = "moved too often" if facts.drains >= DRAIN_MOVES else "the worker is lost"
            often = "it has published items, and may not run again" if facts.once else often
            lost = Failure(kind="worker_lost", type="WorkerLost", message=f"{often}: {reason}")
            self._fail(job, verdict, lost, reason=reason)
        self.tx.run("container_idle", id=job["container_id"], now=monotonic)
        self.tx.reach("release.after")
        self.tx.queue_changed = True

    def cancel(self, job: sqlite3.Row) -> Status:
        """Ask for a job's end; return its status now. A job that has ended, or is being cancelled, stays as it is."""
        status = Status(job["status"])
        if status in FINAL or status == Status.CANCELLING:
            return status
        if status in LEASED:
            self._take(job, Move.CANCEL)
            return Status.CANCELLING
        self._fail(job, Verdict(Move.CANCEL), cancelled())
        self.tx.queue_changed = True
        return Status.CANCELLED

    def fail_waiting(self, job: sqlite3.Row, failure: Failure) -> None:
        """End a job that was never begun."""
        self._fail(job, Verdict(Move.FAIL), failure)
        self.tx.queue_changed = True

    # --- the steps ----------------------------------------------------------------------------------------------

    def _ending(self, container_id: str) -> bool:
        """Tell whether a container makes room for others: what it gives back says nothing of how long its jobs run."""
        container = self.tx.one("container", id=container_id)
        return container is not None and container["state"] == "stopping"

    def _succeed(self, job: sqlite3.Row, outcome: Outcome, facts: Facts) -> None:
        value, attempt = outcome.value, int(job["attempt"])
        assert value is not None
        if facts.published and facts.retries.stream == "replay":
            before, now = _items(self.tx, job), outcome.items or 0
            if now < before:
                message = (
                    f"the attempt yielded {now} items, an earlier one {before}: stream='replay' needs the same again"
                )
                self._fail(job, Verdict(Move.FAIL), Failure(kind="user", type="ReplayDiverged", message=message))
                return
        items = f',"items":{outcome.items}' if outcome.items is not None else ""
        told = (events.RESULT, f'{{"attempt":{attempt},{events.value_text(value)}{items}}}')
        self._finish(job, Move.SUCCEED, told, result=views.encode(value), result_sha256=value.sha256)

    def _fail(self, job: sqlite3.Row, verdict: Verdict, failure: Failure, *, reason: str | None = None) -> None:
        spent: dict[str, Any] = {verdict.budget: 1} if verdict.budget else {}
        if verdict.move == Move.RETRY:
            detail = {"kind": failure.kind, "type": failure.type, "message": failure.message[:500]}
            # No delay at all is 0, "at once"; a delay is an instant of wall time.
            at = self.now + verdict.delay_s if verdict.delay_s > 0 else 0.0
            self._take(job, Move.RETRY, reason="backoff", detail=detail, run_at=at, **spent)
            return
        if verdict.move == Move.REQUEUE:
            self._take(job, Move.REQUEUE, reason=reason, **spent)
            return
        if verdict.move in (Move.BURY, Move.CANCEL):
            failure = cancelled()
        if failure.kind == "worker_lost" and not failure.log_tail:
            # Nobody is left to say what it printed last; the store has it.
            failure = msgspec.structs.replace(failure, log_tail=events.tail(self.tx, job["seq"]))
        failure = _of_attempt(failure, int(job["attempt"]))
        sha256 = failure.payload.sha256 if failure.payload is not None else None
        outcome = (events.ERROR, error_data(failure))
        self._finish(job, verdict.move, outcome, failure=views.encode(failure), failure_sha256=sha256, **spent)

    def _finish(self, job: sqlite3.Row, move: Move, outcome: events.Event, **changes: Any) -> None:
        self.tx.reach("finish.before")
        status, attempt, next_index = self._move(job, move, 3, **changes)
        end: dict[str, Any] = {"status": status.value, "attempts": attempt, "last_index": next_index - 1}
        told = [(events.STATUS, self._status(status, attempt)), outcome, (events.END, end)]
        events.store(self.tx, job["seq"], attempt, next_index, told)
        self.tx.reach("finish.after")

    def _take(self, job: sqlite3.Row, move: Move, *, reason: Any = None, detail: Any = None, **changes: Any) -> int:
        """Make a move that is no end; return the index of its event."""
        status, attempt, next_index = self._move(job, move, 1, **changes)
        data = self._status(status, attempt, reason=reason, detail=detail)
        # A cancel or a retry belongs to the attempt it ends; a claim opens the next.
        events.store(self.tx, job["seq"], attempt, next_index, [(events.STATUS, data)])
        return next_index - 1

    def _move(self, job: sqlite3.Row, move: Move, told: int, **changes: Any) -> tuple[Status, int, int]:
        """Make a move and give out the indices of the `told` events that belong to it."""
        values = dict.fromkeys(("run_at", "started_at", "result", "result_sha256", "failure", "failure_sha256"))
        counts = dict.fromkeys(("attempts", "user_failures", "crashes", "drains"), 0)
        named = {**values, **counts, **changes}
        self.tx.reach("move.before")
        row = self.tx.one("move_job", job=job["seq"], move=move.value, now=self.now, events=told, **named)
        if row is None:
            raise IllegalMove(f"{job['id']} is {job['status']}: it cannot {move.value}")
        self.moved.append(job["id"])
        self.tx.reach("move.after")
        return Status(row["status"]), int(row["attempt"]), int(row["next_index"])

    def _append(self, job: sqlite3.Row, said: list[Said]) -> None:
        if not said:
            return
        held = job["sent"] is not None
        sent = max(job["sent"], self.readers.sent.get(job["seq"], -1)) if held else events.FOREVER
        anew = job["attempt"] > 1 and views.retries(job["retries"]).stream == "restart"
        items = events.append(
            self.tx, job["seq"], int(job["attempt"]), said, job["stream_window"], sent=sent, anew=anew
        )
        if held and items is not None and items.bytes > events.HELD_BYTES:
            self.tx.run("pause_hold", job=job["seq"], paused=True)
            self.readers.waiting.add(job["seq"])
            self.paused.append(job["token"])
        self.moved.append(job["id"])

    def _facts(self, job: sqlite3.Row, status: Status, outcome: Outcome) -> Facts:
        # Whether anything was published matters to generators alone, and of those that succeed to a second attempt.
        asked = outcome.value is None or (outcome.items is not None and job["attempt"] > 1)
        return Facts(
            status=status,
            delivery=job["delivery"],
            retries=views.retries(job["retries"]),
            user_failures=job["user_failures"],
            crashes=job["crashes"],
            drains=job["drains"],
            published=asked and _items(self.tx, job) > 0,
        )

    def _status(self, status: Status, attempt: int, *, reason: Any = None, detail: Any = None) -> dict[str, Any]:
        data: dict[str, Any] = {"status": status.value, "attempt": attempt, "at": self.now}
        if reason is not None:
            data["reason"] = reason
        if detail is not None:
            data["detail"] = detail
        return data


class IllegalMove(Exception):
    """The lifecycle table has no such arrow; nothing was changed."""


def cancelled() -> Failure:
    """Return what a cancelled job's error says."""
    return Failure(kind="cancelled", type="JobCancelled", message="the job was cancelled")


def error_data(failure: Failure) -> dict[str, Any]:
    """Return the data of a job.error event; the exception's own pickle is with the job."""
    data: dict[str, Any] = {
        "kind": failure.kind,
        "type": failure.type,
        "message": failure.message,
        "traceback": failure.traceback,
        "attempt": failure.attempt,
        "retriable": failure.retriable,
    }
    for name in ("cause", "exit"):
        if getattr(failure, name) is not None:
            data[name] = getattr(failure, name)
    if failure.log_tail:
        data["log_tail"] = failure.log_tail
    return data


def _items(tx: Tx, job: sqlite3.Row) -> int:
    """Return how many items of a job were stored so far."""
    return events.window(tx, job["seq"], events.ITEM).count


def _of_attempt(failure: Failure, attempt: int) -> Failure:
    return failure if failure.attempt == attempt else msgspec.structs.replace(failure, attempt=attempt)
