"""A store with its dispatcher, and an agent's side of it played by hand."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from apothic.clock import ManualClock
from apothic.control.plan import plan
from apothic.probe import Probe
from apothic.protocol.messages import AppManifest, CallOptions, Failure, FunctionSpec
from apothic.protocol.session import (
    Assignment,
    ContainerNews,
    Downward,
    Hello,
    Item,
    Line,
    Outcome,
    Packed,
    Report,
    Reports,
    StartContainer,
    Work,
)
from apothic.protocol.specs import FunctionOptions
from apothic.store.catalog import Catalog
from apothic.store.db import Database
from apothic.store.dispatch import Dispatcher
from apothic.store.fleet import Fleet, Reconciled
from apothic.store.holds import Holds
from apothic.store.intake import NewJob
from apothic.store.jobs import Jobs
from apothic.store.schema import audit
from apothic.store.stream import Page, Stream, Wish
from apothic.store.tx import Tx

LEASE_S = 30.0
KEY = "key_agents"
# A minute: of a slow function, containers hold no more jobs than they run.
DONE = Outcome(value=Packed(encoding="json", data=b"42"), ran_s=60.0)
RAISED = Outcome(failure=Failure(kind="user", type="ValueError", message="no", retriable=True))


def spec(name: str = "f", **options: Any) -> FunctionSpec:
    """Return a function as a manifest has it; small enough that many fit on one agent."""
    given = {"cpu": 0.01, "memory_mb": 1} | options
    return FunctionSpec(name=name, module="app", qualname=name, options=FunctionOptions(**given))


def lines(*texts: str) -> list[Line]:
    return [Line(stream="stdout", text=text, at=1.0) for text in texts]


def items(*values: Any, first: int = 0) -> list[Item]:
    """Return what a generator yielded, as its agent reports it."""
    return [
        Item(index=first + n, value=Packed(encoding="json", data=msgspec.json.encode(value)))
        for n, value in enumerate(values)
    ]


class Store:
    """Everything under `apothic.store`, put together as the server does, on a clock that stands still."""

    def __init__(self, path: Path, clock: ManualClock | None = None, **limits: Any) -> None:
        self.path = path
        self.clock = clock or ManualClock()
        self.rung: list[str] = []
        self.frames: list[tuple[str, Downward]] = []
        self.db = Database(path, clock=self.clock, probe=Probe(), durable=False)
        self.catalog = Catalog(self.db, self.clock, self.rung.append)
        self.jobs = Jobs(self.db, self.clock, self.rung.append, random.Random(1))
        self.fleet = Fleet(self.db, self.clock, self.jobs, self.rung.append, limits.get("lease_s", LEASE_S))
        self.fleet.local_key = KEY
        dispatcher = Dispatcher(
            self.jobs, self.clock, plan=plan, push=lambda agent, frame: self.frames.append((agent, frame)),
            sign=lambda job, attempt: f"{job}.{attempt}", ring=self.rung.append,
            lease_s=limits.get("lease_s", LEASE_S),
        )  # fmt: skip
        self.holds = Holds(self.db, self.clock, self.jobs, lambda agent, frame: self.frames.append((agent, frame)))
        self.stream = Stream(self.db, self.jobs)
        self.dispatcher = dispatcher
        self.db.last_word = dispatcher.last_word
        self.numbers: dict[str, int] = {}

    # --- what an agent does

    async def hello(self, agent: str = "agt", **more: Any) -> Reconciled:
        """Let an agent say hello, with the containers and leases it still has."""
        about: dict[str, Any] = {"cpu": 64.0, "memory_mb": 1 << 16, "pid": 1} | more
        if await self.catalog.key(KEY) is None:
            await self.catalog.add_key(KEY, "agents", "0" * 64, ["worker"], None)
        return await self.fleet.hello(Hello(agent=agent, version="0", host="h", **about), KEY, lambda: None)

    async def news(self, agent: str, *news: ContainerNews) -> None:
        await self.fleet.reports(agent, Reports(number=0, containers=list(news)))

    async def report(self, given: Assignment, *, seq: int = 0, agent: str = "agt", **what: Any) -> list[str]:
        """Send one report of an attempt; return the tokens that are dead."""
        one = Report(job=given.job, attempt=given.attempt, token=given.token, seq=seq, at=self.clock.now(), **what)
        return (await self.fleet.reports(agent, Reports(number=0, reports=[one]))).dead

    async def finish(self, given: Assignment, outcome: Outcome = DONE, *texts: str) -> list[str]:
        return await self.report(given, began=True, outcome=outcome, said=lines(*texts))

    def taken(self) -> list[Assignment]:
        """Return the work that was pushed since the last look."""
        work = [each for _, frame in self.frames if isinstance(frame, Work) for each in frame.assignments]
        self.frames = [(agent, frame) for agent, frame in self.frames if not isinstance(frame, Work)]
        return work

    def started(self) -> list[StartContainer]:
        """Return the containers that were to be started since the last look."""
        starts = [frame for _, frame in self.frames if isinstance(frame, StartContainer)]
        self.frames = [(agent, frame) for agent, frame in self.frames if not isinstance(frame, StartContainer)]
        return starts

    # --- what a caller does

    async def deploy(self, app: str = "app", *specs: FunctionSpec) -> str:
        """Deploy an app; return the id of its first function. An agent must be there to make it live."""
        view = await self.catalog.deploy(AppManifest(app=app, functions=list(specs) or [spec()]))
        return view.functions[0].id

    async def live(self, app: str = "app", *specs: FunctionSpec, agent: str = "agt") -> str:
        """Deploy an app and let its proof's container become ready."""
        function = await self.deploy(app, *specs)
        for start in self.started():
            await self.news(agent, ContainerNews(id=start.container, state="ready", pid=7))
        return function

    async def submit(self, function: str, data: bytes = b"[]", key: str | None = None, **options: Any) -> str:
        return await self.jobs.submit(new_job(function, data, key, **options))

    async def status(self, job: str) -> str:
        return (await self.jobs.show(job)).status.value

    async def page(self, job: str, after: int | None = -1, *types: str, **more: Any) -> Page:
        """Return the next page of a job's stream."""
        return await self.stream.page(Wish(job, after, types, **more))

    async def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read with SQL of the test's own, through a reader."""

        def read(tx: Tx) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in tx._connection.execute(sql, values)]

        return await self.db.read(read)


def new_job(function: str, data: bytes = b"[]", key: str | None = None, **options: Any) -> NewJob:
    return NewJob(
        function_id=function, input=Packed(encoding="json", data=data, size=len(data)), accept=("json",),
        options=CallOptions(**options), idempotency_key=key,
    )  # fmt: skip


def broken(path: Path) -> dict[str, list[str]]:
    """Run the auditor on a file; return the rules it found broken."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return audit(connection)
    finally:
        connection.close()
