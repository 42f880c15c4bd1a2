"""Celery with Redis as its queue and its store of results; prints JSON. Runs in a virtual environment of its own.

Two prefork workers that do not gossip; results come by Redis' publish and subscribe, so that nothing polls; pickle, so
that bytes are not written as text.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import os  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import stopwatch  # noqa: E402
from celery import Celery, group  # noqa: E402

PLACE = os.environ.get("BENCH_PLACE", "")
app = Celery(broker=f"redis+socket://{PLACE}", backend=f"redis+socket://{PLACE}")
app.conf.update(
    task_serializer="pickle", result_serializer="pickle", accept_content=["pickle"], worker_hijack_root_logger=False
)


@app.task(name="identity")
def identity(x: Any) -> Any:
    """Return what came."""
    return x


def measure(given: Any) -> dict[str, float]:
    """Measure what it does once its workers run."""
    assert identity.delay(1).get(timeout=60) == 1
    found = {"first_s": time.perf_counter() - BEGAN}
    found |= stopwatch.warm(lambda: identity.delay(1).get(), given.calls)
    many = group(identity.s(n) for n in range(given.jobs))
    found["rate"] = given.jobs / stopwatch.seconds(lambda: many.apply_async().get())
    results: list[Any] = []
    found["submit_s"] = given.singles / stopwatch.seconds(
        lambda: results.extend(identity.delay(n) for n in range(given.singles))
    )
    for result in results:
        result.get()
    found["mb_s"] = stopwatch.megabytes_s(lambda data: identity.delay(data).get())
    return found


def main() -> None:
    """Measure and print."""
    given = stopwatch.asked()
    words = ["worker", "--concurrency=2", "--loglevel=ERROR"]
    words += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    # Root may not take pickles from just any queue, but this one is nobody else's.
    with stopwatch.running(sys.executable, "-m", "celery", "-A", "celery_calls", *words, C_FORCE_ROOT="1"):
        stopwatch.tell(measure(given))


if __name__ == "__main__":
    main()
