"""What this build's streams do: each item is on disk before anybody is told of it."""

from __future__ import annotations

import random
import time
from typing import Any

import apothic
from bench.readers import crowd
from bench.sources import count


def read(n: int) -> tuple[float, float]:
    """Read a generator's items while it runs; return the seconds to the first one, and to the end."""
    began = time.perf_counter()
    first, got = 0.0, 0
    for value in count.remote_gen(n):
        assert value == got
        got += 1
        first = first or time.perf_counter() - began
    assert got == n
    return first, time.perf_counter() - began


def read_by_many(readers: int, n: int) -> tuple[float, apothic.Job]:
    """Follow one running job from many processes; return the seconds until all have all of it, and the job."""
    jobs: list[apothic.Job] = []

    def begin(items: int) -> str:
        jobs.append(count.spawn(items))
        return jobs[-1].job_id

    return crowd(readers, "ours", n, begin), jobs[-1]


def unread(function: Any, n: int) -> float:
    """Return the seconds that a job of so many events runs while nobody reads them."""
    job = function.spawn(n)
    job.wait()
    return ran(job)


def ran(job: apothic.Job) -> float:
    """Return the seconds from a job's start to its end, by the server's clock."""
    for event in job.watch(snapshot=True):
        return float(event.data["ended_at"] - event.data["started_at"])
    raise AssertionError("a watch begins with a snapshot")


def resume(job: apothic.Job, n: int, times: int) -> list[float]:
    """Time how long a reader that goes on from anywhere in a job of `n` items waits for its first event."""
    taken, places = [], random.Random(n)
    for _ in range(times):
        place = places.randrange(n)
        began = time.perf_counter()
        for event in job.stream_events(last_index=place):
            taken.append(time.perf_counter() - began)
            assert event.index == place + 1
            break
    return taken
