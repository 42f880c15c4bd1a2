"""The same over HTTP: a real server on each directory, one connection to each, which take turns."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from bench.scale_figures import Found
from bench.scale_store import WARMED, into_memory, known, running


class Asker:
    """One connection to the server of a data directory, with its admin key."""

    def __init__(self, data_dir: Path) -> None:
        about = json.loads((data_dir / "server.json").read_text())
        self.server = psutil.Process(about["pid"])
        self.address = urlsplit(about["base_url"]).netloc
        self._connection = http.client.HTTPConnection(self.address, timeout=120)
        self.headers = {"Authorization": f"Bearer {(data_dir / 'admin.key').read_text().strip()}"}

    def ask(self, line: str, body: Any = None) -> Any:
        """Ask one thing, `GET /v1/apps` say; return the answer."""
        method, path = line.split(" ")
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        self._connection.request(method, path, sent, {**self.headers, "Content-Type": "application/json"})
        with self._connection.getresponse() as response:
            got = response.read()
        assert response.status < 300, got
        return json.loads(got) if got and path != "/metrics" else None

    def first_event(self, job_id: str, after: int) -> float:
        """Resume an ended job's stream; return the seconds to the first event."""
        began = time.perf_counter()
        self._connection.request(
            "GET", f"/v1/jobs/{job_id}/events?after={after}", headers={**self.headers, "Accept": "text/event-stream"}
        )
        with self._connection.getresponse() as response:
            while not response.readline().startswith(b"event:"):
                pass
            took = time.perf_counter() - began
            response.read()
        return took

    def pss_mib(self) -> float:
        """Return the memory of the control plane's process."""
        return float(self.server.memory_full_info().pss / 2**20)

    def busy(self, deed: Callable[[], object]) -> float:
        """Return the seconds of CPU that the control plane uses meanwhile."""
        before = self.server.cpu_times()
        deed()
        after = self.server.cpu_times()
        return float(after.user + after.system - before.user - before.system)


@contextmanager
def held_up(asker: Asker, functions: dict[str, str]) -> Iterator[None]:
    """Have one job hold the only container of `made`, so that whatever is submitted to it waits."""
    job = asker.ask(f"POST /v1/functions/{functions['made']}/jobs", {"args": [0, 3600.0]})["job"]["id"]
    while asker.ask(f"GET /v1/jobs/{job}")["status"] != "running":
        time.sleep(0.05)
    try:
        yield
    finally:
        asker.ask(f"POST /v1/jobs/{job}/cancel", {})


def measure(found: Found, dirs: dict[int, Path], rounds: int) -> None:
    """Time what a client sees, and note each as `name jobs`, in microseconds; then memory and files."""
    with ExitStack() as stack:
        askers, ids = {}, {}
        for jobs, path in dirs.items():
            began = time.perf_counter()
            stack.enter_context(running(path))
            found.keep(f"server start, with its agent {jobs}", 1e6 * (time.perf_counter() - began))
            askers[jobs], ids[jobs] = Asker(path), known(path)
            stack.enter_context(held_up(askers[jobs], ids[jobs][0]))
        for number in range(rounds):
            if number % WARMED == 0:
                into_memory(dirs.values())
            for jobs in random.Random(number).sample(list(dirs), len(dirs)):
                for name, took in _all(askers[jobs], *ids[jobs], random.Random(number)):
                    found.keep(f"HTTP: {name} {jobs}", 1e6 * took)
        for jobs, asker in askers.items():
            found.keep(f"MiB of the control plane {jobs}", asker.pss_mib())


def _all(asker: Asker, functions: dict[str, str], ended: list[str], dice: random.Random) -> Iterator[tuple[str, float]]:
    old = dice.choice(ended)
    began = time.perf_counter()
    job = asker.ask(f"POST /v1/functions/{functions['made']}/jobs", {"args": [1]})["job"]["id"]
    yield "submit, it waits", time.perf_counter() - began
    for name, line, body in (
        ("cancel", f"POST /v1/jobs/{job}/cancel", {}),
        ("warm call", f"POST /v1/functions/{functions['rare']}/jobs?wait_s=10", {"args": [1]}),
        ("job show", f"GET /v1/jobs/{old}", None),
        ("list, newest", "GET /v1/jobs", None),
    ):
        began = time.perf_counter()
        asker.ask(line, body)
        yield name, time.perf_counter() - began
    yield "resume, to the first event", asker.first_event(old, 5)
