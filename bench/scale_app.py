"""The app whose jobs fill the store of the scale study."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

import apothic

app = apothic.App("scale")


@app.function(max_containers=1, max_pending_tasks=1_000_000, timeout_s=86_400, cpu=0.1, memory_mb=64)
def made(n: int, pause_s: float = 0.0) -> Iterator[int]:
    """Yield small integers, then hold the only container up; refuse what is less than none."""
    if n < 0:
        raise ValueError("less than none")
    yield from range(n)
    time.sleep(pause_s)


@app.function(max_containers=1, max_pending_tasks=1_000_000, cpu=0.1, memory_mb=64)
def rare(x: int) -> int:
    """Return what came. One job in a thousand is of this function."""
    return x


def main() -> None:
    """Run one job of each kind to its end; print their ids."""
    jobs = [made.spawn(4), made.spawn(-1), rare.spawn(1)]
    for job in jobs:
        with contextlib.suppress(ValueError):
            job.wait()
    print(json.dumps([job.job_id for job in jobs]))


if __name__ == "__main__":
    from bench.scale_app import main as of_the_module  # whose functions a container can find

    of_the_module()
