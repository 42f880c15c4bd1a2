"""A storm: several threads that submit, resend, read and cancel, while the control plane is killed and started again.

Everything that was acknowledged is written down here with what must become of it, and checked at the end against the
store, the jobs' own note book (each attempt that begins writes a line in it) and the processes that are left.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import psutil
from aftermath import agent_pid, broken, check_no_slot_leaks, end, loaded, opened
from rig import Server, until

from apothic import ControlPlaneClient, Job
from apothic.errors import JobCancelledError, ServerUnavailableError
from apothic.probe import EXIT_STATUS
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.lifecycle import FINAL

OUTSTANDING = 30  # of each thread: a storm is about kills, not about a long queue
KINDS = ("steady", "refuses", "dies", "dies_first")
WEIGHTS = (90, 6, 2, 2)
ENDS = {"steady": "succeeded", "refuses": "failed", "dies": "failed", "dies_first": "succeeded"}


@dataclass
class Promise:
    """One job that the server has acknowledged."""

    kind: str
    number: int
    key: str | None = None
    cancelled: bool = False


@dataclass
class Totals:
    kills: int = 0
    jobs: int = 0
    restart_s: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        slowest = f"slowest restart {self.restart_s:.1f} s"
        return f"{self.kills} kills, {self.jobs} acknowledged jobs, ended {dict(self.ended)}, {slowest}"


def free_port() -> int:
    """Return a free port below those that the kernel gives to connections, so that it is still free after a kill."""
    while True:
        port = random.randint(20_000, 30_000)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


class Storm:
    """The load on one server, and the kills. Use it by `storming`."""

    def __init__(self, server: Server, client: ControlPlaneClient, app: ModuleType, seed: str) -> None:
        self.server = server
        self.client = client
        self.app = app
        self.seed = seed
        self.book = server.home / "book"
        self.book.touch()
        self.promises: dict[str, Promise] = {}
        self.totals = Totals()
        self._functions: dict[str, str] = {}
        self._trouble: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._numbers = iter(range(1_000_000_000))
        self._checked = 0

    # --- the load ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Deploy, and let it blow."""
        self.app.app.deploy()
        found = self.client.ask_blocking(routes.FIND_FUNCTIONS, m.FindFunctions(app="stormy")).functions
        self._functions = {each.name: each.id for each in found}
        self.blow()

    def blow(self) -> None:
        """Start the threads."""
        self._over.clear()
        deeds = (self._singles, self._batches, self._baggage, self._reads)
        for number, deed in enumerate(deeds):
            dice = random.Random(f"{self.seed}:{number}:{self.totals.kills}")
            self._threads.append(threading.Thread(target=self._run, args=(deed, dice), name=deed.__name__))
        for thread in self._threads:
            thread.start()

    def calm(self) -> None:
        """End the threads; raise what went wrong in one of them."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} does not end"
        self._threads.clear()
        if self._trouble:
            raise self._trouble[0]

    def _run(self, deed: Callable[[random.Random, list[str]], None], dice: random.Random) -> None:
        open_jobs: list[str] = []
        try:
            while not self._over.is_set():
                with contextlib.suppress(ServerUnavailableError):  # then it was not acknowledged
                    deed(dice, open_jobs)
                    self._gather(open_jobs)
        except BaseException as error:
            self._trouble.append(error)

    def _keep(self, job: str, promise: Promise) -> None:
        with self._lock:
            self.promises[job] = promise

    def _next(self) -> int:
        with self._lock:
            return next(self._numbers)

    def _arguments(self, kind: str, number: int, dice: random.Random) -> list[Any]:
        wait = [dice.choice([0.0, 0.0, 0.01, 0.2])] if kind == "steady" else []
        return [str(self.book), number, *wait]

    def _singles(self, dice: random.Random, open_jobs: list[str]) -> None:
        kind, number = dice.choices(KINDS, WEIGHTS)[0], self._next()
        key = f"{self.seed}-{number}" if dice.random() < 0.5 else None
        options = m.CallOptions(delivery="at_most_once") if kind == "dies" else m.CallOptions()
        ask = m.Submit(
            function=self._functions[kind], args=self._arguments(kind, number, dice), idempotency_key=key,
            options=options, wait_s=dice.choice([0.0, 0.0, 0.5]),
        )  # fmt: skip
        told = self.client.ask_blocking(routes.SUBMIT, ask)
        self._keep(told.job.id, Promise(kind, number, key))
        open_jobs.append(told.job.id)
        if key is not None and dice.random() < 0.5:
            again = self.client.ask_blocking(routes.SUBMIT, ask)
            assert again.job.id == told.job.id, f"{key} made {told.job.id} and {again.job.id}"

    def _batches(self, dice: random.Random, open_jobs: list[str]) -> None:
        numbers = [self._next() for _ in range(dice.randint(2, 15))]
        keys = [f"{self.seed}-{n}" if dice.random() < 0.5 else None for n in numbers]
        jobs = [
            m.JobInput(args=self._arguments("steady", n, dice), idempotency_key=key)
            for n, key in zip(numbers, keys, strict=True)
        ]
        told = self.client.ask_blocking(
            routes.SUBMIT_BATCH, m.SubmitBatch(function=self._functions["steady"], jobs=jobs)
        )
        for job, number, key in zip(told.jobs, numbers, keys, strict=False):
            self._keep(job, Promise("steady", number, key))
            open_jobs.append(job)

    def _baggage(self, dice: random.Random, open_jobs: list[str]) -> None:
        number, baggage = self._next(), dice.randbytes(60_000).hex()
        job = self.app.steady.spawn(str(self.book), number, 0.0, baggage)
        self._keep(job.job_id, Promise("steady", number))
        open_jobs.append(job.job_id)
        if dice.random() < 0.3:
            try:
                assert job.wait(timeout_s=60) == [number * 2, baggage]
            except JobCancelledError:
                assert self.promises[job.job_id].cancelled

    def _reads(self, dice: random.Random, open_jobs: list[str]) -> None:
        with self._lock:
            known = list(self.promises)[-60:]
        if not known:
            self._over.wait(0.01)
            return
        job = dice.choice(known)
        before = self.client.ask_blocking(routes.SHOW_JOB, m.ShowJob(job=job)).status
        if dice.random() < 0.05:
            self.promises[job].cancelled = True
            self.client.ask_blocking(routes.CANCEL, m.CancelJob(job=job))
        self.client.ask_blocking(routes.LIST_JOBS, m.ListJobs(limit=5))
        Job(job, self.client).logs()
        after = self.client.ask_blocking(routes.RESULT, m.ShowResult(job=job, wait_s=0.2)).job.status
        assert before not in FINAL or after == before, f"{job} was {before} and is {after}"

    def _gather(self, open_jobs: list[str]) -> None:
        while len(open_jobs) > OUTSTANDING and not self._over.is_set():
            told = self.client.ask_blocking(routes.GATHER, m.GatherResults(jobs=open_jobs, wait_s=1.0))
            ended = {each.job.id for each in told.results}
            open_jobs[:] = [job for job in open_jobs if job not in ended]

    # --- the kills ---------------------------------------------------------------------------------------------

    def kill(self, dice: random.Random) -> None:
        """Let it run for a moment, kill the control plane, look at what it left, and start it again at once."""
        time.sleep(dice.uniform(0.02, 0.9))  # the instant itself is what is drawn here
        self.server.kill()
        self._start_again()

    def kill_at(self, point: str, nth: int) -> None:
        """Kill it at the nth time that it reaches a probe point after a new start, and start it again."""
        self.server.kill()
        died = not self._started(APOTHIC_PROBE=f"{point}=exit:{nth}")
        process = self.server._process
        assert process is not None
        assert process.wait(60) == EXIT_STATUS, f"{point} was not reached: {died}"
        self._start_again()

    def _start_again(self) -> None:
        assert broken(self.server.data_dir) == {}
        self.totals.kills += 1
        begun = time.monotonic()
        assert self._started(), self.server.log()[-3000:]
        self.totals.restart_s = max(self.totals.restart_s, time.monotonic() - begun)
        if self._trouble:
            raise self._trouble[0]

    def _started(self, **more: str) -> bool:
        try:
            self.server.start(**more)
        except AssertionError:
            assert self.server._process is not None
            if self.server._process.wait(10) != EXIT_STATUS:
                raise
            return False
        return True

    # --- what must be true after it ----------------------------------------------------------------------------

    def settle(self, within_s: float = 60.0) -> None:
        """Wait until every acknowledged job has ended, and check each; also that keys still find their jobs."""
        self._wait_for_all(time.monotonic() + within_s)
        until(self._nothing_unfinished, within_s, "the end of all other jobs")
        found = self._found()
        ran = self._ran()
        missing = [job for job in self.promises if job not in found]
        assert not missing, f"{len(missing)} acknowledged jobs are gone: {missing[:3]}"
        for job, promise in list(self.promises.items())[self._checked :]:
            self._check(job, promise, found[job], ran.get(job, []))
            self.totals.ended[found[job]["status"]] += 1
        self._checked = self.totals.jobs = len(self.promises)
        check_no_slot_leaks(self.server, self.client)

    def _wait_for_all(self, over: float) -> None:
        left = list(self.promises)[self._checked :]
        while left:
            assert time.monotonic() < over, f"{len(left)} jobs do not end, {left[0]} for one"
            told = self.client.ask_blocking(routes.GATHER, m.GatherResults(jobs=left[:5_000], wait_s=1.0))
            ended = {each.job.id for each in told.results}
            left = [job for job in left if job not in ended]

    def _nothing_unfinished(self) -> bool:
        with opened(self.server.data_dir) as connection:
            return not connection.execute("SELECT 1 FROM jobs WHERE ended_at IS NULL LIMIT 1").fetchone()

    def _found(self) -> dict[str, dict[str, Any]]:
        with opened(self.server.data_dir) as connection:
            kinds = {row[0]: row[1] for row in connection.execute("SELECT seq, id FROM jobs")}
            columns = "seq, status, attempt, idempotency_key, failure"
            found = {
                kinds[seq]: {"status": status, "attempt": attempt, "key": key, "failure": failure, "lines": []}
                for seq, status, attempt, key, failure in connection.execute(f"SELECT {columns} FROM jobs")
            }
            logged = "SELECT job, data FROM events WHERE type = 'job.log' ORDER BY job, idx"
            for seq, data in connection.execute(logged):
                found[kinds[seq]]["lines"].append(json.loads(data)["text"])
        return found

    def _ran(self) -> dict[str, list[int]]:
        ran: dict[str, list[int]] = {}
        for line in self.book.read_text().splitlines():
            job, attempt = line.split()
            ran.setdefault(job, []).append(int(attempt))
        return ran

    def _check(self, job: str, promise: Promise, row: dict[str, Any], ran: list[int]) -> None:
        told = f"{job} {promise} {row} ran as attempts {ran}"
        assert row["key"] == promise.key or promise.key is None, told
        if row["status"] == "cancelled":
            assert promise.cancelled and len(ran) <= 2 - (promise.kind != "dies_first"), told
            return
        assert row["status"] == ENDS[promise.kind], told
        if promise.kind == "dies_first":
            assert ran == sorted(set(ran)) and 1 <= len(ran) <= 2, told
            return
        # The agent was never killed: what began once ran to its end, and nothing ran a second time.
        assert ran == [row["attempt"]], told
        hello, goodbye = f"hello {promise.number}", f"goodbye {promise.number}"
        assert row["lines"] == ([hello, goodbye] if promise.kind == "steady" else [hello]), told
        if promise.kind == "dies":
            assert msgspec.msgpack.decode(row["failure"])["kind"] == "worker_lost", told


@contextlib.contextmanager
def storming(tmp_path: Path, seed: str) -> Iterator[Storm]:
    """Run a server on a port of its own under a storm's load; at the end nothing of it may be left."""
    server = Server(tmp_path / "data", {"port": free_port(), "lease_s": 30, "grace_s": 1})
    source = Path(__file__).with_name("stormy.py").read_text()
    try:
        server.start()
        client = server.client()
        agent = psutil.Process(agent_pid(client))
        with loaded(tmp_path, "stormy", source, client) as app:
            storm = Storm(server, client, app, seed)
            try:
                storm.begin()
                yield storm
            finally:
                storm.calm()
        assert agent_pid(client) == agent.pid, "the agent did not outlive the kills"
        end(server)
    finally:
        server.stop()


def fresh_seed() -> str:
    return secrets.token_hex(4)
