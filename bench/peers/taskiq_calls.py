"""taskiq with Redis as its queue and its store of results; prints JSON. Runs in a virtual environment of its own.

Two worker processes on a Redis stream, acknowledged when the result is saved; results are asked for each millisecond
instead of each 200, which is what it does by itself.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import asyncio  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import stopwatch  # noqa: E402
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker  # noqa: E402

POLL_S = 0.001
URL = f"unix://{os.environ.get('BENCH_PLACE', '')}"
# From the first message on, so that none is lost that is sent before the workers listen.
broker = RedisStreamBroker(URL, consumer_id="0").with_result_backend(RedisAsyncResultBackend(URL))


@broker.task(task_name="identity")
async def identity(x: Any) -> Any:
    """Return what came."""
    return x


async def call(x: Any) -> Any:
    """Send one and wait for its result."""
    task = await identity.kiq(x)
    return (await task.wait_result(check_interval=POLL_S)).return_value


async def measure(given: Any) -> dict[str, float]:
    """Measure what it does once its workers run."""
    await broker.startup()
    assert await call(1) == 1
    found = {"first_s": time.perf_counter() - BEGAN}
    for _ in range(50):
        await call(1)
    taken = []
    for _ in range(given.calls):
        began = time.perf_counter()
        await call(1)
        taken.append(time.perf_counter() - began)
    found |= stopwatch.percentiles(taken)
    began = time.perf_counter()
    tasks = [await identity.kiq(n) for n in range(given.jobs)]
    for task in tasks:
        await task.wait_result(check_interval=POLL_S)
    found["rate"] = given.jobs / (time.perf_counter() - began)
    began = time.perf_counter()
    tasks = [await identity.kiq(n) for n in range(given.singles)]
    found["submit_s"] = given.singles / (time.perf_counter() - began)
    for task in tasks:
        await task.wait_result(check_interval=POLL_S)
    # Text, because its results may not hold bytes that are none.
    data, taken = "0123456789" * (stopwatch.MEGABYTES * 100_000), []
    for _ in range(20):
        began = time.perf_counter()
        assert len(await call(data)) == len(data)
        taken.append(time.perf_counter() - began)
    found["mb_s"] = stopwatch.MEGABYTES / sorted(taken[10:])[5]
    await broker.shutdown()
    return found


def main() -> None:
    """Measure and print."""
    given = stopwatch.asked()
    words = ["taskiq_calls:broker", "--workers", "2", "--log-level", "ERROR"]
    with stopwatch.running(str(Path(sys.executable).parent / "taskiq"), "worker", *words):
        stopwatch.tell(asyncio.run(measure(given)))


if __name__ == "__main__":
    main()
