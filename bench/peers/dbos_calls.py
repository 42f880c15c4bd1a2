"""DBOS on SQLite or PostgreSQL; prints JSON. Runs in a virtual environment of its own.

A client from outside puts workflows into a queue that two worker processes take from. The workers look each 10 ms, the
client each millisecond (each 50 for many) instead of each second, which is what both do by themselves: looking less
often makes single calls slower, looking more often makes everything slower.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from typing import Any  # noqa: E402

import stopwatch  # noqa: E402
from dbos import DBOS, DBOSClient  # noqa: E402

QUEUE_POLL_S, CALL_POLL_S, MANY_POLL_S = 0.01, 0.001, 0.05


@DBOS.workflow(name="identity")
def identity(x: Any) -> Any:
    """Return what came."""
    return x


def launch(url: str) -> None:
    """Be a process of the application, which makes the tables if there are none."""
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "application_version": "1"})
    DBOS.launch()
    DBOS.register_queue("bench", polling_interval_sec=QUEUE_POLL_S)


def measure(client: DBOSClient, given: Any) -> dict[str, float]:
    """Measure what it does once its workers run."""

    def sent(x: Any) -> Any:
        return client.enqueue({"queue_name": "bench", "workflow_name": "identity"}, x)

    def call(x: Any) -> Any:
        return sent(x).get_result(polling_interval_sec=CALL_POLL_S)

    def gather(handles: list[Any]) -> None:
        for handle in handles:
            handle.get_result(polling_interval_sec=MANY_POLL_S)

    assert call(1) == 1
    found = {"first_s": time.perf_counter() - BEGAN}
    found |= stopwatch.warm(lambda: call(1), given.calls)
    found["rate"] = given.jobs / stopwatch.seconds(lambda: gather([sent(n) for n in range(given.jobs)]))
    handles: list[Any] = []
    found["submit_s"] = given.singles / stopwatch.seconds(lambda: handles.extend(map(sent, range(given.singles))))
    gather(handles)
    return {**found, "mb_s": stopwatch.megabytes_s(call)}


def main() -> None:
    """Measure and print."""
    given, place = stopwatch.asked(), os.environ["BENCH_PLACE"]
    with tempfile.TemporaryDirectory(prefix="dbos-") as directory:
        url = f"postgresql://postgres@/bench?host={place}" if place else f"sqlite:///{directory}/dbos.sqlite"
        launch(url)
        DBOS.destroy()
        with stopwatch.running(sys.executable, __file__, "worker", url, times=2):
            client = DBOSClient(system_database_url=url)
            stopwatch.tell(measure(client, given))
            client.destroy()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        launch(sys.argv[2])
        signal.pause()
    else:
        main()
