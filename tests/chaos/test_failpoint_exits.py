"""A real server that really dies at each named point, under the work of a real agent and a real client.

Each start after a death is armed with the next point, so each death is looked at by a server that will die, too.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import pytest
from aftermath import agent_pid, broken, end, loaded, rows
from rig import Server, until
from storm import free_port

from apothic import ControlPlaneClient
from apothic.errors import ServerUnavailableError
from apothic.probe import EXIT_STATUS, POINTS
from apothic.protocol import messages as m
from apothic.protocol import routes

APP = """
import time

import apothic

app = apothic.App("mortal")


@app.function(max_containers=2)
def length(text: str) -> int:
    print("measured")
    return len(text)


@app.function(stream_window=3, max_containers=2)
def many(count: int):
    for number in range(count):
        print(number)
        yield number


@app.function(max_containers=1)
def sleepy() -> None:
    time.sleep(60)


@app.function(schedule=apothic.Period(seconds=1), max_containers=1)
def beat() -> None:
    pass
"""
# A blob is collected an hour after it was last wanted: no process lives that long here. The play in one process has it.
BY_PLAY = {"collect.before", "collect.after"}
# How many times it gets past a point, where a start alone passes it, or work passes it more than once.
LATER = {"commit.before": 9, "commit.after": 9, "dispatch.before": 4, "dispatch.after": 4, "move.before": 5}


class Work:
    """One thread that does everything again and again, and writes down what was acknowledged."""

    def __init__(self, client: ControlPlaneClient, app: ModuleType) -> None:
        self._client = client
        self._app = app
        self._over = threading.Event()
        self._deeds: list[Callable[[], None]] = [self._values, self._items, self._cancels, self._pages, self._deploys]
        self._threads = [threading.Thread(target=self._run, args=(deed,), name=deed.__name__) for deed in self._deeds]
        self.promised: dict[str, tuple[str, ...]] = {}
        self.trouble: list[BaseException] = []
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let the threads end, and raise what went wrong in one."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} does not end"
        if self.trouble:
            raise self.trouble[0]

    def _run(self, deed: Callable[[], None]) -> None:
        try:
            while not self._over.is_set():
                with suppress(ServerUnavailableError):  # then it was not acknowledged
                    deed()
                self._over.wait(0.1)  # the server has two cores with all this
        except BaseException as error:
            self.trouble.append(error)

    def _values(self) -> None:
        small = self._app.length.spawn("abc")
        self.promised[small.job_id] = ("succeeded",)
        large = self._app.length.spawn("x" * 100_000)
        self.promised[large.job_id] = ("succeeded",)
        function = self._client.ask_blocking(routes.FIND_FUNCTIONS, m.FindFunctions(app="mortal", name="length"))
        batch = m.SubmitBatch(function=function.functions[0].id, jobs=[m.JobInput(args=[text]) for text in "ab"])
        for job in self._client.ask_blocking(routes.SUBMIT_BATCH, batch).jobs:
            self.promised[job] = ("succeeded",)
        assert (small.wait(timeout_s=60), large.wait(timeout_s=60)) == (3, 100_000)

    def _items(self) -> None:
        # Three deaths right after a stream's greeting look like a proxy that lets nothing through: for five minutes the
        # client would ask for pages, and no hold would be renewed.
        self._client.paged_until = 0.0
        job = self._app.many.spawn(20)
        self.promised[job.job_id] = ("succeeded",)
        assert list(self._app.many.remote_gen(10)) == list(range(10))
        job.wait(timeout_s=60)

    def _cancels(self) -> None:
        job = self._app.sleepy.spawn()
        self.promised[job.job_id] = ("succeeded", "cancelled")
        with suppress(ServerUnavailableError):
            job.cancel()
        until(lambda: job.cancel() in ("cancelled", "succeeded"), 60, "the end of a cancelled job")
        self._over.wait(1.0)  # each costs a container

    def _pages(self) -> None:
        for job in list(self.promised)[-1:]:
            self._client.ask_blocking(routes.EVENTS, m.FollowJob(job=job, limit=5))

    def _deploys(self) -> None:
        self._app.app.deploy()


class Mortal:
    """A server that is killed at one point after the other."""

    def __init__(self, server: Server, work: Work) -> None:
        self.server = server
        self.work = work
        self.deaths: Counter[str] = Counter()

    def die_at(self, point: str, within_s: float = 60.0) -> None:
        """Start it, let it die at a point, and look at what it has left."""
        with suppress(AssertionError):  # it may well die before it tells where it is
            self.server.start(APOTHIC_PROBE=f"{point}=exit:{LATER.get(point, 1)}")
        process = self.server._process
        assert process is not None
        until(lambda: process.poll() is not None or self.work.trouble, within_s, f"its death at {point}")
        assert process.poll() == EXIT_STATUS, f"{point} {self.work.trouble} {self.server.log()[-3000:]}"
        self.deaths[point] += 1
        self.look()

    def look(self) -> None:
        promised = list(self.work.promised)
        assert broken(self.server.data_dir) == {}
        there = {row[0] for row in rows(self.server.data_dir, "SELECT id FROM jobs")}
        lost = [job for job in promised if job not in there]
        assert not lost, f"{len(lost)} acknowledged jobs are gone: {lost[:3]}"
        if self.work.trouble:
            raise self.work.trouble[0]

    def settle(self) -> None:
        """Start it for good, let all end, and check each end."""
        self.server.start()
        self.work.end()
        left = "SELECT jobs.id, status FROM jobs JOIN functions ON functions.id = function_id"
        unfinished = f"{left} WHERE ended_at IS NULL AND name <> 'beat'"
        until(lambda: not rows(self.server.data_dir, unfinished), 60, "the end of all jobs")
        self.look()
        ended = dict(rows(self.server.data_dir, left))
        wrong = {job: ended[job] for job, ends in self.work.promised.items() if ended[job] not in ends}
        assert wrong == {}


@contextmanager
def mortal(tmp_path: Path) -> Iterator[Mortal]:
    server = Server(tmp_path / "data", {"port": free_port(), "lease_s": 3, "grace_s": 1})
    try:
        server.start()
        client = server.client()
        agent_pid(client)
        with loaded(tmp_path, "mortal", APP, client) as app:
            app.app.deploy()
            work = Work(client, app)
            try:
                server.kill()
                one = Mortal(server, work)
                yield one
                one.settle()
            finally:
                work._over.set()
                if server._process is not None and server._process.poll() is not None:
                    server.start()  # so that whoever waits in a thread is answered
                work.end()
        end(server)
    finally:
        server.stop()


@pytest.mark.timeout(300)
def test_a_server_dies_at_each_point_and_comes_back(tmp_path: Path) -> None:
    with mortal(tmp_path) as server:
        for point in POINTS:
            if point not in BY_PLAY:
                server.die_at(point)
    print(f"{server.deaths.total()} deaths, {len(server.work.promised)} acknowledged jobs")
    assert set(server.deaths) | BY_PLAY == set(POINTS)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_server_dies_forty_times_at_each_point(tmp_path: Path) -> None:
    first, last = int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "40"))
    begun = time.monotonic()
    for number in range(first, last):
        folder = tmp_path / f"round{number}"
        folder.mkdir()
        with mortal(folder) as server:
            for point in POINTS:
                if point not in BY_PLAY:
                    server.die_at(point)
        told = f"{server.deaths.total()} deaths, {len(server.work.promised)} acknowledged jobs"
        print(f"ROUND={number + 1}: {told}, {time.monotonic() - begun:.0f} s", flush=True)
