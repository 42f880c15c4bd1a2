"""What a function does to its container, seen by its caller: the job ends rightly, the next works, nothing leaks."""

from __future__ import annotations

import subprocess
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from chaos.aftermath import check_no_slot_leaks, gone, job_of, loaded, rows, until
from rig import Server

from apothic import ControlPlaneClient, Job
from apothic.agent.tree import Leftovers
from apothic.clock import SystemClock
from apothic.errors import JobFailedError, NotDeployedError, OutOfMemoryError, WorkerLostError

TESTS = Path(__file__).resolve().parents[1]

FRAGILE = """
import os
import signal
import subprocess
import sys

import apothic

app = apothic.App("fragile")


@app.function(memory_mb=200, max_containers=3)
def die(how: str) -> int:
    if how == "not":
        return os.getpid()
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print("process", os.getpid(), child.pid)
    print(how, "is near", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(0)
    heap = []
    while how == "memory":
        heap.append(b"x" * 10_000_000)
"""

QUICK = """
import os

import apothic

app = apothic.App("quick")


@app.function(max_containers=1)
def quick(number: int) -> int:
    if number % 50 == 49:
        os._exit(1)
    return number
"""

NASTY = """
import os

import apothic

from . import nasty

app = apothic.App("nasty")


@app.function(memory_mb=4096)
def deed(number: int) -> int:
    if number >= 0:
        nasty.NASTY[number]()
    return os.getpid()
"""

SUICIDE = """
import os
import sys

import apothic

app = apothic.App("suicide")


@app.function()
def never() -> None: ...


if "pytest" not in sys.modules:
    with open({book!r}, "a") as book:
        book.write("imported\\n")
    print("so far so good", flush=True)
    os._exit(0)
"""

ENDS = {
    "kill": (WorkerLostError, "worker_lost", "signal 9"),
    "memory": (OutOfMemoryError, "oom", "signal 9"),
    "exit": (WorkerLostError, "worker_lost", "status 0"),
}


@pytest.fixture(scope="module")
def client(server: Server) -> ControlPlaneClient:
    return server.client()


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory, client: ControlPlaneClient) -> Iterator[ModuleType]:
    with loaded(tmp_path_factory.mktemp("fragile"), "fragile", FRAGILE, client) as module:
        yield module


def check_end(client: ControlPlaneClient, job: Job, how: str, runs: int) -> None:
    """Check how a job ended, how often it ran, its last lines, and that none of its processes is left."""
    error, kind, exit = ENDS[how]
    with pytest.raises(error) as caught:
        job.wait(timeout_s=60)
    assert isinstance(caught.value, JobFailedError) and caught.value.job == job
    view = job_of(client, job.job_id)
    assert view.failure is not None
    assert (view.status, view.failure.kind) == ("failed", kind)
    assert view.attempt >= runs  # more when it was on its way to a container that had just died
    assert view.failure.exit == exit
    lines = job.logs()
    assert sorted(set(lines[-2:])) == sorted([f"{how} is near", "to stderr"])
    assert len(lines) == 3 * runs
    assert f"{how} is near" in view.failure.log_tail and "to stderr" in view.failure.log_tail
    assert any(f"{how} is near" in note for note in caught.value.__notes__)
    pids = [int(pid) for line in lines if line.startswith("process") for pid in line.split()[1:]]
    assert len(pids) == 2 * runs
    until(lambda: all(gone(pid) for pid in pids), what="the end of its processes")


@pytest.mark.parametrize("how", ENDS)
def test_a_container_that_dies_fails_its_job_and_nothing_leaks(
    server: Server, client: ControlPlaneClient, fragile: ModuleType, how: str
) -> None:
    before = fragile.die.remote("not")

    job = fragile.die.with_options(delivery="at_most_once").spawn(how)

    check_end(client, job, how, runs=1)
    assert fragile.die.remote("not") != before or not gone(before)
    check_no_slot_leaks(server, client)


def test_a_job_that_kills_its_container_each_time_is_tried_as_often_as_the_budget_allows(
    server: Server, client: ControlPlaneClient, fragile: ModuleType
) -> None:
    jobs = {how: fragile.die.spawn(how) for how in ENDS}

    for how, job in jobs.items():
        check_end(client, job, how, runs=4)
    assert fragile.die.remote("not")
    check_no_slot_leaks(server, client)


