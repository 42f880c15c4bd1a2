"""Jobs that wait for jobs that can never begin, because every slot they could have is held by jobs that wait too.

`Waits` knows which running job waits for which, from the requests that are open right now: a job that has merely
submitted another is no part of a deadlock. What it knows is no truth, only a reason to look; `deadlocked` is pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext

from apothic.store.picture import Picture, Place, Standing, Start, Step


class Waits:
    """Who waits for whom, while the request is open."""

    def __init__(self) -> None:
        self._open: Counter[tuple[str, str]] = Counter()

    def on(self, waiting: str | None, awaited: Sequence[str]) -> AbstractContextManager[None]:
        """Note that a job waits for others, until the block is left; `None` is a caller that is no job."""
        return nullcontext() if waiting is None else self._noted([(waiting, job) for job in awaited])

    @contextmanager
    def _noted(self, pairs: list[tuple[str, str]]) -> Iterator[None]:
        self._open.update(pairs)
        try:
            yield
        finally:
            self._open.subtract(pairs)
            for pair in pairs:
                if not self._open[pair]:
                    del self._open[pair]

    def now(self) -> dict[str, set[str]]:
        """Return for each job that waits what it waits for."""
        found: dict[str, set[str]] = {}
        for waiting, awaited in self._open:
            found.setdefault(waiting, set()).add(awaited)
        return found


def deadlocked(waits: Mapping[str, Set[str]], standing: Standing, plan: Callable[[Picture], list[Step]]) -> list[str]:
    """Return the queued jobs that are waited for and can never begin, oldest first.

    A running job moves if it waits for nothing, or for one that moves or has ended. A queued job moves if the plan
    would place it now, or if one that holds a slot it could have moves. What does not move then is deadlocked.
    """
    leased, queued = standing.leased, standing.queued
    placed = {step.version for step in plan(standing.picture) if isinstance(step, Place | Start)}
    limits = {wanted.version: wanted.max_containers for wanted in standing.picture.wanted}
    owned = Counter(seat.version for seat in standing.picture.seats)

    def holders(version: int) -> list[str]:
        full = owned[version] >= limits.get(version, 0)
        return [job for job, its in leased.items() if its == version or not full]

    moving = {job for job in leased if job not in waits}

    def moves(job: str) -> bool:
        if job in leased:
            return job in moving
        version = queued.get(job)
        if version is None or version in placed or version not in limits:
            return True
        holding = holders(version)
        return not holding or any(each in moving for each in holding)

    stuck = [job for job in waits if job in leased]
    while freed := [job for job in stuck if any(map(moves, waits[job]))]:
        moving.update(freed)
        stuck = [job for job in stuck if job not in moving]
    return sorted({job for each in stuck for job in waits[each] if job in queued})
