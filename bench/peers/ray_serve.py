"""Ray Serve's no-op over HTTP. Runs in a virtual environment of its own, without this project; prints JSON.

It starts Serve, then runs the load generator whose path and Python it is given, and prints what that prints.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import tempfile

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports home otherwise

import ray
from ray import serve


@serve.deployment(max_ongoing_requests=1_000)
class Noop:
    """As its manual writes one."""

    async def __call__(self, request: object) -> str:
        """Answer with two bytes."""
        return "ok"


def free_port() -> int:
    """Return a port that nobody has at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--connections", required=True)
    parser.add_argument("--count", required=True)
    given = parser.parse_args()
    # The name is short because Ray puts sockets below it, and a socket's path may not be long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        with ray.init(num_cpus=2, _temp_dir=directory, **options):
            port = free_port()
            serve.start(http_options={"host": "127.0.0.1", "port": port, "access_log": False})
            serve.run(Noop.bind(), route_prefix="/")
            command = [given.python, "-m", "bench.load", "127.0.0.1", str(port), "/", given.connections]
            subprocess.run([*command, "200"], check=True, cwd=given.root, capture_output=True)
            done = subprocess.run([*command, given.count], check=True, cwd=given.root, capture_output=True, text=True)
            serve.shutdown()
    print(done.stdout)


if __name__ == "__main__":
    main()
