"""The agent's session may break at any time, by any end: what runs goes on, is told once, and is run once."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import psutil
import pytest
from chaos.aftermath import agent_pid, agents, broken, check_no_slot_leaks, gone, job_of, loaded, mentions, rows, until
from rig import Server, end_leftovers, environment, serving

from apothic import ControlPlaneClient, Job

PATIENT = """
import os
import time

import apothic

app = apothic.App("patient")


@app.function(max_containers=2)
def patient(gate: str, lines: int = 0) -> int:
    print("pid", os.getpid(), flush=True)
    number = 0
    while not os.path.exists(gate):
        if number < lines:
            print("line", number, flush=True)
            number += 1
        time.sleep(0.005)
    for rest in range(number, lines):
        print("line", rest)
    return apothic.current_job().attempt
"""


class Scene:
    """A server, its client, an app that waits for a gate."""

    def __init__(self, server: Server, client: ControlPlaneClient, app: ModuleType, gate: Path) -> None:
        self.server, self.client, self.app, self.gate = server, client, app, gate

    def begun(self, lines: int = 0) -> Job:
        """Submit a job and wait until its code runs."""
        job: Job = self.app.patient.spawn(str(self.gate), lines)
        until(job.logs, what="the job's first line")
        return job

    def moved(self) -> ControlPlaneClient:
        """Return a client of where the server is now."""
        self.client = self.app.app._client = self.server.client()
        return self.client

    def check_whole(self, job: Job, lines: int, attempt: int = 1) -> None:
        """Check that a job ended well at that attempt, with each line once."""
        job = Job(job.job_id, self.client)
        assert job.wait(timeout_s=40) == attempt
        logged = job.logs()
        assert logged[-lines:] == [f"line {n}" for n in range(lines)]
        assert len(logged) == lines + attempt
        assert job_of(self.client, job.job_id).attempt == attempt
        check_no_slot_leaks(self.server, self.client)


@contextlib.contextmanager
def scene(tmp_path: Path, *, alone: bool = False, **settings: float) -> Iterator[Scene]:
    """Run a server and deploy the app; `alone`, it has no agent of its own, and nothing is deployed yet."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context((data_dir / "agent.lock").open("w"))
        if alone:  # for the server, somebody else has the agent of this data directory
            fcntl.flock(lock, fcntl.LOCK_EX)
        server = stack.enter_context(serving(data_dir, **({"lease_s": 30, "grace_s": 1} | settings)))
        stack.callback(lock.close)
        client = server.client()
        app = stack.enter_context(loaded(tmp_path, "patient", PATIENT, client))
        gate = tmp_path / "gate"
        stack.callback(gate.touch)
        if not alone:
            app.app.deploy()
        yield Scene(server, client, app, gate)


def test_a_killed_server_that_comes_back_on_another_port_changes_nothing(tmp_path: Path) -> None:
    with scene(tmp_path) as it:
        agent, before = agent_pid(it.client), it.server.base_url
        job = it.begun(lines=300)
        it.server.kill()
        with socket.socket() as holder:  # the port is somebody else's now
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", urlsplit(before).port or 0))
            it.server.start()
        assert it.server.base_url != before
        assert agent_pid(it.moved()) == agent
        it.gate.touch()
        it.check_whole(job, lines=300)


def test_a_job_that_ends_while_no_server_is_there_is_told_afterwards(tmp_path: Path) -> None:
    with scene(tmp_path) as it:
        job = it.begun(lines=300)
        pid = int(job.logs()[0].split()[1])
        it.server.kill()
        it.gate.touch()
        until(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING, what="the end of the function")
        it.server.start()
        it.moved()
        it.check_whole(job, lines=300)


def test_a_stopped_server_that_goes_on_later_changes_nothing(tmp_path: Path) -> None:
    with scene(tmp_path, lease_s=2) as it:
        job = it.begun(lines=300)
        server = psutil.Process(it.server.pid)
        server.suspend()
        try:
            until(lambda: server.status() == psutil.STATUS_STOPPED)
            it.gate.touch()
            time.sleep(3.0)  # past the lease: it is the length of this silence that is tried
        finally:
            server.resume()
        it.check_whole(job, lines=300)


def test_a_killed_agent_is_replaced_at_once_and_its_jobs_are_tried_again(tmp_path: Path) -> None:
    with scene(tmp_path, lease_s=600) as it:
        job = it.begun()
        container = int(job.logs()[0].split()[1])
        before = agent_pid(it.client)
        psutil.Process(before).kill()
        until(lambda: gone(container), what="the end of its container")
        it.gate.touch()
        assert job.wait(timeout_s=40) == 2
        (crashes,) = rows(it.server.data_dir, "SELECT crashes FROM jobs WHERE id = ?", job.job_id)[0]
        assert crashes == 1
        assert agent_pid(it.client) != before
        assert [one.pid for one in agents(it.client)] == [agent_pid(it.client)]
        check_no_slot_leaks(it.server, it.client)


