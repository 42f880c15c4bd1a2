"""The app of generator functions that the tests beside it deploy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apothic

app = apothic.App("gens")


@dataclass
class Point:
    x: int
    y: int


class Dry(Exception):
    def __init__(self, drawn: int) -> None:
        super().__init__(drawn)
        self.drawn = drawn


@app.function(max_containers=4)
def count(to: int, start: int = 0) -> Generator[int, None, str]:
    print("counting to", to)
    yield from range(start, to)
    return f"counted to {to}"


@app.function(max_containers=2)
async def tick(to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number
        await asyncio.sleep(0)


@app.function()
def echo(values: list[Any]) -> Iterator[Any]:
    yield from values


@app.function()
def large(sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        yield bytes([size % 251]) * size


@app.function()
def draw(good: int) -> Iterator[int]:
    yield from range(good)
    raise Dry(good)


@app.function(max_containers=2)
def endless(pause_s: float = 0.01) -> Iterator[int]:
    number = 0
    try:
        while True:
            yield number
            number += 1
            time.sleep(pause_s)
    finally:
        print("let go at", number)


@app.function(max_containers=2)
def gated(gate: str, before: int, after: int = 0) -> Iterator[int]:
    yield from range(before)
    while not Path(gate).exists():
        time.sleep(0.01)
    yield from range(before, before + after)


@app.function(stream_window=5)
def narrow(to: int, gate: str = "", after: int = 0) -> Iterator[int]:
    yield from range(to)
    while gate and not Path(gate).exists():
        time.sleep(0.01)
    yield from range(to, to + after)


@app.function(retries=apothic.Retries(2, initial_delay_s=0.0, stream="restart"))
def restarting(good: int) -> Iterator[int]:
    yield from range(good)
    job = apothic.current_job()
    if job is not None and job.attempt == 1:
        raise Dry(good)


@app.function()
def doubled(to: int) -> Iterator[int]:
    for number in count.remote_gen(to):
        yield 2 * number


@app.function()
def first_of(to: int) -> int:
    with contextlib.closing(count.remote_gen(to)) as numbers:  # type: ignore[type-var]
        return next(numbers)


@app.function()
def plain(number: int) -> int:
    print("plain", number, "in", os.getpid())
    return -number
