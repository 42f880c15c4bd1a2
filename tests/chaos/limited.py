"""The app of test_limits.py: functions of limit 1, 2 and 7, whose running inputs can be counted from outside.

Each input that runs has a file in the directory of its function, with the process and the attempt in its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

import apothic

app = apothic.App("limited")
LIMITS = {"one": 1, "two_async": 2, "two_containers": 2, "seven_threads": 7, "seven_async": 7, "seven_containers": 7}
AGAIN = apothic.Retries(2, initial_delay_s=0.05, max_delay_s=0.2)
WIDE = {"cpu": 0.01, "memory_mb": 256, "retries": AGAIN}
_libc = ctypes.CDLL(None)
_holding = ctypes.PyDLL(None)  # keeps the interpreter's lock while it sleeps


@contextlib.contextmanager
def alive(folder: str, *, alone: bool) -> Iterator[None]:
    """Be counted for the length of a block. One that is `alone` in its process clears what an interrupt left there."""
    if alone:
        for left in Path(folder).glob(f"{os.getpid()}-*"):
            left.unlink()
    job = apothic.current_job()
    mark = Path(folder, f"{os.getpid()}-{job.id}-{job.attempt}")
    mark.touch()
    try:
        yield
    finally:
        mark.unlink()


def work(how: str, run_s: float) -> None:
    """Spend the time in Python, in C, or in C with the lock held; or fail."""
    if how == "c":
        _libc.usleep(int(run_s * 1e6))
    elif how == "stubborn":
        _holding.usleep(int(run_s * 1e6))
    elif how == "raise":
        raise ValueError("once more")
    until = time.monotonic() + run_s
    while how == "loop" and time.monotonic() < until:
        pass


@app.function(max_containers=1, **WIDE)
def one(folder: str, how: str, run_s: float) -> None:
    with alive(folder, alone=True):
        work(how, run_s)


@app.function(max_containers=2, **WIDE)
def two_containers(folder: str, how: str, run_s: float) -> None:
    with alive(folder, alone=True):
        work(how, run_s)


@app.function(max_containers=7, **WIDE)
def seven_containers(folder: str, how: str, run_s: float) -> None:
    with alive(folder, alone=True):
        work(how, run_s)


@app.function(max_containers=1, concurrent_requests=7, **WIDE)
def seven_threads(folder: str, how: str, run_s: float) -> None:
    with alive(folder, alone=False):
        work(how, run_s)


@app.function(max_containers=1, concurrent_requests=2, **WIDE)
async def two_async(folder: str, how: str, run_s: float) -> None:
    with alive(folder, alone=False):
        await asyncio.sleep(run_s)
        work("raise" if how == "raise" else "", 0)


@app.function(max_containers=1, **WIDE)
@apothic.concurrent(max_inputs=7, target_inputs=3)
async def seven_async(folder: str, how: str, run_s: float) -> None:
    with alive(folder, alone=False):
        await asyncio.sleep(run_s)
        work("raise" if how == "raise" else "", 0)
