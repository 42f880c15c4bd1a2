"""Many apps in one control plane: what they cost it while only one of them is used."""

from __future__ import annotations

import hashlib
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.scale_figures import Found
from bench.scale_http import Asker
from bench.scale_store import known, running

FUNCTIONS, CALLS, AT_ONCE = 5, 200, 2
SOURCE = "".join(f"def f{n}(x):\n    return x\n\n\n" for n in range(FUNCTIONS)).encode()


def measure(found: Found, data_dir: Path, apps: int) -> None:
    """Deploy them, a few at once; note a warm call, its CPU in the control plane, a list, memory, before and after."""
    functions, _ = known(data_dir)
    with running(data_dir):
        asker = Asker(data_dir)
        _look(found, asker, functions["rare"], "no other app")
        sha256 = hashlib.sha256(SOURCE).hexdigest()
        asker.ask(f"PUT /v1/blobs/{sha256}", SOURCE)
        began = time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda n: _deploy(data_dir, f"many{n}", sha256), range(apps)))
        found.keep(f"{apps} apps deployed, s", time.perf_counter() - began)
        _look(found, asker, functions["rare"], f"{apps} apps")


def _deploy(data_dir: Path, app: str, sha256: str) -> None:
    # Few fit at once, and none stays: what is measured is what they cost while they are not used.
    options = {"cpu": 0.25, "memory_mb": 64, "keep_warm_s": 1}
    names = [f"f{n}" for n in range(FUNCTIONS)]
    manifest = {
        "app": app,
        "functions": [{"name": name, "module": "many", "qualname": name, "options": options} for name in names],
        "files": [{"path": "many.py", "sha256": sha256, "size": len(SOURCE)}],
    }
    asker = Asker(data_dir)
    told = asker.ask(f"POST /v1/apps/{app}/deployments?wait_s=60", manifest)
    status, where = told["deployment"]["status"], told["deployment"]["id"]
    while status in ("building", "starting"):
        status = asker.ask(f"GET /v1/deployments/{where}?wait_s=60")["status"]
    assert status == "live", status


def _look(found: Found, asker: Asker, function: str, beside: str) -> None:
    def call() -> float:
        began = time.perf_counter()
        asker.ask(f"POST /v1/functions/{function}/jobs?wait_s=10", {"args": [1]})
        return 1e3 * (time.perf_counter() - began)

    def calls() -> None:
        found.keep(f"warm call, ms, {beside}", statistics.median(call() for _ in range(CALLS)))

    call()
    time.sleep(3)  # containers of the others go
    found.keep(f"CPU of the control plane a call, ms, {beside}", 1e3 * asker.busy(calls) / CALLS)
    began = time.perf_counter()
    asker.ask("GET /v1/apps")
    found.keep(f"list of apps, ms, {beside}", 1e3 * (time.perf_counter() - began))
    found.keep(f"PSS of the control plane, MiB, {beside}", asker.pss_mib())
    found.keep(f"CPU of the idle control plane, %, {beside}", 100 * asker.busy(lambda: time.sleep(5)) / 5)
