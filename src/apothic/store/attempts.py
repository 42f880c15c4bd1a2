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
from apothic.store.pace import Pace
from apothic.store.pending import IllegalMove, Job, Pending, target
from apothic.store.readers import Readers
from apothic.store.tx import Tx, dumps
from apothic.store.verdicts import DRAIN_MOVES, Facts, Verdict, after_drain, after_failure


class Moves:
    """Moves jobs inside a transaction. `now` is wall time; `moved` are those to ring for after the commit.

    Jobs may be given as rows of any query that has their columns; a `Job` of `held` knows of moves that are pending.
    """

    def __init__(self, tx: Tx, now: float, dice: float, pace: Pace, readers: Readers) -> None:
        self.tx = tx
        self.now = now
        self.dice = dice
        self.pace = pace
        self.readers = readers
        self.pending = Pending(tx)
        self.moved: list[str] = []
        self.paused: list[str] = []  # tokens whose generators have to wait for their reader

    def drop(self) -> None:
        """Forget what was decided and not written, for a transaction that was undone."""
        self.pending.drop()
        self.moved.clear()
        self.paused.clear()

    def held(self, job_ids: list[str]) -> dict[str, Job]:
        """Return those of the jobs that have a lease, by id."""
        return {row["id"]: dict(row) for row in self.tx.all("held_jobs", ids=dumps(job_ids))}

    def queue(self, job: int, job_id: str) -> None:
        """Record that a job was accepted."""
        self.pending.tell(job, 0, 0, [(events.STATUS, self._status(Status.QUEUED, 0))])
        self.moved.append(job_id)
        self.tx.queue_changed = True

    def claim(self, row: sqlite3.Row, container_id: str, token: str, expires_at: float) -> int:
        """Give the job's next attempt to a container; return the attempt's number."""
        self.tx.reach("claim.before")
        job = dict(row)
        opened = self._step(job, Move.CLAIM, attempts=1)
        if job["attempt"] > 1 and views.retries(job["retries"]).stream == "restart" and _items(self.tx, job):
            self.tx.run("insert_restart", job=job["seq"], idx=opened)
        self.pending.lease(job, token, container_id, expires_at)
        return int(job["attempt"])

    def report(self, report: Report, monotonic: float, held: dict[str, Job]) -> bool:
        """Apply an agent's news of an attempt, once. Return whether its lease still counts."""
        job = held.get(report.job)
        if job is None or job["token"] != report.token:
            return False
        if report.seq <= job["last_report"]:
            return True
        if report.seq != job["last_report"] + 1:
            # One before it failed to be stored (a full disk): refuse, so that the agent sends both again, in order.
            raise ConflictError(f"{report.job}: report {report.seq} came before report {job['last_report'] + 1}")
        if report.began and job["status"] == Status.STARTING:
            self._step(job, Move.BEGIN, started_at=report.at)
        if report.outcome is None:
            # An outcome ends the lease, and with it whatever could come twice.
            self.tx.run("touch_report", job=job["seq"], seq=report.seq)
            job["last_report"] = report.seq
            self._append(job, report.said)
        else:
            if report.outcome.requeue is not None and not report.outcome.behind:
                # It takes no more work; without this it would be given the same job over and over until it is gone.
                self.tx.run("container_stopping", id=job["container_id"])
            self.end(job, report.outcome, report.said, monotonic)
            job["token"] = None
        return True

    def end(self, job: Job | sqlite3.Row, outcome: Outcome, said: list[Said], monotonic: float) -> None:
        """End a leased attempt: its last output, then what becomes of the job."""
        job = _whole(job)
        self._append(job, said)
        self.tx.reach("release.before")
        status = Status(job["status"])
        if outcome.value is not None and status in (Status.RUNNING, Status.CANCELLING):
            self._succeed(job, outcome)
            if outcome.ran_s > 0:
                self.pace.note(job["version"], outcome.ran_s)
        elif outcome.behind and status == Status.STARTING:
            self._take(job, Move.REQUEUE, reason=outcome.requeue)
            if not self._ending(job["container_id"]):
                self.pace.slow(job["version"])
        elif outcome.failure is not None:
            verdict = after_failure(self._facts(job, outcome), outcome.failure, self.dice)
            self._fail(job, verdict, outcome.failure)
        else:
            reason, facts = outcome.requeue or "given back", self._facts(job, outcome)
            verdict = after_drain(facts)
            often = "moved too often" if facts.drains >= DRAIN_MOVES else "the worker is lost"
            often = "it has published items, and may not run again" if facts.once else often
            lost = Failure(kind="worker_lost", type="WorkerLost", message=f"{often}: {reason}")
            self._fail(job, verdict, lost, reason=reason)
        self.pending.idle(job["container_id"], monotonic)
        self.tx.queue_changed = True
        # One that is free now may have to stop, if its version is no longer live or keeps nothing warm.
        self.tx.fleet_changed |= not job.get("lasts", False)

    def cancel(self, row: sqlite3.Row) -> Status:
        """Ask for a job's end; return its status now. A job that has ended, or is being cancelled, stays as it is."""
        job, status = dict(row), Status(row["status"])
        if status in FINAL or status == Status.CANCELLING:
            return status
        if status in LEASED:
            self._step(job, Move.CANCEL)
            return Status.CANCELLING
        self._fail(job, Verdict(Move.CANCEL), cancelled())
        self.tx.queue_changed = True
        return Status.CANCELLED

    def fail_waiting(self, row: sqlite3.Row, failure: Failure) -> None:
        """End a job that was never begun."""
        self._fail(dict(row), Verdict(Move.FAIL), failure)
        self.tx.queue_changed = True

    # --- the steps ----------------------------------------------------------------------------------------------

    def _ending(self, container_id: str) -> bool:
        """Tell whether a container makes room for others: what it gives back says nothing of how long its jobs run."""
        container = self.tx.one("container", id=container_id)
        return container is not None and container["state"] == "stopping"

    def _succeed(self, job: Job, outcome: Outcome) -> None:
        value, attempt = outcome.value, job["attempt"]
        assert value is not None
        # What was published matters to generators that run again alone.
        if outcome.items is not None and attempt > 1 and views.retries(job["retries"]).stream == "replay":
            before, now = _items(self.tx, job), outcome.items
            if now < before:
                message = (
                    f"the attempt yielded {now} items, an earlier one {before}: stream='replay' needs the same again"
                )
                self._fail(job, Verdict(Move.FAIL), Failure(kind="user", type="ReplayDiverged", message=message))
                return
        items = f',"items":{outcome.items}' if outcome.items is not None else ""
        told = (events.RESULT, f'{{"attempt":{attempt},{events.value_text(value)}{items}}}')
        if value.sha256 is not None:
            self._finish(job, Move.SUCCEED, told, result=views.encode(value), result_sha256=value.sha256)
            return
        self.tx.reach("finish.before")
        first = self.pending.succeed(job, views.encode(value), self.now, 3)
        self._end_told(job, first, told)

    def _fail(self, job: Job, verdict: Verdict, failure: Failure, *, reason: str | None = None) -> None:
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

    def _finish(self, job: Job, move: Move, outcome: events.Event, **changes: Any) -> None:
        self.tx.reach("finish.before")
        self._end_told(job, self._move(job, move, 3, **changes), outcome)
        self.pending.flush()
        self.tx.reach("finish.after")

    def _end_told(self, job: Job, first: int, outcome: events.Event) -> None:
        status, attempt = job["status"], job["attempt"]
        end = f'{{"status":"{status}","attempts":{attempt},"last_index":{job["next_index"] - 1}}}'
        told = [(events.STATUS, self._status(status, attempt)), outcome, (events.END, end)]
        self.pending.tell(job["seq"], attempt, first, told)
        self.moved.append(job["id"])

    def _take(self, job: Job, move: Move, *, reason: Any = None, detail: Any = None, **changes: Any) -> None:
        """Make a move that is no end, of those that change much."""
        first = self._move(job, move, 1, **changes)
        # A retry belongs to the attempt it ends; a claim opens the next.
        data = self._status(job["status"], job["attempt"], reason=reason, detail=detail)
        self.pending.tell(job["seq"], job["attempt"], first, [(events.STATUS, data)])
        self.moved.append(job["id"])

    def _step(self, job: Job, move: Move, *, attempts: int = 0, started_at: float | None = None) -> int:
        """Make a move that is no end, of those that change little; return the index of its event."""
        first = self.pending.step(job, move, attempts=attempts, started_at=started_at)
        told = (events.STATUS, self._status(job["status"], job["attempt"]))
        self.pending.tell(job["seq"], job["attempt"], first, [told])
        self.moved.append(job["id"])
        return first

    def _move(self, job: Job, move: Move, told: int, **changes: Any) -> int:
        """Make a move at once, and take the indices of the `told` events that belong to it; return the first."""
        self.pending.flush()
        target(job, move)
        values = dict.fromkeys(("run_at", "result", "result_sha256", "failure", "failure_sha256"))
        counts = dict.fromkeys(("user_failures", "crashes", "drains"), 0)
        self.tx.reach("move.before")
        named = {**values, **counts, **changes}
        row = self.tx.one("move_job", job=job["seq"], move=move.value, now=self.now, events=told, **named)
        if row is None:
            raise IllegalMove(f"{job['id']} is {job['status']}: it cannot {move.value}")
        job["status"], job["next_index"] = row["status"], row["next_index"]
        self.tx.reach("move.after")
        return int(row["next_index"]) - told

    def _append(self, job: Job, said: list[Said]) -> None:
        if not said:
            return
        self.pending.flush()  # an event needs an index that the job's row has given out
        held = job["sent"] is not None
        sent = max(job["sent"], self.readers.sent.get(job["seq"], -1)) if held else events.FOREVER
        anew = job["attempt"] > 1 and views.retries(job["retries"]).stream == "restart"
        items = events.append(self.tx, job, said, sent=sent, anew=anew)
        if held and items is not None and items.bytes > events.HELD_BYTES:
            self.tx.run("pause_hold", job=job["seq"], paused=True)
            self.readers.waiting.add(job["seq"])
            self.paused.append(job["token"])
        self.moved.append(job["id"])

    def _facts(self, job: Job, outcome: Outcome) -> Facts:
        return Facts(
            status=Status(job["status"]),
            delivery=job["delivery"],
            retries=views.retries(job["retries"]),
            user_failures=job["user_failures"],
            crashes=job["crashes"],
            drains=job["drains"],
            published=_items(self.tx, job) > 0,
        )

    def _status(self, status: str, attempt: int, *, reason: Any = None, detail: Any = None) -> str:
        more = f',"reason":{dumps(reason)}' if reason is not None else ""
        if detail is not None:
            more += f',"detail":{dumps(detail)}'
        return f'{{"status":"{status}","attempt":{attempt},"at":{self.now!r}{more}}}'


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


def _whole(job: Job | sqlite3.Row) -> Job:
    return dict(job) if isinstance(job, sqlite3.Row) else job


def _items(tx: Tx, job: Job) -> int:
    """Return how many items of a job were stored so far."""
    return events.window(tx, job["seq"], events.ITEM).count


def _of_attempt(failure: Failure, attempt: int) -> Failure:
    return failure if failure.attempt == attempt else msgspec.structs.replace(failure, attempt=attempt)
