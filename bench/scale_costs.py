"""What each thing costs in a store of so many jobs: the sizes take turns, so that no noise reads as growth."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from apothic.protocol.lifecycle import Status
from apothic.protocol.messages import ListJobs
from apothic.store.gauges import read_gauges
from apothic.store.retention import Retention
from apothic.store.stream import Wish
from bench.scale_figures import Found
from bench.scale_ground import Ground, ground
from bench.scale_store import WARMED, into_memory

Deed = Callable[[], Awaitable[Any]]


async def measure(found: Found, dirs: dict[int, Path], rounds: int) -> None:
    """Time every deed in every store, in turn, and note each as `name jobs`, in microseconds."""
    async with AsyncExitStack() as stack:
        grounds = {jobs: await stack.enter_async_context(ground(path)) for jobs, path in dirs.items()}
        for number in range(rounds):
            if number % WARMED == 0:
                into_memory(dirs.values())
            for jobs in _shuffled(grounds, number):
                dice = random.Random(number)
                await _all(found, jobs, deeds(grounds[jobs], dice))
        for number in range(max(rounds // 10, 5)):  # apart, for some push everything else out of the caches
            into_memory(dirs.values())
            for jobs in _shuffled(grounds, number):
                await _all(found, jobs, slow_deeds(grounds[jobs]))
        for jobs, one in grounds.items():  # last, for it deletes
            retention = Retention(one.db, one.clock, one.control.hub.ring, one.jobs.room, 5 * 86400.0)
            for _ in range(5):
                await _all(found, jobs, {"retention, a step of 30 jobs": retention.step})


def _shuffled(grounds: dict[int, Ground], seed: int) -> list[int]:
    return random.Random(seed).sample(list(grounds), len(grounds))


async def _all(found: Found, jobs: int, deeds: dict[str, Deed]) -> None:
    for name, deed in deeds.items():
        began = time.perf_counter()
        await deed()
        if name:
            found.keep(f"{name} {jobs}", 1e6 * (time.perf_counter() - began))


def deeds(one: Ground, dice: random.Random) -> dict[str, Deed]:
    """Return what is timed, in order: what is submitted is ended again, so the store stays as large as it is."""
    waiting: list[str] = []
    given: list[Any] = []

    async def submit() -> None:
        waiting.append(await one.jobs.submit(one.new("made")))

    async def claim() -> None:
        await one.jobs.submit(one.new("rare"))

    async def finish() -> None:
        await one.finish(given[0])

    async def take() -> None:
        given.extend(await one.taken())

    old = dice.choice(one.ended)
    return {
        "submit, it waits": submit,
        "job show, waiting": lambda: one.jobs.show(waiting[0]),
        "cancel": lambda: one.jobs.cancel(waiting[0]),
        "submit and claim": claim,
        "": take,
        "begin and success": finish,
        "job show, ended": partial(one.jobs.show, old),
        "resume": partial(one.stream.page, Wish(old, 5, limit=50)),
        "list, newest": partial(one.jobs.list, ListJobs()),
    }


def slow_deeds(one: Ground) -> dict[str, Deed]:
    """Return what may have to look far."""
    listed = {
        "list, succeeded (99 in 100)": ListJobs(status=Status.SUCCEEDED),
        "list, failed (1 in 100)": ListJobs(status=Status.FAILED),
        "list, queued (none)": ListJobs(status=Status.QUEUED),
        "list, of a common function": ListJobs(function="made"),
        "list, of a rare function (1 in 1,000)": ListJobs(app="scale", function="rare"),
        "list, failed, of a rare function (none)": ListJobs(function="rare", status=Status.FAILED),
        "list, of an app": ListJobs(app="scale"),
        "list, of an app that has none": ListJobs(app="none"),
        "list, from the middle on": ListJobs(after=one.ended[len(one.ended) // 2]),
    }
    return {
        **{name: partial(one.jobs.list, ask) for name, ask in listed.items()},
        "metrics": partial(read_gauges, one.db, one.jobs.room),
        "retention, nothing due": one.control.retention.step,
        "sweep": partial(one.control.fleet.sweep, one.clock.monotonic()),
        "is anything unfinished": one.jobs.unfinished,
    }
