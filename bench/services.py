"""Services through the gateway, beside bare uvicorn with the same application and Ray Serve."""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from apothic.clock import SystemClock
from bench import floors, ours, peers
from bench.table import Found, Line, show

CONNECTIONS, REQUESTS, PEERS_REQUESTS = 32, 20_000, 2_000
ROOT = Path(__file__).resolve().parent.parent


def measure(found: Found, beside: list[str]) -> None:
    """Run every workload, its floor and its peer; what is compared most closely three times."""
    from bench import web

    gate = urlsplit(web.web.get_web_url())
    assert gate.hostname is not None and gate.port is not None
    here = gate.hostname, gate.port
    with floors.bare_server("bench.web:answer") as bare:
        both = ("bare web", bare, ""), ("gateway", here, "/bench-web/web")
        for name, address, mount in both * 3:  # in turn: a machine that others share drifts within a second
            load(*address, f"{mount}/", 1_000)
            for key, value in load(*address, f"{mount}/", REQUESTS).items():
                found.note(f"{name} {key}", value)
            found.note(f"{name} piece_ms", delay_ms(*address, f"{mount}/ticks"))
    found.note("cold", cold_ms(*here))
    for script in peers.scripts("services", beside):
        words = ("--python", sys.executable, "--root", str(ROOT), "--connections", str(CONNECTIONS))
        for key, value in script.measured(*words, "--count", str(PEERS_REQUESTS)).items():
            found.note(f"{script.name} serve {key}", value)


def load(host: str, port: int, path: str, count: int) -> dict[str, float]:
    """Return what the load generator found, in a process of its own."""
    words = [host, str(port), path, str(CONNECTIONS), str(count)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", *words], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout))


def delay_ms(host: str, port: int, path: str) -> float:
    """Return how long a piece of a stream is on its way, the median of some."""
    clock, link = SystemClock(), http.client.HTTPConnection(host, port)
    link.request("GET", path)
    answer = link.getresponse()
    delays = [clock.monotonic() - float(line) for line in answer]
    link.close()
    return 1000 * statistics.median(delays)


def cold_ms(host: str, port: int) -> float:
    """Return how long the first request to a service without a container takes."""
    link = http.client.HTTPConnection(host, port)
    taken, others = [], ours.containers()  # of what was measured before some stay warm
    for _ in range(3):
        began = time.perf_counter()
        link.request("GET", "/bench-web/cold/")
        assert link.getresponse().read() == b"ok"
        taken.append(time.perf_counter() - began)
        while ours.containers() > others:
            time.sleep(0.05)
    link.close()
    return 1000 * statistics.median(taken)


def report(found: Found, wanted: list[str]) -> None:
    """Print the table, and who is missing from it."""
    bare, serve = "bare uvicorn, the same application", "Ray Serve, a no-op"
    lines = [
        Line("requests", "a second", "gateway rate", bare, "bare web rate", "≥ 0.5 ×"),
        Line("requests", "a second", "gateway rate", serve, "ray serve rate", "≥ 15 ×"),
        Line("a request, p50", "ms", "gateway p50_ms", bare, "bare web p50_ms"),
        Line("a request, p99", "ms", "gateway p99_ms", bare, "bare web p99_ms"),
        Line("a request, p99", "ms", "gateway p99_ms", serve, "ray serve p99_ms"),
        Line("a piece of a stream, on its way", "ms", "gateway piece_ms", bare, "bare web piece_ms"),
        Line("the first request to a service without a container", "ms", "cold", bare, "bare web p50_ms"),
    ]
    show(f"Services, a no-op at {CONNECTIONS} connections", lines, found)
    for script in peers.scripts("services", wanted):
        if f"{script.name} serve rate" not in found:
            print(f"\n{script.name.upper()} WAS LEFT OUT: see above.")
