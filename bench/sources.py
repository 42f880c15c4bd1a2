"""The app whose streams are measured."""

from __future__ import annotations

import time
from collections.abc import Iterator

import apothic

app = apothic.App("bench-streams")


@app.function(max_containers=1, timeout_s=600, stream_window=200_000)
def count(n: int) -> Iterator[int]:
    """Yield small integers; all of them are kept, so that no reader is too slow."""
    yield from range(n)


@app.function(max_containers=1, timeout_s=600)
def paced(n: int, pause_s: float) -> Iterator[int]:
    """Yield small integers at a steady pace."""
    for number in range(n):
        yield number
        time.sleep(pause_s)


@app.function(max_containers=1, timeout_s=600)
def say(n: int) -> None:
    """Print lines."""
    for number in range(n):
        print(number)
