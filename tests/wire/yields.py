"""The app of generators that is followed from outside."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import apothic

app = apothic.App("yields")


@app.function(max_containers=3, stream_window=100_000)
def count(number: int) -> Iterator[int]:
    yield from range(number)


@app.function(max_containers=3, stream_window=100_000)
def paced(number: int, pause_s: float, what: Any = None) -> Iterator[Any]:
    for each in range(number):
        yield each if what is None else what
        if pause_s:
            time.sleep(pause_s)


@app.function()
def talk(lines: int) -> None:
    for start in range(0, lines, 1_000):
        print("\n".join(f"line {number}" for number in range(start, min(start + 1_000, lines))))


@app.function(max_containers=3)
def last_words(how: str) -> None:
    """Print a little or a lot, in order and to the last line, then end in a way of its own."""
    if how == "10 MB":
        for number in range(10_000):
            print(f"{number:06} " + "x" * 1_000)
    elif how == "1 MB line":
        print("y" * 1_000_000)
    elif how == "invalid":
        sys.stdout.buffer.write(b"bad \xff\xfe bytes\n")
        sys.stdout.flush()
    print("the last line", flush=True)
    if how == "os._exit":
        os._exit(0)
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
