"""Ray's tasks and actors. Runs in a virtual environment of its own, without this project; prints JSON.

As its manual has them: two workers, arguments and results in its own store, nothing durable.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import os  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from itertools import cycle  # noqa: E402
from typing import Any  # noqa: E402

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports home otherwise

import ray  # noqa: E402
import stopwatch  # noqa: E402


@ray.remote
def identity(x: Any) -> Any:
    """Return what came."""
    return x


@ray.remote
class Echo:
    """An actor that does the same."""

    def identity(self, x: Any) -> Any:
        """Return what came."""
        return x


Remote = Callable[[Any], Any]


def figures(one: Remote, several: Remote, calls: int, jobs: int, singles: int) -> dict[str, float]:
    """Measure what each, returning a reference, does: one call at a time, and over two workers."""
    found = stopwatch.warm(lambda: ray.get(one(1)), calls)
    ray.get([several(n) for n in range(100)])
    found["rate"] = jobs / stopwatch.seconds(lambda: ray.get([several(n) for n in range(jobs)]))
    references: list[Any] = []
    found["submit_s"] = singles / stopwatch.seconds(lambda: references.extend(one(n) for n in range(singles)))
    ray.get(references)
    found["mb_s"] = stopwatch.megabytes_s(lambda data: ray.get(one(data)))
    return found


def main() -> None:
    """Measure and print."""
    given = stopwatch.asked()
    many = given.calls, given.jobs, given.singles
    # The name is short because Ray puts sockets below it, and a socket's path may not be long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        with ray.init(num_cpus=2, _temp_dir=directory, **options):
            assert ray.get(identity.remote(1)) == 1
            told = {"first_s": time.perf_counter() - BEGAN}
            # Actors take no CPU of the two while they wait, so both are there beside the tasks.
            actors = [Echo.remote() for _ in range(2)]
            turns = cycle(actors)
            tasks = figures(identity.remote, identity.remote, *many)
            mine = figures(actors[0].identity.remote, lambda x: next(turns).identity.remote(x), *many)
    for kind, found in (("task", tasks), ("actor", mine)):
        told |= {f"{kind} {name}": value for name, value in found.items()}
    stopwatch.tell(told)


if __name__ == "__main__":
    main()
