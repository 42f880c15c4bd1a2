"""map, starmap, for_each, spawn_map, map_iter: one pump.

Items are read, packed and submitted in batches while there is room in a window of unfinished jobs; results are gathered
for the whole window at once. Memory is bounded by the window, not by the input.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from math import inf
from typing import Any

from apothic.client.feed import Feed
from apothic.client.job import CANCEL_S, POLL_S, Job
from apothic.client.outcome import Outcome
from apothic.client.submission import ACCEPT, RETRY_S, Target, fresh_key, packer, retry_after, send_value
from apothic.clock import SystemClock, wait_for
from apothic.errors import ApothicError, NotFoundError, QueueFullError, WaitTimeoutError
from apothic.protocol import messages as m
from apothic.protocol import routes, values
from apothic.protocol.lifecycle import CLAIMABLE, Status
from apothic.protocol.values import Envelope

Items = Iterable[Any] | AsyncIterable[Any]

WINDOW = 1_000  # items submitted and not yet handed to the caller
BATCH = 500
FIRST_BATCH = 16  # doubled each time: work begins before much of the input is read
LOOK_S = 0.5  # a gathering that is not about all there will be looks again after this
# While so many are unfinished, who asks again at once gets a few each time, for a request that names them all: 24 each
# were measured. The pause is a fraction of what the window holds at 10,000 a second.
MANY = 250
PAUSE_S = 0.01
UPLOADS = 4
CANCELS = 8


def single(item: Any) -> tuple[Any, ...]:
    """Make the arguments of `map`'s job from an item."""
    return (item,)


def spread(item: Any) -> tuple[Any, ...]:
    """Make the arguments of `starmap`'s job from an item."""
    return tuple(item)


