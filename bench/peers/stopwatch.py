"""What the scripts of all peers have in common. Needs nothing but the standard library, as each runs in its own."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MEGABYTES = 10


def asked() -> argparse.Namespace:
    """Return how much is to be measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--singles", type=int, required=True)
    return parser.parse_args()


def payload() -> bytes:
    """Return an argument of ten megabytes."""
    return bytes(range(250)) * (MEGABYTES * 4000)


def percentiles(taken: list[float]) -> dict[str, float]:
    """Return the figures of calls that took so many seconds."""
    ordered = sorted(taken)
    return {f"p{each}_ms": 1000 * ordered[len(ordered) * each // 100] for each in (50, 95, 99)}


def seconds(deed: Callable[[], Any]) -> float:
    """Return how long it took."""
    began = time.perf_counter()
    deed()
    return time.perf_counter() - began


def warm(deed: Callable[[], Any], times: int) -> dict[str, float]:
    """Time single calls, each waited for, after some that are not counted."""
    for _ in range(max(times // 20, 5)):
        deed()
    return percentiles([seconds(deed) for _ in range(times)])


def megabytes_s(there_and_back: Callable[[bytes], bytes]) -> float:
    """Return how many megabytes a second go there and come back, each counted once: the median of some turns.

    Ten turns come first: the memory that they go through is touched for the first time then.
    """
    data = bytearray(payload())

    def turn(number: int) -> float:
        data[:4] = number.to_bytes(4, "big")  # new bytes each time: what is known already need not be sent
        given = bytes(data)
        began = time.perf_counter()
        assert len(there_and_back(given)) == len(given)
        return time.perf_counter() - began

    taken = [turn(number) for number in range(20)]
    return MEGABYTES / sorted(taken[10:])[5]


@contextmanager
def running(*command: str, times: int = 1, **variables: str) -> Iterator[None]:
    """Run workers beside the scripts; end them with all they started, at once, as some never end when asked."""
    options = {"cwd": Path(__file__).parent, "env": {**os.environ, **variables}, "start_new_session": True}
    workers = [subprocess.Popen(command, stdout=subprocess.DEVNULL, **options) for _ in range(times)]
    try:
        yield
    finally:
        for worker in workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def tell(figures: dict[str, float]) -> None:
    """Print them as the bench reads them."""
    print(json.dumps(figures), flush=True)
