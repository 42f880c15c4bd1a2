"""The two tasks of a pool: one sends calls in batches, one gathers what has ended. Both on the library's loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from apothic.client.future import Future
from apothic.client.job import POLL_S, Job
from apothic.client.outcome import Outcome
from apothic.client.submission import ACCEPT, RETRY_S, Address, Target, fresh_key, retry_after, send_value
from apothic.clock import SystemClock, wait_for
from apothic.errors import NotFoundError, QueueFullError
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.values import Envelope

BATCH = 500
UPLOADS = 4
TOGETHER = 1_000  # jobs that one request waits for: the oldest, which end first
MOMENT_S = 0.02  # a request that waits for others is left this long before new jobs replace it

Ended = tuple["Entry", Outcome | Exception]


class Entry:
    """One call that is outstanding."""

    __slots__ = ("envelope", "future", "key", "left", "runs", "withdrawn")

    def __init__(self, envelope: Envelope, future: Future[Any]) -> None:
        self.envelope = envelope
        self.future = future
        self.key = ""
        self.runs = False  # a worker is to have it: it counts as running
        self.withdrawn = False  # it is being cancelled by its future
        self.left = False  # it is off the books


class Sender:
    """Submits the calls in `unsent`, which is under `lock`: `accepted` hears of those on disk, `fail` of others."""

    def __init__(
        self,
        target: Target,
        unsent: deque[Entry],
        lock: threading.Condition,
        fail: Callable[[Iterable[Entry], Exception], None],
    ) -> None:
        self.news = asyncio.Event()
        self.ended = asyncio.Event()  # a job of ours has: there may be room in a full queue
        self.accepted: Callable[[dict[str, Entry]], None] = lambda _: None
        self._target = target
        self._unsent = unsent
        self._lock = lock
        self._fail = fail
        self.sending: set[Entry] = set()
        self._through = asyncio.Event()  # set by the end of each batch
        self._name = fresh_key()
        self._count = 0

    async def run(self) -> None:
        """Send what comes, for ever."""
        while True:
            await self.news.wait()
            self.news.clear()
            while self._unsent:
                try:
                    address = await self._target.address()
                except Exception as error:
                    self._fail(self._claim(len(self._unsent)), error)
                    continue
                await self._batch(address)

    def _claim(self, most: int) -> list[Entry]:
        with self._lock:
            claimed = [self._unsent.popleft() for _ in range(min(most, len(self._unsent)))]
            self._lock.notify_all()
        return claimed

    async def _batch(self, address: Address) -> None:
        with self._lock:
            batch = self._claim(BATCH)
            self.sending = set(batch)
        self.ended.clear()
        pause_s = 0.0
        try:
            inputs = await self._inputs(batch)
            batch, pause_s = await self._submit(address, inputs) if inputs else ([], 0.0)
        except Exception as error:
            self._fail(batch, error)
            batch = []
        finally:
            with self._lock:
                self._unsent.extendleft(reversed(batch))
                self.sending = set()
                self._lock.notify_all()
            through, self._through = self._through, asyncio.Event()
            through.set()
        if batch:
            await wait_for(SystemClock(), self.ended, pause_s)

    async def job_of(self, entry: Entry) -> Job | None:
        """Return the job of a call that was taken to be sent, once it is known; `None` when it has none."""
        while entry in self.sending and entry.future.accepted is None:
            await self._through.wait()
        return entry.future.accepted

    async def _submit(self, address: Address, inputs: dict[Entry, m.Value]) -> tuple[list[Entry], float]:
        """Submit the calls; return those that the queue did not take, and after how many seconds to try again."""
        client, again = self._target.client_here(), True
        while True:
            batch = list(inputs)
            ask = m.SubmitBatch(
                function=address.function,
                jobs=[m.JobInput(input=value, idempotency_key=entry.key) for entry, value in inputs.items()],
                accept=ACCEPT,
                deployment_id=address.deployment,
                options=self._target.submitted_with.options,
            )
            try:
                reply = await client._ask(routes.SUBMIT_BATCH, ask, client.timeout_s)
            except NotFoundError:
                # The server's data may be gone; once more from the start, and no more than once.
                if not again:
                    raise
                again = False
                self._target.forget()
                address = await self._target.address()
                inputs = await self._inputs(batch)
            except QueueFullError as full:
                return batch, retry_after(full)
            else:
                self._note(dict(zip(reply.jobs, batch, strict=False)))
                return batch[len(reply.jobs) :], reply.retry_after_s or RETRY_S

    def _note(self, taken: dict[str, Entry]) -> None:
        client = self._target.client_here()
        for job, entry in taken.items():
            entry.envelope.discard()
            entry.future.accept(Job(job, client))
        self.accepted(taken)

    async def _inputs(self, batch: list[Entry]) -> dict[Entry, m.Value]:
        """Make the calls' values ready to be sent, the large ones uploaded; those that cannot be fail here."""
        client, room = self._target.client_here(), asyncio.Semaphore(UPLOADS)
        found: dict[Entry, m.Value] = {}

        async def one(entry: Entry) -> None:
            try:
                async with room:
                    found[entry] = await send_value(client, entry.envelope, client.timeout_s)
            except Exception as error:
                self._fail([entry], error)

        for entry in batch:
            if not entry.key:
                self._count += 1
                entry.key = f"{self._name}:{self._count}"
            if entry.envelope.file is None:
                await one(entry)
        await asyncio.gather(*(one(entry) for entry in batch if entry.envelope.file is not None))
        return {entry: found[entry] for entry in batch if entry in found}