def test_a_container_that_dies_takes_nobody_along_that_waits_in_it(
    server: Server, client: ControlPlaneClient, tmp_path: Path
) -> None:
    with loaded(tmp_path, "quick", QUICK, client) as module:
        assert module.quick.map(range(40)) == list(range(40))  # quick: its containers hold jobs ahead from now on
        once = module.quick.with_options(delivery="at_most_once")

        ended = once.map(range(200), return_exceptions=True)

    assert [each for each in ended if isinstance(each, int)] == [n for n in range(200) if n % 50 != 49]
    assert all(isinstance(ended[n], WorkerLostError) for n in range(49, 200, 50))
    told = "SELECT max(crashes), max(drains) FROM jobs JOIN functions ON functions.id = function_id"
    ((crashes, drains),) = rows(server.data_dir, told + " WHERE functions.app = 'quick'")
    # One that was on its way to a container that had just died was moved; no more than once a death.
    assert crashes == 0 and drains <= 4
    check_no_slot_leaks(server, client)


def test_a_module_that_ends_the_process_fails_the_deployment_once(
    server: Server, client: ControlPlaneClient, tmp_path: Path, fragile: ModuleType
) -> None:
    book = tmp_path / "book"
    begun = time.monotonic()
    with loaded(tmp_path, "suicide", SUICIDE.format(book=str(book)), client) as module:
        with pytest.raises(NotDeployedError) as caught:
            module.app.deploy()
        with pytest.raises(NotDeployedError):
            module.never.remote()
    assert time.monotonic() - begun < 20
    told = str(caught.value) + str(caught.value.details)
    assert "so far so good" in told and "status 0" in told
    assert fragile.die.remote("not")  # the dispatcher had its turn since, and started nothing more of the other
    assert book.read_text() == "imported\n" * 2
    check_no_slot_leaks(server, client)


def test_sixty_nasty_exceptions_reach_the_caller_and_no_container_is_lost(
    client: ControlPlaneClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "harsh"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nasty.py").write_bytes((TESTS / "nasty.py").read_bytes())
    (package / "calls.py").write_text(NASTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    from harsh import calls, nasty  # type: ignore[import-not-found]

    calls.app._client = client
    before = calls.deed.remote(-1)
    lost = [f"{deed.__name__}: {why}" for n, deed in enumerate(nasty.NASTY) if (why := trouble(client, calls, n))]

    assert lost == []
    assert calls.deed.remote(-1) == before


def trouble(client: ControlPlaneClient, calls: ModuleType, number: int) -> str | None:
    """Say what did not arrive of one exception; `None` when all did."""
    job = calls.deed.spawn(number)
    try:
        job.wait(timeout_s=60)
    except Exception as error:
        shown = "".join(traceback.format_exception(error))
    else:
        return "nothing was raised"
    deed = calls.nasty.NASTY[number]
    failure = job_of(client, job.job_id).failure
    original = own(deed)
    if failure is None or failure.kind != "user" or job_of(client, job.job_id).attempt != 1:
        return f"it failed as {failure}"
    if not failure.type.endswith(type(original).__qualname__):
        return f"its type came as {failure.type}"
    text = said(original)
    text = None if text is None else text.partition(" at 0x")[0][:100].encode("utf-8", "backslashreplace").decode()
    if text is not None and text not in failure.message:
        return f"its message came as {failure.message[:200]}"
    if f"in {deed.__name__}\n" not in shown or failure.type.rpartition(".")[2] not in shown:
        return f"its traceback is not shown: {shown[-500:]}"
    return None


def own(deed: object) -> BaseException:
    try:
        deed()  # type: ignore[operator]
    except BaseException as error:
        return error
    raise AssertionError(f"{deed} raised nothing")


def said(error: BaseException) -> str | None:
    try:
        return str(error)
    except BaseException:
        return None


async def test_a_container_that_starts_while_leftovers_are_ended_is_none_of_them() -> None:
    leftovers = Leftovers(SystemClock())
    sleep = ["sleep", "1000"]
    left = subprocess.Popen(sleep, start_new_session=True)
    started: list[subprocess.Popen[bytes]] = []
    looks = 0

    def live() -> list[int]:
        nonlocal looks
        looks += 1
        if looks == 2:
            started.append(subprocess.Popen(sleep, start_new_session=True))
        return [one.pid for one in started]

    await leftovers.end(live)

    assert started and started[0].poll() is None
    assert gone(left.pid)
    left.returncode = -9  # it was collected by the other
    started[0].kill()
    started[0].wait()
