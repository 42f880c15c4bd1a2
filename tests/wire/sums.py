"""The app that the tests beside it deploy."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apothic

app = apothic.App("sums")


@dataclass
class Point:
    x: int
    y: int


class Refusal(Exception):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(code, why)
        self.code = code


@app.function(max_containers=2)
def square(number: int) -> int:
    return number * number


@app.function()
def add(a: int, b: int = 1, *, times: int = 1) -> int:
    return (a + b) * times


@app.function()
async def greet(name: str) -> str:
    await asyncio.sleep(0)
    return f"hello {name}"


@app.function()
def mirrored(point: Point) -> Point:
    return Point(point.y, point.x)


@app.function()
def echo(value: Any) -> Any:
    return value


@app.function()
def loud(lines: int) -> None:
    for number in range(lines):
        print("line", number)
    print("warned", file=sys.stderr)


@app.function(max_containers=2)
def broken(number: int) -> int:
    if number % 10 == 3:
        raise Refusal(number, "a three")
    return number


@app.function(max_containers=1)
def held(gate: str) -> str:
    while not Path(gate).exists():
        time.sleep(0.01)
    return "let go"


@app.function()
def held_or_broken(gate: str) -> str:
    if not gate:
        raise Refusal(0, "no gate")
    while not Path(gate).exists():
        time.sleep(0.01)
    return "let go"


@app.function()
def chained(number: int) -> int:
    return square.remote(number) + add.remote(number)


@app.function()
def count(to: int) -> Any:
    yield from range(to)


@app.function(max_pending_tasks=5, max_containers=1)
def narrow(number: int) -> int:
    return -number


@app.function(max_pending_tasks=2, max_containers=1)
def held_narrow(gate: str) -> str:
    while not Path(gate).exists():
        time.sleep(0.01)
    return "let go"
