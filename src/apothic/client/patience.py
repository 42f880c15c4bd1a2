"""How long a caller waits, and how often it tries where nobody answers. On the library's own loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING, TypeVar

from apothic.clock import SystemClock
from apothic.errors import ApothicError, WaitTimeoutError

if TYPE_CHECKING:
    from apothic.client.job import Job

T = TypeVar("T")

BACKOFF_S = (0.25, 10.0)


class Patience:
    """How long a caller is willing to wait for a job, in all, since `begun` or now.

    It counts only where there is something to wait for: what has come is never held back.
    """

    def __init__(self, job: Job, timeout_s: float = inf, begun: float | None = None) -> None:
        self.clock = SystemClock()
        self._job = job
        self._timeout_s = timeout_s
        self._until = (self.clock.monotonic() if begun is None else begun) + timeout_s

    @property
    def left_s(self) -> float:
        """Return what is left of it."""
        return max(self._until - self.clock.monotonic(), 0.0)

    async def during(self, deed: Awaitable[T], limit_s: float = inf) -> T:
        """Await `deed`. Raises `WaitTimeoutError` when patience is at an end, `TimeoutError` when only `limit_s` is."""
        left_s = self.left_s
        shorter = min(left_s, limit_s)
        try:
            async with asyncio.timeout(shorter if shorter < inf else None):
                return await deed
        except TimeoutError:
            if left_s > limit_s:
                raise
            raise WaitTimeoutError(
                f"job {self._job.job_id} has not ended after {self._timeout_s:g} s of waiting",
                job=self._job,
                hint="it goes on: wait again on the error's .job, or allow more time",
            ) from None

    async def insist(self, deed: Callable[[], Awaitable[T]]) -> T:
        """Return what `deed` returns, tried again for as long as it is only that nobody answers."""
        backoff = Backoff()
        while True:
            try:
                return await self.during(deed())
            except ApothicError as trouble:
                pause_s = backoff.next_s(trouble)
            await self.during(self.clock.sleep(pause_s))


class Backoff:
    """How long to wait before the next try: full jitter, doubled from try to try."""

    def __init__(self) -> None:
        self.tries = 0

    def next_s(self, trouble: ApothicError | None = None) -> float:
        """Return the seconds to wait. Raises `trouble` when another try could not mend it."""
        told = 0.0
        if trouble is not None:
            status = trouble.details.get("status", trouble.http)
            if isinstance(trouble, WaitTimeoutError) or (status < 500 and status != 429):
                raise trouble
            told = float(trouble.details.get("retry_after_s", 0.0))
        least, most = BACKOFF_S
        full = min(most, least * 2 ** min(self.tries, 20))
        self.tries += 1
        return max(random.uniform(0, full), told)
