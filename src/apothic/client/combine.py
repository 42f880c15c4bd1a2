"""Spawns of many threads, or tasks, in few requests: those that come while others are under way leave together.

It is what a database does with commits. A spawn that meets nobody goes at once, and nobody waits on a timer.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Hashable
from itertools import islice
from queue import SimpleQueue

from apothic.client.connection import ControlPlaneClient
from apothic.clock import SystemClock
from apothic.direct import DIRECT
from apothic.errors import ApothicError
from apothic.protocol import messages as m
from apothic.protocol import routes

# Requests under way before others wait for them: with one, two threads were a quarter slower than beside each other.
# Those that wait leave when the last is back: in smaller batches, a job costs the server more.
AT_ONCE = 2
BATCH = 500  # the server takes no more, and so many of any size: larger inputs are blobs
_CLOCK = SystemClock()


class _Spawn:
    """A job to be submitted, and the thread or the task that waits for that."""

    def __init__(self, ask: m.Submit) -> None:
        self.ask = ask
        self._thread: SimpleQueue[str | None] | None = SimpleQueue() if DIRECT.get() else None
        self._task = None if self._thread is not None else asyncio.get_running_loop().create_future()

    def tell(self, job: str | None) -> None:
        """Let it go on: as that job, or to submit itself."""
        if self._thread is not None:
            self._thread.put(job)
        elif self._task is not None and not self._task.done():
            self._task.set_result(job)

    async def told(self) -> str | None:
        """Wait, in the way of who waits here."""
        if self._thread is not None:
            return self._thread.get()
        assert self._task is not None
        job: str | None = await self._task
        return job


class _Lane:
    """Spawns that may be in one batch. It is there as long as one of them leads a request that is under way.

    Whoever leaves puts right what an interrupt left undone, so nobody waits for one that is not there any more.
    """

    def __init__(self) -> None:
        self.leading: dict[_Spawn, list[_Spawn]] = {}  # with those that go along
        self.waiting: dict[_Spawn, None] = {}  # in order, and left from anywhere

    def enter(self, spawn: _Spawn) -> bool:
        """Take it in, and tell whether it leads."""
        leads = len(self.leading) < AT_ONCE and not self.waiting
        if leads:
            self.leading[spawn] = []
        else:
            self.waiting[spawn] = None
        return leads

    def join(self, spawn: _Spawn) -> list[_Spawn]:
        """Return those that go along, all that wait; nobody unless it leads."""
        if spawn not in self.leading:
            return []
        others = self.leading[spawn] = list(islice(self.waiting, BATCH - 1))
        for other in others:
            del self.waiting[other]
        return others

    def leave(self, spawn: _Spawn) -> None:
        """Take it out, wherever it is; let go those that went along. After the last, the first that waits leads."""
        self.waiting.pop(spawn, None)
        for other in self.leading.pop(spawn, ()):
            other.tell(None)
        if self.waiting and not self.leading:
            heir = next(iter(self.waiting))
            heir.tell(None)
            self.leading[heir] = []
            del self.waiting[heir]


class Combining:
    """All lanes of a process. A forked child begins with none: what was under way in its parent does not come back."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._lanes: dict[Hashable, _Lane] = {}
        self._threads: set[int | None] = set()

    async def submit(self, client: ControlPlaneClient, ask: m.Submit, timeout_s: float) -> str:
        """Submit one job, under an idempotency key that no other has, and return its id.

        Raises what a request of its own raises. One that is cancelled while it waits is not submitted.
        """
        until = _CLOCK.monotonic() + timeout_s
        key = (*await client.way(), DIRECT.get(), ask.function, ask.deployment_id, ask.options)
        thread = threading.get_ident() if DIRECT.get() else None
        if thread in self._threads:  # of a signal's handler, say: others may be waiting for what it has interrupted
            return await alone(client, ask, timeout_s)
        spawn = _Spawn(ask)
        job: str | None = None
        try:
            if thread is not None:
                self._threads.add(thread)
            if self._enter(key, spawn) or (job := await spawn.told()) is None:
                others = self._others(key, spawn)
                job = await (
                    _together(client, spawn, others, _left(until)) if others else alone(client, ask, _left(until))
                )
        finally:
            try:
                self._leave(key, spawn)
            except BaseException:  # an interrupt, just then: others wait for this to be done
                self._leave(key, spawn)
                raise
            finally:
                self._threads.discard(thread)
        return job or await alone(client, ask, _left(until))

    def _enter(self, key: Hashable, spawn: _Spawn) -> bool:
        with self._lock:
            return self._lanes.setdefault(key, _Lane()).enter(spawn)

    def _others(self, key: Hashable, spawn: _Spawn) -> list[_Spawn]:
        with self._lock:
            lane = self._lanes.get(key)
            return lane.join(spawn) if lane is not None else []

    def _leave(self, key: Hashable, spawn: _Spawn) -> None:
        with self._lock:
            lane = self._lanes.get(key)
            if lane is not None:
                lane.leave(spawn)
                if not lane.leading:
                    del self._lanes[key]


async def alone(client: ControlPlaneClient, ask: m.Submit, timeout_s: float) -> str:
    """Submit one job in a request of its own, and return its id."""
    return (await client._ask(routes.SUBMIT, ask, timeout_s)).job.id


async def _together(client: ControlPlaneClient, first: _Spawn, others: list[_Spawn], timeout_s: float) -> str | None:
    """Submit a batch and tell the others their jobs; return that of the first.

    Who gets none submits itself, under the same key: it learns so that the queue is full, and an error that is the
    fault of one input is raised to nobody else.
    """
    ask = m.SubmitBatch(
        function=first.ask.function,
        jobs=[m.JobInput(input=each.ask.input, idempotency_key=each.ask.idempotency_key) for each in (first, *others)],
        accept=first.ask.accept,
        deployment_id=first.ask.deployment_id,
        options=first.ask.options,
    )
    try:
        reply = await client._ask(routes.SUBMIT_BATCH, ask, timeout_s)
    except ApothicError:
        return None
    for other, job in zip(others, reply.jobs[1:], strict=False):
        other.tell(job)
    return reply.jobs[0] if reply.jobs else None


def _left(until: float) -> float:
    return max(until - _CLOCK.monotonic(), 0.0)


COMBINING = Combining()
