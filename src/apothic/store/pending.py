"""What a write has decided and not yet written: rows of one kind go in together, however many jobs they are of.

A statement for each row was two thirds of what a mapped job cost in the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apothic.protocol.lifecycle import ARROWS, Move
from apothic.store import events
from apothic.store.tx import Tx

Job = dict[str, Any]  # a job's row as it will be: whatever is decided is written here at once


class IllegalMove(Exception):
    """The lifecycle table has no such arrow; nothing was changed."""


class Pending:
    """The rows that one write still has to write. `flush` does; whoever reads or writes the same rows flushes first."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self.drop()
        tx.at_end(self.flush)

    def drop(self) -> None:
        """Forget everything."""
        self._steps: list[tuple[Any, ...]] = []
        self._ends: list[tuple[Any, ...]] = []
        self._leases: list[tuple[Any, ...]] = []
        self._events: list[tuple[Any, ...]] = []
        self._idle: dict[str, float | None] = {}

    def step(self, job: Job, move: Move, *, attempts: int = 0, started_at: float | None = None) -> int:
        """Take a move that is no end, and one index for its event; return that index."""
        source, place = job["status"], job["next_index"]
        job["status"] = target(job, move)
        job["attempt"] += attempts
        job["next_index"] = place + 1
        changed = (job["status"], job["attempt"], place + 1, started_at)
        self._steps.append((*changed, job["seq"], source, place))
        return int(place)

    def succeed(self, job: Job, result: bytes, now: float, told: int) -> int:
        """End a job well, with a value that is no blob, and take the indices of `told` events; return the first."""
        source, place = job["status"], job["next_index"]
        job["status"] = target(job, Move.SUCCEED)
        job["next_index"] = place + told
        self._ends.append((job["status"], place + told, now, result, job["seq"], source, place))
        return int(place)

    def lease(self, job: Job, token: str, container_id: str, expires_at: float) -> None:
        """Give a job's attempt to a container."""
        self._leases.append((job["seq"], token, job["attempt"], container_id, expires_at))

    def tell(self, job: int, attempt: int, first: int, told: Sequence[events.Event]) -> None:
        """Store events under indices that were taken."""
        self._events += events.rows(job, attempt, first, told)

    def idle(self, container_id: str, now: float | None) -> None:
        """Note anew whether a container has something to do; if it has not, since `now`."""
        self._idle[container_id] = now

    def flush(self) -> None:
        """Write it all. Raises `IllegalMove` when a job is not where it was thought to be."""
        tx, steps, ends, leases, told, idle = (
            self._tx, self._steps, self._ends, self._leases, self._events, self._idle,
        )  # fmt: skip
        self.drop()
        if steps or ends:
            tx.reach("move.before")
            if steps and tx.many("step_jobs", steps) != len(steps):
                raise IllegalMove("a job is not where it was")
            if ends and tx.many("succeed_jobs", ends) != len(ends):
                raise IllegalMove("a job is not where it was")
            tx.reach("move.after")
        if told:
            tx.many("insert_event", told)
        if leases:
            tx.many("insert_lease", leases)
            tx.reach("claim.after")
        if ends:
            tx.reach("finish.after")
        for container, now in idle.items():
            tx.run("container_idle", id=container, now=now)
        if idle:
            tx.reach("release.after")


def target(job: Job, move: Move) -> str:
    """Return the status that a move leads to. Raises `IllegalMove`."""
    found = ARROWS[move].get(job["status"])
    if found is None:
        raise IllegalMove(f"{job['id']} is {job['status']}: it cannot {move.value}")
    return found.value
