"""Many readers of one stream, each in a process of its own: `python -m bench.readers ours|bare`, one by hand."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Callable

import apothic
from bench import sse

BATCH = 50


def crowd(readers: int, kind: str, n: int, begin: Callable[[int], str]) -> float:
    """Return the seconds from `begin`, which starts a stream and says where it is, until each reader has all of it.

    A short stream comes before that: the start of an interpreter and of a connection is not what is measured.
    """
    command = [sys.executable, "-m", "bench.readers", kind]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for _ in range(readers)
    ]
    try:
        _all_read(running, begin(10), 10)
        began = time.perf_counter()
        _all_read(running, begin(n), n)
        return time.perf_counter() - began
    finally:
        for reader in running:
            reader.kill()
            reader.communicate()


def _all_read(running: list[subprocess.Popen[str]], place: str, n: int) -> None:
    for reader in running:
        assert reader.stdin is not None
        reader.stdin.write(f"{place} {n}\n")
    for reader in running:
        assert reader.stdout is not None and reader.stdout.readline() == f"{n}\n", "a reader has failed"


def read_ours(job_id: str) -> int:
    """Follow a job's items to its end; return how many there were."""
    got = 0
    for event in apothic.Job.attach(job_id).stream_events(event_types=["job.stream_item"]):
        match event:
            case apothic.JobStreamItemEvent(value):
                assert value == got
                got += 1
            case apothic.JobResetEvent(reason):
                raise AssertionError(f"{reason} after {got} items: the window is too small for this")
    return got


def read_bare(port: str, n: int) -> int:
    """Read the bare endpoint to its end; return how many events there were."""
    sse.read(http.client.HTTPConnection("127.0.0.1", int(port)), n, BATCH)
    return n


def main(kind: str) -> None:
    """Read what one is told to, and say how much that was, until nothing more is asked for."""
    for line in sys.stdin:
        place, n = line.split()
        print(read_ours(place) if kind == "ours" else read_bare(place, int(n)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
