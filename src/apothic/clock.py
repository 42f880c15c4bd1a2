"""Time, passed in. This is the only file that knows what time it is; everything else holds a `Clock`."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Clock(Protocol):
    """What the system asks of time: two readings, and a wait that a test can shorten."""

    def now(self) -> float:
        """Return wall time, in seconds since 1970. For people and for schedules; it may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds that only ever grow. For leases, limits and intervals."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that many seconds of this clock."""
        ...

    def limit(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Return a scope that ends with a `TimeoutError` when it takes longer than that."""
        ...


async def wait_for(clock: Clock, event: asyncio.Event, seconds: float) -> bool:
    """Wait until `event` is set, at most `seconds` of the clock; return whether it was set."""
    if event.is_set() or seconds <= 0:
        return event.is_set()
    with contextlib.suppress(TimeoutError):
        async with clock.limit(seconds):  # two tasks that race took three rounds of the loop to tell who won
            await event.wait()
    return event.is_set()


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def limit(self, seconds: float) -> asyncio.Timeout:
        return asyncio.timeout(seconds)

    def pause(self, seconds: float) -> None:
        """Block the calling thread that long."""
        time.sleep(seconds)


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._monotonic = 1_000.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def jump(self, seconds: float) -> None:
        """Move wall time alone, as a wrong NTP server would."""
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        await self._due_in(seconds)

    @contextlib.asynccontextmanager
    async def limit(self, seconds: float) -> AsyncIterator[None]:
        async with asyncio.timeout(None) as scope:
            due = self._due_in(seconds)
            due.add_done_callback(lambda due: None if due.cancelled() else scope.reschedule(0.0))
            try:
                yield
            finally:
                due.cancel()

    def _due_in(self, seconds: float) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sleeper = (self._monotonic + max(seconds, 0.0), next(self._order), done)
        heapq.heappush(self._sleepers, sleeper)
        done.add_done_callback(lambda done: self._forget(sleeper) if done.cancelled() else None)
        return done

    def _forget(self, sleeper: tuple[float, int, asyncio.Future[None]]) -> None:
        if sleeper in self._sleepers:
            self._sleepers.remove(sleeper)
            heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let that much time pass, waking sleepers in order; each runs on before the next is woken."""
        until = self._monotonic + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            due, _, done = heapq.heappop(self._sleepers)
            self._pass(max(due - self._monotonic, 0.0))  # a test may have let more pass meanwhile
            if not done.done():
                done.set_result(None)
            for _ in range(10):
                await asyncio.sleep(0)
        self._pass(max(until - self._monotonic, 0.0))

    def _pass(self, seconds: float) -> None:
        self._monotonic += seconds
        self._now += seconds
