"""What the kernel enforces where it lets us, and what the watchdog does where it does not: the same tests for both."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from containerbench import MIB, Bench

from apothic.agent import cgroup
from apothic.agent.cgroup import Group, Groups
from apothic.agent.kernel import probe_host
from apothic.agent.places import Place, find_places

PLACES = find_places()
HERE = Groups().level
WAYS = ["watchdog", *(["cgroup"] if HERE.memory and HERE.pids and HERE.kill else [])]
WAYS += ["freezer"] if {"freezer", "memory", "pids"} <= PLACES.keys() else []
PIDS = 64

HOARD = """
    def f():
        kept = []
        while True:
            kept.append(bytearray(b"x" * 50_000_000))
"""
HOARD_BELOW = """
    import subprocess, sys
    def f():
        print("here")
        subprocess.run([sys.executable, "-c", "kept = []\\nwhile True: kept.append(b'x' * 20_000_000)"], check=True)
"""
FORKS = """
    import os, time
    def f(most):
        made = 0
        try:
            while made < most:
                if os.fork() == 0:
                    time.sleep(600)
                    os._exit(0)
                made += 1
        except OSError as error:
            print(error.errno)
        return made
"""
DAEMON = """
    import os, time
    def f():
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                print(os.getpid(), flush=True)
                time.sleep(600)
            os._exit(0)
        time.sleep(600)
"""
WRITES = """
    import os
    def f(path, size):
        piece = os.urandom(1 << 20)
        with open(path, "wb") as out:
            for _ in range(size >> 20):
                out.write(piece)
        return os.path.getsize(path)
"""


def folders(pattern: str) -> set[Path]:
    """Return the groups that are there; agents of other tests may have some too."""
    return {found for place in PLACES.values() for found in place.path.glob(f"apothic.{pattern}")}


def group_of(bench: Bench, container: str) -> Group:
    return bench.containers.live[container].memory.group


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert folders(f"*.{os.getpid()}.*") == set()


@pytest.fixture(params=WAYS)
async def limited(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """Containers under groups, or under the watchdog alone."""
    usable = {"watchdog": {}, "cgroup": PLACES, "freezer": {what: PLACES[what] for what in PLACES if what != "kill"}}
    groups = Groups(usable[request.param], pids=PIDS)
    bench = Bench(tmp_path, groups=groups)
    yield bench
    await bench.close()
    assert not any(psutil.pid_exists(pid) for pid in bench.pids)


async def test_who_takes_too_much_memory_is_told_so(limited: Bench) -> None:
    failure = await limited.failure(limited.give(limited.start(HOARD, memory_mb=150)))
    assert (failure.kind, failure.exit, failure.retriable) == ("oom", "signal 9", True)
    told = re.search(r"used ([\d,]+) MiB of memory, its limit \(memory_mb\) is 150 MiB", failure.message)
    assert told is not None, failure.message
    if limited.containers.site.groups.level.memory:
        assert 120 <= int(told[1].replace(",", "")) <= 150  # the kernel gives nobody more


async def test_what_its_child_takes_counts_too(limited: Bench) -> None:
    failure = await limited.failure(limited.give(limited.start(HOARD_BELOW, memory_mb=150)))
    assert failure.kind == "oom"  # the function saw a child die, and raised an error of its own


async def test_a_bomb_of_forks_goes_off_in_its_container(limited: Bench) -> None:
    container = limited.start(FORKS, memory_mb=4_096)
    made = await limited.value(limited.give(container, 150))
    below = psutil.Process(limited.containers.live[container].pid).children(recursive=True)
    assert len(below) == made
    assert made < PIDS if limited.containers.site.groups.level.pids else made == 150
    limited.containers.end([container])
    await limited.gone(container)
    assert not any(child.is_running() for child in below)


async def test_who_leaves_its_session_twice_is_killed_all_the_same(limited: Bench) -> None:
    token = limited.give(limited.start(DAEMON))
    await limited.until(lambda: limited.text(token))
    daemon = int(limited.text(token)[0])
    assert psutil.pid_exists(daemon)
    limited.cancel(token)
    assert (await limited.failure(token)).kind == "cancelled"
    await limited.soon(lambda: not psutil.pid_exists(daemon))


async def test_files_that_are_written_are_no_memory(limited: Bench, tmp_path: Path) -> None:
    size = 3 * 100 * MIB
    container = limited.start(WRITES, memory_mb=100)
    assert await limited.value(limited.give(container, str(tmp_path / "large"), size)) == size


@pytest.mark.parametrize(("cpu", "shares"), [(2.5, 2560), (0.01, 1024)])  # who asks for little is not to starve
async def test_a_container_has_its_weight_and_its_limit(limited: Bench, cpu: float, shares: int) -> None:
    container = limited.start("def f(): return 1", memory_mb=100, cpu=cpu)
    await limited.ready(container)
    group = group_of(limited, container)
    for what, folder in group.folders.items():
        assert str(limited.containers.live[container].pid) in (folder / "cgroup.procs").read_text().split()
        if what == "cpu":
            name, of_one = ("cpu.weight", 100) if group.versions[what] == 2 else ("cpu.shares", 1024)
            assert int((folder / name).read_text()) == shares * of_one // 1024
        if what == "memory":
            name = "memory.max" if group.versions[what] == 2 else "memory.limit_in_bytes"
            assert int((folder / name).read_text()) == 100 * MIB
    assert await limited.value(limited.give(container)) == 1


def test_without_places_nothing_is_enforced_and_all_is_said() -> None:
    groups = Groups({})
    assert str(groups.level) == "memory=watchdog cpu=none pids=none kill=process group"
    group = groups.make("ctr", 1, 1.0)
    group.take(os.getpid())
    group.kill()
    assert (group.ooms(), group.peak(), group.limits_memory) == (0, 0, False)


def test_a_folder_that_is_no_hierarchy_is_found_out(tmp_path: Path) -> None:
    for version in (1, 2):
        places = {what: Place(tmp_path, version) for what in ("memory", "cpu", "pids", "kill")}
        groups = Groups(places)
        assert groups.level == Groups({}).level
        assert list(tmp_path.iterdir()) == []


def test_the_groups_of_a_dead_agent_are_removed_with_all_that_runs_there() -> None:
    code = """if True:
        import os, subprocess
        from apothic.agent.cgroup import Groups
        group = Groups().make("ctr_left", 1 << 28, 1.0)
        left = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=-3, stderr=-3)
        group.take(left.pid)
        print(left.pid, flush=True)
        os._exit(0)
    """
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    left = psutil.Process(int(told))
    if not HERE.kill:
        left.kill()  # nobody else knows of it
    assert bool(folders("*.ctr_left")) == bool(PLACES)
    groups = Groups()
    psutil.wait_procs([left], timeout=10)
    groups.sweep()  # the first look may have found them still dying
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    assert folders("*.ctr_left") == set()


def test_the_doctor_only_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "find_places", lambda **_: {"memory": Place(tmp_path, 1)})
    left = tmp_path / f"apothic.{cgroup._namespace()}.1.long-dead.0.ctr_left"
    left.mkdir()
    probe_host()
    assert list(tmp_path.iterdir()) == [left]
    Groups()  # an agent tidies up
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_hears_what_is_enforced_here() -> None:
    told = {finding.what: finding.said for finding in probe_host()}
    assert set(told) == {"memory", "processor", "process trees", "sandbox"}
    assert ("hard limit" in told["memory"]) == bool(HERE.memory)
    assert ("weight" in told["processor"]) == bool(HERE.cpu)
    assert (HERE.kill in told["process trees"]) and "subreaper" in told["process trees"]
