"""The app that a tempest calls. Each attempt writes down when it begins, and holds a lock for as long as it lives.

The lock is the proof: the system lets go of it when the process is dead and not before, so the next attempt that finds
it taken runs beside the one before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import apothic
from apothic import Retries

app = apothic.App("tempestuous")
DYING_S = 0.5  # a process that was sent SIGKILL may need a moment on a busy machine


def write(book: str, *words: object) -> None:
    """Write a line in one piece."""
    handle = os.open(f"{book}/book", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(handle)


@contextlib.contextmanager
def alive(book: str) -> Iterator[int]:
    """Note that this attempt begins, and whether an earlier one still lives; yield its number."""
    job = apothic.current_job()
    assert job is not None
    with (Path(book) / job.id).open("a") as lock:
        over = time.monotonic() + DYING_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > over:
                    write(book, "beside", job.id, job.attempt, time.monotonic())
                    break
                time.sleep(0.01)
        write(book, "begin", job.id, job.attempt, time.monotonic())
        yield job.attempt


@app.function(max_containers=3, tasks_per_container=10, cpu=0.1, memory_mb=64)
def steady(book: str, number: int, wait_s: float) -> list[int]:
    with alive(book) as attempt:
        print(attempt, "hello", number, flush=True)
        time.sleep(wait_s)
        print(attempt, "goodbye", number)
        return [number, attempt]


@app.function(cpu=0.1, memory_mb=64, retries=Retries(2, initial_delay_s=0.1, max_delay_s=0.2))
def flaky(book: str, number: int, wait_s: float) -> list[int]:
    with alive(book) as attempt:
        print(attempt, "hello", number)
        time.sleep(wait_s)
        if attempt <= 2:
            raise ValueError(f"not yet {number}")
        return [number, attempt]


@app.function(cpu=0.1, memory_mb=64)
def refuses(book: str, number: int, wait_s: float) -> None:
    with alive(book) as attempt:
        print(attempt, "hello", number)
        time.sleep(wait_s)
        raise ValueError(f"not {number}")


@app.function(cpu=0.1, memory_mb=64, timeout_s=1)
def slow(book: str, number: int, wait_s: float) -> None:
    with alive(book) as attempt:
        print(attempt, "hello", number, flush=True)
        time.sleep(60)


@app.function(cpu=0.1, memory_mb=64, timeout_s=60)
def endless(book: str, number: int, wait_s: float) -> None:
    with alive(book) as attempt:
        print(attempt, "hello", number, flush=True)
        time.sleep(600)


@app.function(cpu=0.1, memory_mb=64)
def once(book: str, number: int, wait_s: float) -> list[int]:
    with alive(book) as attempt:
        print(attempt, "hello", number)
        time.sleep(wait_s)
        return [number, attempt]


@app.function(cpu=0.1, memory_mb=64, retries=Retries(3, stream="replay"))
def replays(book: str, number: int, wait_s: float) -> Iterator[int]:
    with alive(book) as attempt:
        for item in range(20):
            print(attempt, "item", item)
            yield item
            time.sleep(wait_s / 10)
    return number


@app.function(cpu=0.1, memory_mb=64, max_containers=2, tasks_per_container=4, concurrent_requests=4)
async def together(book: str, number: int, wait_s: float) -> list[int]:
    import asyncio

    with alive(book) as attempt:
        print(attempt, "hello", number)
        await asyncio.sleep(wait_s)
        return [number, attempt]
