"""How long it takes until a death is noticed: from the kill to the change of the job's status.

ROUNDS says how often each is killed in the long form; ROUND is the round to go on from.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from aftermath import loaded, rows
from rig import Server, serving, until
from tempest import Remote

from apothic.cli import local
from apothic.protocol import messages as m
from apothic.protocol import routes

LEASE_S = 2.0
WITHIN_S = {"process": 1.0, "local agent": 2.0, "remote agent": LEASE_S + 5.0}  # what is promised
APP = """
import time

import apothic

app = apothic.App("noticed")


@app.function(cpu={cpu}, memory_mb=64, retries=0)
def sits() -> None:
    print("here", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, ModuleType, Path]]:
    home = tmp_path_factory.mktemp("noticed")
    with (
        serving(home / "data", lease_s=LEASE_S, grace_s=0.5) as server,
        loaded(home, "noticed", APP.format(cpu=0.1), server.client()) as app,
    ):
        app.app.deploy()
        yield server, app, home


def seconds(server: Server, app: ModuleType, victim: Callable[[], psutil.Process]) -> float:
    """Kill somebody below a job at work; return how long the job went on as if nothing had happened."""
    job = app.sits.spawn()
    until(job.logs, what="its first line")
    process = victim()
    begun = time.monotonic()
    process.kill()
    until(lambda: job.status() != "running", 60, "the change of its status")
    took_s = time.monotonic() - begun
    job.cancel()
    until(lambda: job.status() == "cancelled", 60, "its end")
    return took_s


def agent_of(server: Server) -> psutil.Process:
    """Return the agent that runs the only job."""
    running = "SELECT agents.pid FROM leases JOIN containers ON containers.id = container_id"
    ((pid,),) = rows(server.data_dir, f"{running} JOIN agents ON agents.id = agent_id")
    return psutil.Process(int(pid))


def container_of(server: Server) -> psutil.Process:
    zygote, container = sorted(agent_of(server).children(), key=psutil.Process.create_time)
    assert zygote.cmdline()[3] == "apothic.agent.zygote"
    return container


def stand_in(server: Server, home: Path) -> Remote:
    """Put an agent from outside in the place of the server's own, which is stopped for as long."""
    remote = Remote(server, home / "remote")
    remote.start()
    until(lambda: rows(server.data_dir, "SELECT 1 FROM agents WHERE connected AND pid = ?", remote.pid), 30, "it")
    return remote


def of_remote(server: Server, app: ModuleType, home: Path) -> float:
    own = until(lambda: local.holder(server.data_dir / local.AGENT_LOCK), 30, "the server's own agent")
    psutil.Process(own).suspend()
    until(lambda: not rows(server.data_dir, "SELECT 1 FROM leases"), 30, "the end of its leases")
    remote = stand_in(server, home)
    try:
        # A lease that nobody renews has to run out before its owner counts as away.
        until(lambda: _is_elsewhere(server, app, remote.pid), 60, "a job that runs on the other agent")
        return seconds(server, app, lambda: psutil.Process(remote.pid))
    finally:
        psutil.Process(own).resume()
        remote.stop()


def measure(ground: tuple[Server, ModuleType, Path], times: int) -> dict[str, list[float]]:
    server, app, home = ground
    took: dict[str, list[float]] = defaultdict(list)
    for _ in range(times):
        took["process"].append(seconds(server, app, lambda: container_of(server)))
        took["local agent"].append(seconds(server, app, lambda: agent_of(server)))
        took["remote agent"].append(of_remote(server, app, home))
    return took


def _is_elsewhere(server: Server, app: ModuleType, pid: int) -> bool:
    job = app.sits.spawn()
    try:
        until(job.logs, LEASE_S * 3, "its first line")
        return bool(agent_of(server).pid == pid)
    except AssertionError:
        return False
    finally:
        server.client().ask_blocking(routes.CANCEL, m.CancelJob(job=job.job_id))
        until(lambda: job.status() in ("cancelled", "failed"), 60, "its end")


def tell(took: dict[str, list[float]], spent_s: float) -> None:
    slowest = {who: f"{max(each):.2f} s (promised {WITHIN_S[who]:g})" for who, each in took.items()}
    print(f"noticed at the latest after: {slowest}; {spent_s:.0f} s", flush=True)


def test_a_death_is_noticed(ground: tuple[Server, ModuleType, Path]) -> None:
    begun = time.monotonic()
    took = measure(ground, 1)
    tell(took, time.monotonic() - begun)
    for who, each in took.items():
        assert max(each) < 10 * WITHIN_S[who], who


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_hundred_deaths_are_noticed_in_time(ground: tuple[Server, ModuleType, Path]) -> None:
    first, last = int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "100"))
    begun, all_took = time.monotonic(), defaultdict[str, list[float]](list)
    for number in range(first, last):
        for who, each in measure(ground, 1).items():
            all_took[who] += each
        print(f"ROUND={number + 1}", end=" ")
        tell(all_took, time.monotonic() - begun)
    for who, each in all_took.items():
        assert max(each) < WITHIN_S[who], who
