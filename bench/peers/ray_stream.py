"""Ray's streaming generator. Runs in a virtual environment of its own, without this project; prints JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports home otherwise

import ray


@ray.remote
class Source:
    """An actor, so that it is warm."""

    @ray.method(num_returns="streaming")
    def count(self, n: int) -> Iterator[int]:
        """Yield small integers, in a loop: Ray's actors cannot `yield from` a range."""
        for number in range(n):  # noqa: UP028
            yield number


def read(source: Any, n: int) -> tuple[float, float]:
    """Read a stream of `n` items as Ray's manual does; return the seconds to the first item, and to the last."""
    began = time.perf_counter()
    first = got = 0.0
    for ref in source.count.remote(n):
        assert ray.get(ref) == got
        got += 1
        first = first or time.perf_counter() - began
    assert got == n
    return first, time.perf_counter() - began


def unread(source: Any, n: int) -> float:
    """Return the seconds until a generator has ended that nobody reads."""
    began = time.perf_counter()
    ray.get(source.count.remote(n).completed())
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--times", type=int, required=True)
    given = parser.parse_args()
    # The name is short because Ray puts sockets below it, and a socket's path may not be long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        with ray.init(num_cpus=2, _temp_dir=directory, **options):
            source = Source.remote()
            read(source, 1000)
            first = statistics.median(read(source, 10)[0] for _ in range(given.times))
            _, read_s = read(source, given.items)
            unread_s = unread(source, given.items)
    figures = {"first_ms": first * 1000, "items_s": given.items / read_s, "unread_s": given.items / unread_s}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