def test_down_lets_jobs_finish_or_gives_them_back(tmp_path: Path) -> None:
    with scene(tmp_path, grace_s=2) as it:
        short = tmp_path / "short"
        ends: Job = it.app.patient.spawn(str(short))
        stays = it.begun()
        until(ends.logs, what="the other job's first line")
        waits: Job = it.app.patient.spawn(str(it.gate))
        command = [sys.executable, "-m", "apothic", "down", "--json", f"--data-dir={it.server.data_dir}"]
        env = environment(it.server.data_dir, it.server.home)
        with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as down:
            short.touch()
            assert it.server._process is not None and it.server._process.wait(40) == 0  # collected, as by an init
            assert down.wait(40) == 0
        assert mentions(it.server.data_dir) == []
        assert broken(it.server.data_dir) == {}
        told = "SELECT status, crashes, user_failures, drains FROM jobs WHERE id = ?"
        assert rows(it.server.data_dir, told, ends.job_id) == [("succeeded", 0, 0, 0)]
        assert rows(it.server.data_dir, told, stays.job_id) == [("queued", 0, 0, 1)]
        assert rows(it.server.data_dir, told, waits.job_id)[0][:3] == ("queued", 0, 0)
        it.gate.touch()
        it.server.start()
        client = it.moved()
        assert Job(stays.job_id, client).wait(timeout_s=40) == 2
        assert Job(waits.job_id, client).wait(timeout_s=40) <= 2  # it may have waited behind another
        check_no_slot_leaks(it.server, client)


# --- over the network -------------------------------------------------------------------------------------------


class Wire:
    """A TCP proxy that can be cut, and mended."""

    def __init__(self, base_url: str) -> None:
        self._target = (urlsplit(base_url).hostname, urlsplit(base_url).port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._whole = threading.Event()
        self._whole.set()
        self._pairs: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0

    def cut(self) -> None:
        """Break every connection and take no other one."""
        self._whole.clear()
        for one in self._pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole.set()

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in [*self._pairs, self._listener]:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._pairs.append(near)
            try:
                far = socket.create_connection(self._target) if self._whole.is_set() else None
            except OSError:
                far = None
            if far is None:
                near.shutdown(socket.SHUT_RDWR)
                continue
            self.connections += 1
            self._pairs.append(far)
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pump, args=(source, sink))
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def remote_agent(it: Scene, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `apothic agent --url --key` instead of the server's own."""
    home = it.server.home / "elsewhere"
    home.mkdir(exist_ok=True)
    key = (it.server.data_dir / "agent.key").read_text().strip()
    command = [sys.executable, "-m", "apothic", "agent", "--url", url, "--key", key]
    log = home / "agent.log"
    with log.open("wb") as output:
        env = environment(home / "data", home) | {"TMPDIR": str(home)}
        agent = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        until(lambda: any(one.pid == agent.pid and one.connected for one in agents(it.client)), what="the agent")
        it.app.app.deploy()
        yield agent
    finally:
        agent.terminate()
        try:
            agent.wait(20)
        finally:
            agent.kill()
            agent.wait()
            end_leftovers(home)


def test_a_cut_connection_is_taken_up_again(tmp_path: Path) -> None:
    with (
        scene(tmp_path, alone=True, lease_s=4) as it,
        contextlib.closing(Wire(it.server.base_url)) as wire,
        remote_agent(it, wire.base_url) as agent,
    ):
        job = it.begun(lines=300)
        for _ in range(3):
            wire.connections = 0
            wire.cut()
            until(lambda: not any(one.connected for one in agents(it.client)), what="the cut")
            wire.mend()
            until(lambda: wire.connections, what="a new connection")
            until(lambda: any(one.connected for one in agents(it.client)), what="the agent")
        assert [one.pid for one in agents(it.client)] == [agent.pid]
        it.gate.touch()
        it.check_whole(job, lines=300)


def test_a_remote_agent_ends_its_jobs_itself_when_the_server_is_gone(tmp_path: Path) -> None:
    with scene(tmp_path, alone=True, lease_s=2) as it, contextlib.closing(Wire(it.server.base_url)) as wire:
        with remote_agent(it, wire.base_url) as agent:
            job = it.begun()
            container = int(job.logs()[0].split()[1])
            assert psutil.Process(container).ppid() == agent.pid
            wire.cut()
            until(lambda: gone(container), 20, "the end of its container")
            assert agent.poll() is None
            wire.mend()
            it.gate.touch()
            assert job.wait(timeout_s=40) == 2
            (crashes,) = rows(it.server.data_dir, "SELECT crashes FROM jobs WHERE id = ?", job.job_id)[0]
            assert crashes == 1
            check_no_slot_leaks(it.server, it.client)
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(20) == 0
        assert list((it.server.home / "elsewhere").glob("apothic-agent-*")) == []


def test_a_remote_agent_that_leaves_gives_its_job_back_once(tmp_path: Path) -> None:
    with scene(tmp_path, alone=True, grace_s=0.5) as it:
        with remote_agent(it, it.server.base_url) as agent:
            job = it.begun()
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(20) == 0
        told = "SELECT status, attempt, crashes, drains FROM jobs WHERE id = ?"
        assert rows(it.server.data_dir, told, job.job_id) == [("queued", 1, 0, 1)]
        assert broken(it.server.data_dir) == {}
        it.gate.touch()
        with remote_agent(it, it.server.base_url):
            assert job.wait(timeout_s=40) == 2
            check_no_slot_leaks(it.server, it.client)


@pytest.mark.parametrize("key", ["apothic_key_wrong", None])
def test_an_agent_without_the_right_key_is_told_so(tmp_path: Path, server: Server, key: str | None) -> None:
    words = ["--key", key] if key is not None else []
    command = [sys.executable, "-m", "apothic", "agent", "--url", server.base_url, *words]
    done = subprocess.run(
        command, env=environment(tmp_path / "none", tmp_path), capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert "key" in done.stderr and "Traceback" not in done.stderr