class Gatherer:
    """Waits for all jobs at once, in one request at a time, and hands over those that have ended."""

    def __init__(self, target: Target, hand_over: Callable[[Iterable[Ended]], None]) -> None:
        self.ended = asyncio.Event()
        self._target = target
        self._hand_over = hand_over
        self.open: dict[str, Entry] = {}
        self._news = asyncio.Event()

    def add(self, found: dict[str, Entry]) -> None:
        """Wait for these jobs as well."""
        if len(self.open) < TOGETHER:
            self._news.set()
        self.open.update(found)

    async def run(self) -> None:
        """Gather, for ever."""
        while True:
            self._news.clear()
            jobs = [job for job, entry in list(self.open.items())[:TOGETHER] if not self._dropped(job, entry)]
            if not jobs:
                if not self.open:
                    await self._news.wait()
                continue
            try:
                results = await self._ask(jobs)
            except NotFoundError as error:
                gone = error.details.get("jobs") or jobs
                self._end((job, error) for job in gone)
            except Exception as error:
                self._end((job, error) for job in jobs)
            else:
                client = self._target.client_here()
                self._end((result.job.id, Outcome(Job(result.job.id, client), result)) for result in results)

    def _dropped(self, job: str, entry: Entry) -> bool:
        # What its future has cancelled is nobody's any more.
        if entry.left:
            del self.open[job]
        return entry.left

    async def _ask(self, jobs: list[str]) -> list[m.JobResult]:
        """Return the jobs that have ended; none when new ones are to be waited for as well."""
        client = self._target.client_here()
        asking = asyncio.ensure_future(
            client._ask(routes.GATHER, m.GatherResults(jobs=jobs, wait_s=POLL_S), client.timeout_s)
        )
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait({asking, news}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                await asyncio.wait({asking}, timeout=MOMENT_S)
            return asking.result().results if asking.done() else []
        finally:
            for task in (asking, news):
                task.cancel()
            await asyncio.wait({asking, news})

    def _end(self, ended: Iterable[tuple[str, Outcome | Exception]]) -> None:
        found = [(self.open.pop(job), how) for job, how in ended if job in self.open]
        if found:
            self.ended.set()
            self._hand_over(found)
