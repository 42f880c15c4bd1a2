"""pgqueuer on PostgreSQL; prints JSON. Runs in a virtual environment of its own.

Two worker processes. It keeps no results: a call ends when its job is logged as successful. A worker logs when it has a
batch or after 0.1 s, so that single calls are measured with batches of one, many jobs with batches of a hundred that
are also submitted in one statement. A notification is acted on after a millisecond instead of 50. All tables are
logged, which is what it does by itself.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import asyncio  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import AsyncIterator  # noqa: E402
from contextlib import asynccontextmanager  # noqa: E402
from datetime import timedelta  # noqa: E402
from typing import Any  # noqa: E402

import asyncpg  # noqa: E402
import stopwatch  # noqa: E402
import uvloop  # noqa: E402
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries  # noqa: E402
from pgqueuer.core.completion import CompletionWatcher  # noqa: E402

PLACE = os.environ.get("BENCH_PLACE", "")


async def connected() -> asyncpg.Connection:
    """Return a connection to the server of this run."""
    return await asyncpg.connect(host=PLACE, user="postgres", database="postgres")


async def work(batch: int) -> None:
    """Be a worker."""
    queuer = PgQueuer.from_asyncpg_connection(await connected())

    @queuer.entrypoint("identity")
    async def identity(job: Job) -> None:
        """Do nothing."""

    await queuer.run(batch_size=batch)


@asynccontextmanager
async def watching(debounce_s: float) -> AsyncIterator[CompletionWatcher]:
    """Hold what tells when jobs are done."""
    driver = AsyncpgDriver(await connected())
    async with CompletionWatcher(driver, queries=Queries(driver), debounce=timedelta(seconds=debounce_s)) as watcher:
        yield watcher


async def single_calls(queries: Queries, calls: int) -> dict[str, float]:
    """Measure calls one at a time."""
    taken = []
    async with watching(0.001) as watcher:
        for number in range(calls + 50):
            began = time.perf_counter()
            [job_id] = await queries.enqueue("identity", b"1")
            assert await watcher.wait_for(job_id) == "successful"
            taken.append(time.perf_counter() - began)
            if number == 0:
                first_s = time.perf_counter() - BEGAN
    return {"first_s": first_s, **stopwatch.percentiles(taken[50:])}


async def many_jobs(queries: Queries, jobs: int, singles: int) -> dict[str, float]:
    """Measure jobs submitted at once, and one by one."""
    async with watching(0.02) as watcher:
        [job_id] = await queries.enqueue("identity", b"1")
        await watcher.wait_for(job_id)
        began = time.perf_counter()
        job_ids = await queries.enqueue(["identity"] * jobs, [b"1"] * jobs, [0] * jobs)
        await asyncio.gather(*map(watcher.wait_for, job_ids))
        found = {"rate": jobs / (time.perf_counter() - began)}
        began = time.perf_counter()
        for _ in range(singles):
            job_ids = await queries.enqueue("identity", b"1")
        found["submit_beside_s"] = singles / (time.perf_counter() - began)
        await watcher.wait_for(job_ids[0])
    return found


async def submitted(queries: Queries, singles: int) -> float:
    """Return the jobs per second that are submitted one by one while nobody works."""
    began = time.perf_counter()
    for _ in range(singles):
        await queries.enqueue("identity", b"1")
    return singles / (time.perf_counter() - began)


async def measure(given: Any) -> dict[str, float]:
    """Measure with one kind of workers, then with the other."""
    queries = Queries(AsyncpgDriver(await connected()))
    await queries.install()
    me = sys.executable, __file__, "worker"
    with stopwatch.running(*me, "1", times=2):
        found = await single_calls(queries, given.calls)
    with stopwatch.running(*me, "100", times=2):
        found |= await many_jobs(queries, given.jobs, given.singles)
    return {**found, "submit_s": await submitted(queries, given.singles)}


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        uvloop.run(work(int(sys.argv[2])))
    else:
        stopwatch.tell(uvloop.run(measure(stopwatch.asked())))
