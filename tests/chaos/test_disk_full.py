"""A full disk: a submit is refused by name, the server stays up, and goes on once there is space."""

from __future__ import annotations

import contextlib
import resource
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aftermath import agent_pid, broken, check_no_slot_leaks, job_of, loaded, mentions, rows
from rig import Server, until

from apothic import ControlPlaneClient, Job
from apothic.errors import StorageFullError
from apothic.protocol import messages as m
from apothic.protocol import routes

APP = """
import os
import time

import apothic

app = apothic.App("tiny")


@app.function()
def talk(gate: str) -> None:
    print("ready", flush=True)
    while not os.path.exists(gate):
        time.sleep(0.01)
    for number in range(40):
        print(number, "y" * 30_000)


@app.function(max_containers=1)
def length(text: str) -> int:
    print("measured")
    return len(text)
"""
MIB = 1024 * 1024
Room = Callable[[], None]


@contextlib.contextmanager
def small_device(server: Server) -> Iterator[Room]:
    """Put the data directory on a file system of its own of a few MiB; yield what makes it larger."""
    server.data_dir.mkdir()
    place = str(server.data_dir)
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"no file system may be mounted here ({done.stderr.strip()}): a limit on file sizes stands for it")
        with small_files(server) as room:
            yield room
        return
    try:
        server.start()
        yield lambda: subprocess.run(["mount", "-o", "remount,size=200m", place], check=True)  # type: ignore[func-returns-value]
    finally:
        server.stop()
        subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def small_files(server: Server) -> Iterator[Room]:
    """Let no file of the server's grow past 3 MiB; yield what lifts that."""
    try:
        server.start()
        agent_pid(server.client())  # it shall not inherit this
        limit = resource.RLIMIT_FSIZE
        resource.prlimit(server.pid, limit, (3 * MIB, resource.RLIM_INFINITY))
        yield lambda: resource.prlimit(server.pid, limit, (resource.RLIM_INFINITY,) * 2)  # type: ignore[func-returns-value]
    finally:
        server.stop()


def fill(client: ControlPlaneClient, function: str) -> tuple[list[str], StorageFullError]:
    """Submit what stays inside the database until there is no room; return what was acknowledged, and the refusal."""
    taken: list[str] = []
    for _ in range(2_000):
        ask = m.Submit(function=function, args=[secrets.token_hex(25_000)])
        try:
            taken.append(client.ask_blocking(routes.SUBMIT, ask, timeout_s=5).job.id)
        except StorageFullError as error:
            return taken, error
    raise AssertionError("the disk never was full")


@pytest.mark.parametrize("small", [small_device, small_files])
def test_a_full_disk_is_named_and_nothing_is_lost(
    tmp_path: Path, small: Callable[[Server], contextlib.AbstractContextManager[Room]]
) -> None:
    server = Server(tmp_path / "data", {"lease_s": 5, "grace_s": 1})
    with small(server) as make_room:
        client = server.client()
        with loaded(tmp_path, "tiny", APP, client) as module:
            assert module.length.remote("abc") == 3
            found = client.ask_blocking(routes.FIND_FUNCTIONS, m.FindFunctions(app="tiny", name="length"))
            function, agent = found.functions[0].id, agent_pid(client)
            gate = tmp_path / "gate"
            talks = module.talk.spawn(str(gate))
            until(talks.logs, what="its first line")

            taken, error = fill(client, function)
            with pytest.raises(StorageFullError) as blob:
                module.length.spawn(secrets.token_hex(4 * MIB))

            for each in (error, blob.value):
                assert each.http == 507 and "space" in each.hint and each.hint in str(each)
            assert len(taken) > 5
            assert client.ask_blocking(routes.HEALTHZ, m.ShowHealth()).pid == server.pid
            assert client.ask_blocking(routes.SHOW_JOB, m.ShowJob(job=taken[0])).id == taken[0]

            gate.touch()
            if small is small_files:  # on a full device, the log has no room to tell it
                until(lambda: "session.refused" in server.log(), what="a report that finds no room")
            assert job_of(client, talks.job_id).status == "running"

            assert "Traceback" not in server.log()

            make_room()

            talks.wait(timeout_s=60)
            assert [line.split()[0] for line in talks.logs()] == ["ready", *map(str, range(40))]
            assert job_of(client, talks.job_id).attempt == 1
            assert module.length.remote("once more") == 9
            assert [Job(job, client).wait(timeout_s=60) for job in taken] == [50_000] * len(taken)
            assert module.length.remote("x" * 5 * MIB) == 5 * MIB
            assert agent_pid(client) == agent
            check_no_slot_leaks(server, client)
            # Each function prints one line each time it runs.
            printed = "SELECT count(*) FROM events WHERE type = 'job.log' GROUP BY job HAVING count(*) < 40"
            assert rows(server.data_dir, printed) == [(1,)] * (len(taken) + 3)
    assert mentions(server.data_dir) == []
    if small is small_files:
        assert broken(server.data_dir) == {}
