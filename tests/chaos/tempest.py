"""A tempest: every process of a deployment is killed, stopped past its lease and woken again, or told to leave.

Two agents run the jobs, the server's own and one that joined from outside. What was acknowledged is written down here,
and the status in which a job was first seen ended; all of it is held against the store and against the jobs' own book.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import psutil
from aftermath import broken, check_no_slot_leaks, end, loaded, rows
from rig import Server, environment, until
from storm import free_port
from tempest_check import Promise, check

from apothic import ControlPlaneClient
from apothic.cli import local
from apothic.errors import NotFoundError, QueueFullError, ServerUnavailableError
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.lifecycle import FINAL

LEASE_S = 3.0
GRACE_S = 0.5
WAKING_S = LEASE_S + GRACE_S + 8.0  # after it is woken, an agent needs this long at most to end what it lost
OUTSTANDING = 12  # of each thread
KINDS = {"steady": 40, "together": 15, "flaky": 10, "replays": 10, "refuses": 8, "once": 8, "slow": 4, "endless": 5}
FAULTS = {
    "kill_container": 36, "stop_container": 14, "kill_local": 10, "kill_remote": 8, "stop_local": 7, "stop_remote": 7,
    "kill_server": 10, "stop_server": 4, "leave_remote": 3, "leave_server": 1,
}  # fmt: skip


@dataclass
class Totals:
    faults: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    beside: int = 0  # attempts that began while a given-up one of a stopped agent still ran

    def __str__(self) -> str:
        cycles, jobs = sum(self.faults.values()), sum(self.ended.values())
        return (
            f"{cycles} cycles {dict(self.faults)}, {jobs} jobs {dict(self.ended)}, {self.beside} beside a given-up one"
        )


class Remote:
    """An agent that joined from outside, in a process of its own."""

    def __init__(self, server: Server, home: Path) -> None:
        self._server = server
        self._home = home
        home.mkdir(exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        key = (self._server.data_dir / "agent.key").read_text().strip()
        words = ["agent", f"--url={self._server.base_url}", f"--key={key}"]
        env = environment(self._home, self._home, TMPDIR=str(self._home))
        with (self._home / "agent.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "apothic", *words], stdout=log, stderr=log, env=env)

    def ensure(self) -> None:
        """Start it again if it has ended."""
        if self.process is None or self.process.poll() is not None:
            self.start()

    def stop(self, patience_s: float = 30.0) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        self.process.wait(patience_s)


class Tempest:
    """The load, the faults, and the reckoning. Use it by `raging`."""

    def __init__(self, server: Server, client: ControlPlaneClient, app: ModuleType, seed: str) -> None:
        self.server, self.client, self.app, self.seed = server, client, app, seed
        self.remote = Remote(server, server.home / "remote")
        self.book = server.home / "books"
        self.book.mkdir()
        self.promises: dict[str, Promise] = {}
        self.totals = Totals()
        self.given_up: list[tuple[float, float]] = []  # when an agent was stopped, and its jobs another's
        self._functions: dict[str, str] = {}
        self._asleep: list[tuple[float, list[psutil.Process]]] = []
        self._trouble: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._number = 0

    # --- the load ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.remote.start()
        self.app.app.deploy()
        found = self.client.ask_blocking(routes.FIND_FUNCTIONS, m.FindFunctions(app="tempestuous")).functions
        self._functions = {each.name: each.id for each in found}

    def blow(self) -> None:
        """Start the load."""
        self._over.clear()
        for deed, number in ((self._submits, 0), (self._submits, 1), (self._looks, 2)):
            dice = random.Random(f"{self.seed}:{number}:{self._number}")
            self._threads.append(threading.Thread(target=self._run, args=(deed, dice), name=deed.__name__))
            self._threads[-1].start()

    def calm(self) -> None:
        """End the load, and wake what sleeps."""
        self.wake(everything=True)
        self._over.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), f"{thread.name} does not end"
        self._threads.clear()
        if self._trouble:
            raise self._trouble[0]

    def _run(self, deed: Callable[[random.Random, list[str]], None], dice: random.Random) -> None:
        mine: list[str] = []
        try:
            while not self._over.is_set():
                with contextlib.suppress(ServerUnavailableError):  # then it was not acknowledged
                    deed(dice, mine)
        except BaseException as error:
            self._trouble.append(error)

    def _submits(self, dice: random.Random, mine: list[str]) -> None:
        if len(mine) >= OUTSTANDING:
            told = self.client.ask_blocking(routes.GATHER, m.GatherResults(jobs=mine, wait_s=0.5))
            for each in told.results:
                mine.remove(each.job.id)
                self._saw(each.job.id, each.job.status, None)
            return
        kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
        with self._lock:
            self._number += 1
            number = self._number
        options = m.CallOptions(delivery="at_most_once" if kind == "once" else "at_least_once")
        wait_s = dice.choices([0.0, 0.01, 0.1, 0.3, LEASE_S + 3], [25, 25, 25, 20, 5])[0]
        arguments = [str(self.book), number, wait_s]
        key = f"{self.seed}-{number}"
        ask = m.Submit(function=self._functions[kind], args=arguments, options=options, idempotency_key=key)
        try:
            job = self.client.ask_blocking(routes.SUBMIT, ask).job.id
        except QueueFullError:
            return
        with self._lock:
            self.promises[job] = Promise(kind, number)
        mine.append(job)

    def _looks(self, dice: random.Random, _: list[str]) -> None:
        with self._lock:
            known = list(self.promises.items())[-80:]
        if not known:
            time.sleep(0.01)
            return
        job, promise = dice.choice(known)
        if promise.seen is None and dice.random() < (0.5 if promise.kind == "endless" else 0.02):
            promise.cancelled = True
            self._saw(job, self.client.ask_blocking(routes.CANCEL, m.CancelJob(job=job)).status, None)
        wait_s = dice.choice([0.0, 0.1])
        before = promise.seen
        told = self.client.ask_blocking(routes.RESULT, m.ShowResult(job=job, wait_s=wait_s))
        self._saw(job, told.job.status, before)

    def _saw(self, job: str, status: str, before: str | None) -> None:
        """Check an answer: what was seen `before` it was asked for holds; what others see meanwhile may be later."""
        promise = self.promises[job]
        assert before in (None, status), f"{job} was {before} and is {status}"
        if status in FINAL:
            with self._lock:
                assert promise.seen in (None, status), f"{job} was {promise.seen} and is {status}"
                promise.seen = status

    # --- the faults --------------------------------------------------------------------------------------------

    def gust(self, dice: random.Random) -> None:
        """Let one fault happen after a moment."""
        time.sleep(dice.uniform(0.0, 0.9))  # the instant itself is what is drawn here
        self.wake()
        self.remote.ensure()
        happened = False
        while not happened:  # there may be no container to kill
            fault = dice.choices(list(FAULTS), list(FAULTS.values()))[0]
            with contextlib.suppress(psutil.NoSuchProcess):
                happened = getattr(self, f"_{fault}")(dice)
        self.totals.faults[fault] += 1
        if self._trouble:
            raise self._trouble[0]

    def wake(self, *, everything: bool = False) -> None:
        """Let go on what was stopped, when its time has come."""
        now = time.monotonic()
        for due, processes in list(self._asleep):
            if everything or due <= now:
                for process in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.resume()
                self._asleep.remove((due, processes))

    def _stop(self, processes: list[psutil.Process], seconds: float) -> bool:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        self._asleep.append((time.monotonic() + seconds, processes))
        return bool(processes)

    def _local(self) -> psutil.Process | None:
        pid = local.holder(self.server.data_dir / local.AGENT_LOCK)
        return psutil.Process(pid) if pid else None

    def _container(self, dice: random.Random) -> psutil.Process | None:
        agents = [self._local(), psutil.Process(self.remote.pid)]
        found = [child for agent in agents if agent is not None for child in agent.children()]
        return dice.choice(found) if found else None

    def _kill(self, process: psutil.Process | None) -> bool:
        if process is not None:
            process.kill()
        return process is not None

    def _kill_container(self, dice: random.Random) -> bool:
        return self._kill(self._container(dice))

    def _stop_container(self, dice: random.Random) -> bool:
        process = self._container(dice)
        tree = [process, *process.children(recursive=True)] if process is not None else []
        return self._stop(tree, LEASE_S + dice.uniform(-2.0, 1.5))

    def _kill_local(self, _: random.Random) -> bool:
        return self._kill(self._local())

    def _kill_remote(self, _: random.Random) -> bool:
        return self._kill(psutil.Process(self.remote.pid))

    def _give_up(self, agent: psutil.Process | None, dice: random.Random) -> bool:
        seconds = LEASE_S + dice.uniform(0.5, 2.0)
        now = time.monotonic()
        self.given_up.append((now, now + seconds + WAKING_S))
        return self._stop([agent] if agent is not None else [], seconds)

    def _stop_local(self, dice: random.Random) -> bool:
        return self._give_up(self._local(), dice)

    def _stop_remote(self, dice: random.Random) -> bool:
        return self._give_up(psutil.Process(self.remote.pid), dice)

    def _stop_server(self, dice: random.Random) -> bool:
        return self._stop([psutil.Process(self.server.pid)], dice.uniform(0.2, LEASE_S + 1.0))

    def _kill_server(self, _: random.Random) -> bool:
        self.server.kill()
        assert broken(self.server.data_dir) == {}
        self.server.start()
        return True

    def _leave_remote(self, _: random.Random) -> bool:
        assert self.remote.process is not None
        self.remote.process.terminate()
        return True

    def _leave_server(self, _: random.Random) -> bool:
        self.wake(everything=True)
        assert self.server._process is not None
        self.server._process.terminate()
        assert self.server._process.wait(60) == 0
        assert broken(self.server.data_dir) == {}
        self.server.start()
        return True

    # --- the reckoning -----------------------------------------------------------------------------------------

    def settle(self, within_s: float = 120.0) -> None:
        """Wait until every job has ended; hold each against its promise, and forget it."""
        self.remote.ensure()
        self._cancel_endless()
        unfinished = "SELECT id, status, attempt FROM jobs WHERE ended_at IS NULL"
        over = time.monotonic() + within_s
        while left := rows(self.server.data_dir, unfinished):
            assert time.monotonic() < over, f"{len(left)} jobs are stuck: {left[:5]}"
            time.sleep(0.1)
        check_no_slot_leaks(self.server, self.client)
        told = check(self.server.data_dir, self.book, self.promises, self.given_up)
        self.totals.ended += told.ended
        self.totals.beside += told.beside

    def _cancel_endless(self) -> None:
        for job, promise in self.promises.items():
            if promise.kind == "endless" and promise.seen is None:
                promise.cancelled = True
                with contextlib.suppress(NotFoundError):  # the check will name it
                    self.client.ask_blocking(routes.CANCEL, m.CancelJob(job=job))


@contextlib.contextmanager
def raging(tmp_path: Path, seed: str) -> Iterator[Tempest]:
    """Run a server and two agents under load; at the end no process of theirs may be left."""
    server = Server(tmp_path / "data", {"port": free_port(), "lease_s": LEASE_S, "grace_s": GRACE_S})
    source = Path(__file__).with_name("tempestuous.py").read_text()
    tempest: Tempest | None = None
    try:
        server.start()
        with loaded(tmp_path, "tempestuous", source, server.client()) as app:
            tempest = Tempest(server, app.app._client, app, seed)
            tempest.begin()
            try:
                yield tempest
            finally:
                tempest.calm()
        tempest.remote.stop()
        end(server)
        mark = str(tempest.remote._home)
        until(lambda: not _with(mark), 10, "the end of the remote agent's processes")
    finally:
        if tempest is not None and tempest.remote.process is not None:
            tempest.remote.process.kill()
            tempest.remote.process.wait()
        server.stop()


def _with(mark: str) -> list[psutil.Process]:
    """Return the processes whose environment names a directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and mark in "\n".join(process.environ().values()):
                found.append(process)
    return found
