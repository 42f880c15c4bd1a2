"""Random lives of jobs, agents and the server, with the auditor after every step."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from storerig import DONE, RAISED, Store, lines, spec

from apothic.errors import ConflictError, QueueFullError
from apothic.protocol.lifecycle import FINAL
from apothic.protocol.messages import Failure
from apothic.protocol.session import Assignment, ContainerNews, Lease, Outcome
from apothic.store.schema import audit

CRASHED = Outcome(failure=Failure(kind="worker_lost", type="ProcessDied", message="signal 9", retriable=True))
BURIED = Outcome(failure=Failure(kind="cancelled", type="C", message=""))
TIMED_OUT = Outcome(failure=Failure(kind="timeout", type="TimeoutError", message="late"))
BEHIND = Outcome(requeue="it waited behind a long job", behind=True)
OUTCOMES = [DONE, RAISED, CRASHED, BURIED, TIMED_OUT, BEHIND, Outcome(requeue="drained")]
AGENTS = ["agt_a", "agt_b"]


class Lives(RuleBasedStateMachine):
    """Two agents, one app of two functions, and whatever may happen to them."""

    def __init__(self) -> None:
        super().__init__()
        # Ids decide the order of what is otherwise equal; the same example has to be the same life.
        self.dice = random.Random(7)
        chance = SimpleNamespace(
            randbits=self.dice.getrandbits, token_hex=lambda n: f"{self.dice.getrandbits(8 * n):x}"
        )
        self.patches = [patch("apothic.protocol.ids.secrets", chance), patch("apothic.store.dispatch.secrets", chance)]
        for each in self.patches:
            each.start()
        self.folder = Path(tempfile.mkdtemp(prefix="lives-"))
        self.loop = asyncio.new_event_loop()
        self.store = Store(self.folder / "apothic.db")
        self.loop.run_until_complete(self._open())
        self.auditor = sqlite3.connect(self.store.path)
        self.held: list[tuple[Assignment, int]] = []  # what agents run, and the next seq of each
        self.containers: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.jobs: list[str] = []

    async def _open(self) -> None:
        self.store.db.open()

    def do(self, work: Any) -> Any:
        result = self.loop.run_until_complete(work)
        for agent, frame in self.store.frames:
            if type(frame).__name__ == "StartContainer":
                self.containers[frame.container] = agent  # type: ignore[union-attr]
        self.store.started()
        self.held += [(given, 0) for given in self.store.taken()]
        return result

    def teardown(self) -> None:
        self.auditor.close()
        self.loop.run_until_complete(self.store.db.close())
        self.loop.close()
        shutil.rmtree(self.folder)
        for each in self.patches:
            each.stop()

    @initialize()
    def begin(self) -> None:
        for agent in AGENTS:
            self.do(self.store.hello(agent, cpu=3.0))
        small = {"cpu": 1.0, "max_containers": 3, "max_pending_tasks": 6, "stream_window": 4}
        self.do(self.store.deploy("app", spec("f", retries=1, **small), spec("g", concurrent_requests=2, **small)))
        rows = self.do(self.store.rows("SELECT id FROM functions ORDER BY name"))
        self.functions = [function for (function,) in rows]
        self.ready()

    @rule()
    def ready(self) -> None:
        for container, agent in list(self.containers.items()):
            self.do(self.store.news(agent, ContainerNews(id=container, state="ready", pid=1)))

    @rule(which=st.integers(0, 1), key=st.sampled_from([None, None, "k", "l"]), delay=st.sampled_from([0, 0, 5]))
    def submit(self, which: int, key: str | None, delay: int) -> None:
        at = self.store.clock.now() + delay if delay else None
        deadline = 3.0 if delay else None
        try:
            job = self.do(self.store.submit(self.functions[which], key=key, run_at=at, expires_in_s=deadline))
        except QueueFullError:
            return
        self.jobs.append(job)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), outcome=st.sampled_from([None, *OUTCOMES]), said=st.integers(0, 6))
    def report(self, data: st.DataObject, outcome: Outcome | None, said: int) -> None:
        n = data.draw(st.integers(0, len(self.held) - 1))
        given, seq = self.held[n]
        what = {"began": outcome is not BEHIND, "said": lines(*"x" * said), "outcome": outcome}
        dead = self.do(self.store.report(given, seq=seq, **what))
        again = self.do(self.store.report(given, seq=seq, **what))
        assert outcome is None or dead or again == [given.token]
        if outcome is None and not dead:
            self.held[n] = (given, seq + 1)
        else:
            self.held.pop(n)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def report_out_of_order(self, data: st.DataObject) -> None:
        given, seq = data.draw(st.sampled_from(self.held))
        with contextlib.suppress(ConflictError):
            assert self.do(self.store.report(given, seq=seq + 1, outcome=DONE)) == [given.token]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.do(self.store.jobs.cancel(data.draw(st.sampled_from(self.jobs))))

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.do(self.store.clock.advance(seconds))
        self.do(self.store.jobs.expire())
        self.do(self.store.fleet.sweep())

    @rule(agent=st.sampled_from(AGENTS))
    def renew(self, agent: str) -> None:
        self.do(self.store.fleet.renew(agent))

    @precondition(lambda self: self.containers)
    @rule(data=st.data())
    def container_dies(self, data: st.DataObject) -> None:
        container = data.draw(st.sampled_from(sorted(self.containers)))
        failure = Failure(kind="worker_lost", type="ProcessDied", message="signal 9", retriable=True)
        agent = self.containers.pop(container)
        self.held = [(given, seq) for given, seq in self.held if given.container != container]
        self.do(self.store.news(agent, ContainerNews(id=container, state="gone", failure=failure)))

    @rule(agent=st.sampled_from(AGENTS), keeps=st.booleans())
    def reconnect(self, agent: str, keeps: bool) -> None:
        self.do(self.store.fleet.disconnected(agent))
        mine = {container for container, owner in self.containers.items() if owner == agent}
        if not keeps:  # a fresh process: nothing of the old one is left
            self.containers = {c: owner for c, owner in self.containers.items() if owner != agent}
            self.held = [(given, seq) for given, seq in self.held if given.container not in mine]
            mine = set()
        leases = [
            Lease(job=g.job, attempt=g.attempt, token=g.token) for g, _ in self.held if g.container in mine
        ]  # fmt: skip
        news = [ContainerNews(id=container, state="ready", pid=1) for container in sorted(mine)]
        told = self.do(self.store.hello(agent, cpu=3.0, containers=news, leases=leases))
        self.held = [(given, seq) for given, seq in self.held if given.token not in told.dead_leases]

    @rule()
    def server_starts_again(self) -> None:
        self.do(self.store.fleet.restart())

    @invariant()
    def nothing_is_broken(self) -> None:
        assert audit(self.auditor) == {}

    @invariant()
    def what_has_ended_stays_as_it_is(self) -> None:
        rows = dict(self.do(self.store.rows("SELECT id, status FROM jobs")))
        assert all(rows[job] == status for job, status in self.ended.items())
        self.ended = {job: status for job, status in rows.items() if status in FINAL}


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