class Fanout:
    """One fan-out of a function over items."""

    def __init__(self, target: Target, items: Items, arguments: Callable[[Any], tuple[Any, ...]] = single) -> None:
        self._target = target
        self._client = target.client_here()
        self._clock = SystemClock()
        packed = packer(target)
        self._feed = Feed(items, lambda item: packed(arguments(item), {}))
        self._map_id = target.submitted_with.idempotency_key or fresh_key()
        self._batch = FIRST_BATCH
        self._unsent: list[Envelope] = []  # read, and not taken by a full queue
        self._retry_s = 0.0
        self._submitted = 0
        self._delivered = 0
        self._open: dict[str, int] = {}  # unfinished job → place of its item
        self._done: dict[int, Outcome] = {}
        self._refused: QueueFullError | None = None
        self._ended = asyncio.Event()

    # --- all results ------------------------------------------------------------------------------------------

    async def collect(self, *, timeout_s: float, return_exceptions: bool, keep: bool = True) -> list[Any]:
        """Return the results in input order; without `keep`, wait for them and return nothing."""
        found: list[Any] = []
        results = self.results(timeout_s=timeout_s, ordered=True, return_exceptions=return_exceptions)
        async with contextlib.aclosing(results):
            async for result in results:
                if keep:
                    found.append(result)
        return found

    async def results(self, *, timeout_s: float, ordered: bool, return_exceptions: bool) -> AsyncGenerator[Any, None]:
        """Yield results as they come; with `ordered`, in input order.

        The first failing item raises, once what is not begun behind it has been cancelled. Leaving early, or an input
        that raises, cancels all that is unfinished. When `timeout_s` is over, the jobs go on.
        """
        until = self._clock.monotonic() + timeout_s
        feeding: asyncio.Task[int] | None = None
        gathering: asyncio.Task[None] | None = None
        stopped = leave = False
        try:
            while True:
                failed = None if return_exceptions else self._first_failure()
                if failed is not None and not stopped:
                    stopped = True
                    await _stop(feeding)
                    feeding = None
                    behind = failed if ordered else -1
                    await self._cancel([job for job, place in self._open.items() if place > behind], waiting_only=True)
                while (outcome := self._next(ordered)) is not None:
                    if return_exceptions:
                        yield await outcome.settled()
                    else:
                        leave = outcome.result.value is None  # what else is unfinished has begun already
                        yield await outcome.value()
                        leave = False
                if feeding is None and not stopped and self._wants_more():
                    feeding = asyncio.create_task(self._submit(inf))  # ended by our own time
                if gathering is None and self._open:
                    gathering = asyncio.create_task(self._gather(until, stopped or self._feed.ended))
                busy = {task for task in (feeding, gathering) if task is not None}
                if not busy:
                    return
                left = until - self._clock.monotonic()
                await asyncio.wait(busy, timeout=max(left, 0.0), return_when=asyncio.FIRST_COMPLETED)
                if feeding is not None and feeding.done():
                    ended, feeding = feeding, None
                    ended.result()
                if gathering is not None and gathering.done():
                    over, gathering = gathering, None
                    over.result()
                elif left <= 0:
                    leave = True
                    raise self._too_late(timeout_s)
        finally:
            await _stop(feeding)
            await _stop(gathering)
            await self._end(leave)

    def _next(self, ordered: bool) -> Outcome | None:
        place = self._delivered if ordered else next(iter(self._done), -1)
        outcome = self._done.pop(place, None)
        if outcome is not None:
            self._delivered += 1
        return outcome

    def _first_failure(self) -> int | None:
        return min((place for place, outcome in self._done.items() if outcome.result.value is None), default=None)

    def _wants_more(self) -> bool:
        if self._unsent:
            return True
        # A window that is refilled by ones would cost a request for each.
        room = WINDOW - (self._submitted - self._delivered)
        return not self._feed.ended and room >= min(self._batch, WINDOW // 4)

    # --- jobs only --------------------------------------------------------------------------------------------

    async def jobs(self, *, timeout_s: float) -> list[Job]:
        """Submit everything and return the jobs in input order.

        When it cannot go on (an input that raises; a queue that is full for `timeout_s`), all of them are cancelled.
        """
        whole = False
        try:
            until = self._clock.monotonic() + timeout_s
            while self._unsent or not self._feed.ended:
                if await self._submit(until):
                    until = self._clock.monotonic() + timeout_s
                elif self._unsent and self._refused is not None and self._clock.monotonic() > until:
                    raise self._refused
            whole = True
        finally:
            await self._end(leave=whole)
        return [Job(job, self._client) for job in self._open]

    # --- in -----------------------------------------------------------------------------------------------------

    async def _submit(self, until: float) -> int:
        """Read a chunk, or take what a full queue has left of the last one, and submit it; return how many went in."""
        if self._unsent:
            await wait_for(self._clock, self._ended, self._retry_s)  # each job of ours that ends makes room for another
        else:
            self._unsent = await self._feed.read(self._batch)
            self._batch = min(2 * self._batch, BATCH)
        if not self._unsent:
            return 0
        taken = await self._submit_batch(self._unsent, until)
        for envelope in self._unsent[:taken]:
            envelope.discard()
        self._unsent = self._unsent[taken:]
        return taken

    async def _submit_batch(self, envelopes: list[Envelope], until: float) -> int:
        again = True
        while True:
            address = await self._target.address()
            left = max(until - self._clock.monotonic(), 1.0)
            ask = m.SubmitBatch(
                function=address.function,
                jobs=await self._inputs(envelopes, left),
                accept=ACCEPT,
                deployment_id=address.deployment,
                options=self._target.submitted_with.options,
            )
            try:
                reply = await self._sent(ask, left)
                break
            except NotFoundError:
                if not again:
                    raise
                again = False
                self._target.forget()
            except QueueFullError as full:
                self._refused, self._retry_s = full, retry_after(full)
                self._ended.clear()
                return 0
        self._ended.clear()
        self._retry_s = reply.retry_after_s or RETRY_S
        self._refused = QueueFullError(
            f"the queue of {self._target.name} is full",
            hint="raise the function's max_pending_tasks or max_containers, or allow more time",
        )
        return len(reply.jobs)

    async def _sent(self, ask: m.SubmitBatch, left: float) -> m.BatchSubmitted:
        sending = asyncio.ensure_future(self._client._ask(routes.SUBMIT_BATCH, ask, left))
        try:
            return self._noted(await asyncio.shield(sending))
        except asyncio.CancelledError:
            # What is on its way will be accepted, and only who knows the jobs can cancel them.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CANCEL_S):
                    self._noted(await sending)
            raise

    def _noted(self, reply: m.BatchSubmitted) -> m.BatchSubmitted:
        for job in reply.jobs:
            self._open[job] = self._submitted
            self._submitted += 1
        return reply

    async def _inputs(self, envelopes: list[Envelope], left: float) -> list[m.JobInput]:
        room = asyncio.Semaphore(UPLOADS)

        async def one(place: int, envelope: Envelope) -> m.JobInput:
            async with room:
                value = await send_value(self._client, envelope, left)
            return m.JobInput(input=value, idempotency_key=f"{self._map_id}:{place}")

        if all(envelope.file is None for envelope in envelopes):
            return [
                m.JobInput(
                    input=values.to_wire(envelope.packed, binary=True),
                    idempotency_key=f"{self._map_id}:{self._submitted + n}",
                )
                for n, envelope in enumerate(envelopes)
            ]
        return await asyncio.gather(*(one(self._submitted + n, envelope) for n, envelope in enumerate(envelopes)))

    # --- out ----------------------------------------------------------------------------------------------------

    async def _gather(self, until: float, is_all: bool) -> None:
        left = max(until - self._clock.monotonic(), 0.0)
        wait_s = min(left, POLL_S if is_all else LOOK_S)
        reply = await self._client._ask(
            routes.GATHER, m.GatherResults(jobs=list(self._open), wait_s=wait_s), max(left, 1.0)
        )
        for result in reply.results:
            place = self._open.pop(result.job.id, None)
            if place is not None:
                self._done[place] = Outcome(Job(result.job.id, self._client), result)
        if reply.results:
            self._ended.set()
            if len(self._open) >= MANY:
                await self._clock.sleep(PAUSE_S)

    # --- the end ------------------------------------------------------------------------------------------------

    def _too_late(self, timeout_s: float) -> ApothicError:
        left = [Job(job, self._client) for job in self._open]
        if not left and self._unsent and self._refused is not None:
            return self._refused
        return WaitTimeoutError(
            f"{len(left):,} jobs of {self._target.name} are unfinished after {timeout_s:g} s of waiting",
            jobs=left,
            hint="they go on: wait for the error's .jobs, or allow more with timeout_s",
        )

    async def _end(self, leave: bool) -> None:
        for envelope in self._unsent:
            envelope.discard()
        await self._feed.close()
        if not leave and self._open:
            await self._cancel(list(self._open), waiting_only=False)

    async def _cancel(self, jobs: list[str], *, waiting_only: bool) -> None:
        """Cancel jobs, the newest first; with `waiting_only`, those alone that no container has begun."""
        left = list(jobs)

        async def work() -> None:
            while left:
                with contextlib.suppress(ApothicError):  # one that cannot be cancelled goes on; the others matter too
                    await self._cancel_one(left.pop(), waiting_only)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_S):
                await asyncio.gather(*(work() for _ in range(CANCELS)))

    async def _cancel_one(self, job: str, waiting_only: bool) -> None:
        if waiting_only:
            view = await self._client._ask(routes.SHOW_JOB, m.ShowJob(job=job), CANCEL_S)
            if Status(view.status) not in CLAIMABLE:
                return
        await self._client._ask(routes.CANCEL, m.CancelJob(job=job), CANCEL_S)


async def _stop(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
