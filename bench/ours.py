"""What this build does: a real server, agent and containers in a data directory of their own."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.floors import timed


@contextmanager
def server() -> Iterator[Path]:
    """Run a server on a fresh data directory; everything is gone afterwards."""
    data_dir = Path(tempfile.mkdtemp(prefix="apothic-bench-"))
    environment = {**os.environ, "APOTHIC_DATA_DIR": str(data_dir), "APOTHIC_GATEWAY_PORT": "0"}
    try:
        apothic("up", "--port=0", env=environment)
        os.environ["APOTHIC_DATA_DIR"] = str(data_dir)
        yield data_dir
    finally:
        apothic("down", env=environment)
        shutil.rmtree(data_dir, ignore_errors=True)


def apothic(*words: str, env: dict[str, str]) -> str:
    """Run the command line; return what it printed."""
    command = [sys.executable, "-m", "apothic", *words]
    return subprocess.run(command, check=True, env=env, stdout=subprocess.PIPE, text=True).stdout


def remote_calls(times: int) -> list[float]:
    """Time warm calls of a no-op, each durable before it returns."""
    from bench.noop import noop

    timed(lambda: noop.remote(1), 50)
    return timed(lambda: noop.remote(1), times)


def map_rate(items: int) -> float:
    """Return calls per second of a map over two containers."""
    from bench.noop import noop

    noop.map(range(20))
    began = time.perf_counter()
    assert noop.map(range(items)) == list(range(items))
    return items / (time.perf_counter() - began)


def spawn_rate(jobs: int) -> float:
    """Return jobs per second spawned one by one, each on disk before the next."""
    from bench.noop import noop

    began = time.perf_counter()
    spawned = [noop.spawn(n) for n in range(jobs)]
    rate = jobs / (time.perf_counter() - began)
    spawned[-1].wait()
    return rate


def spawn_rate_of_threads(jobs: int, threads: int) -> float:
    """Return jobs per second spawned from many threads at once."""
    from bench.noop import noop

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        spawned = list(pool.map(noop.spawn, range(jobs)))
    rate = jobs / (time.perf_counter() - began)
    for job in spawned[-threads:]:
        job.wait()
    return rate


def spawn_map_rate(jobs: int) -> float:
    """Return jobs per second of one `spawn_map`, all on disk when it returns."""
    from bench.noop import noop

    began = time.perf_counter()
    spawned = noop.spawn_map(range(jobs))
    rate = jobs / (time.perf_counter() - began)
    for job in spawned[-100:]:
        job.wait()
    return rate


def megabytes_s() -> float:
    """Return how many megabytes a second go there and come back, each counted once, as peers' scripts do."""
    from bench.noop import noop
    from bench.peers import stopwatch

    return stopwatch.megabytes_s(noop.remote)


def new_container_ms(times: int) -> float:
    """Return the milliseconds to the first result of a function without a container: the median of some."""
    from bench.noop import fresh

    taken = []
    for number in range(times):
        others = containers()
        began = time.perf_counter()
        assert fresh.remote(number) == number
        taken.append(1000 * (time.perf_counter() - began))
        while containers() > others:
            time.sleep(0.02)
    return statistics.median(taken)


def containers() -> int:
    """Return how many containers there are."""
    from apothic.protocol import messages as m
    from apothic.protocol import routes
    from bench.noop import app

    return sum(agent.containers for agent in app.client.ask_blocking(routes.LIST_AGENTS, m.ListAgents()).agents)


def help_ms() -> float:
    """Return the milliseconds of `apothic --help`, the whole process."""
    script = Path(sys.executable).parent / "apothic"
    return 1000 * statistics.median(
        timed(lambda: subprocess.run([script, "--help"], check=True, stdout=subprocess.DEVNULL), 10)
    )


FIRST = """
import apothic

app = apothic.App("first")

@app.function()
def noop(value: int) -> int:
    return value

if __name__ == "__main__":
    assert noop.remote(1) == 1
"""


def from_nothing() -> tuple[float, float]:
    """Return the seconds from a clean data directory to the first result, and the memory of what then runs.

    The start of the server is part of it; what then runs is the server, an agent and one warm container. The app is a
    file of its own, as a first one is.
    """
    data_dir = Path(tempfile.mkdtemp(prefix="apothic-bench-"))
    environment = {**os.environ, "APOTHIC_DATA_DIR": str(data_dir), "APOTHIC_GATEWAY_PORT": "0"}
    try:
        script = data_dir / "first.py"
        script.write_text(FIRST)
        began = time.perf_counter()
        subprocess.run([sys.executable, str(script)], check=True, env=environment, stderr=subprocess.DEVNULL)
        return time.perf_counter() - began, idle_memory_mib(data_dir)
    finally:
        apothic("down", env=environment)
        shutil.rmtree(data_dir, ignore_errors=True)


def idle_memory_mib(data_dir: Path) -> float:
    """Return the PSS of a server, its agent and its containers, in MiB."""
    about = json.loads((data_dir / "server.json").read_text())
    marked = [psutil.Process(about["pid"])]
    for process in psutil.process_iter(["cmdline"]):
        if str(data_dir) in " ".join(process.info["cmdline"] or []) and process.pid != about["pid"]:
            marked.append(process)
    whole = {each.pid: each for process in marked for each in [process, *process.children(recursive=True)]}
    return sum(process.memory_full_info().pss for process in whole.values()) / 2**20
