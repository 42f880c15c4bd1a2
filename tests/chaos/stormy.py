"""The app that a storm calls: functions that return, raise, print, wait a little, die. Each notes that it ran."""

from __future__ import annotations

import os
import time

import apothic

app = apothic.App("stormy")


def note(book: str) -> int:
    """Write down, in one piece, that this attempt has begun; return its number."""
    job = apothic.current_job()
    line = f"{job.id} {job.attempt}\n".encode()
    handle = os.open(book, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)
    return job.attempt


@app.function(max_containers=3, tasks_per_container=20)
def steady(book: str, number: int, wait_s: float, baggage: str = "") -> object:
    note(book)
    print("hello", number, flush=True)
    if wait_s:
        time.sleep(wait_s)
    print("goodbye", number)
    return [number * 2, baggage]


@app.function(max_containers=1)
def refuses(book: str, number: int) -> None:
    note(book)
    print("hello", number)
    raise ValueError(f"not {number}")


@app.function(max_containers=1)
def dies(book: str, number: int) -> None:
    note(book)
    print("hello", number, flush=True)
    os._exit(number % 3)


@app.function(max_containers=1)
def dies_first(book: str, number: int) -> int:
    if note(book) == 1:
        os._exit(0)
    return number
