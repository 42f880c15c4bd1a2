"""One job made to move by hand, on a real store, with everything that happens to it written into its `Book`."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from streammodel import Book

from apothic.clock import ManualClock
from apothic.protocol.events import END, ERROR, ITEM, LOG, RESULT, STATUS
from apothic.protocol.messages import AppManifest, CallOptions, Failure, FunctionSpec
from apothic.protocol.session import ContainerNews, Hello, Item, Lease, Line, Outcome, Packed, Report, Reports, Said
from apothic.protocol.specs import FunctionOptions, Retries
from apothic.store.intake import NewJob
from apothic.store.schema import audit
from apothic.store.stream import Stream
from apothic.store.tx import Tx

WINDOWS = (1, 2, 3, 4, 5)
CRASHES, DRAINS = 3, 10  # that a job survives (contract: the life of a job, section 4)
AGENT = "agt_one"
LOST = Outcome(failure=Failure(kind="worker_lost", type="ProcessDied", message="signal 9", retriable=True))
RAISED = Outcome(failure=Failure(kind="user", type="ValueError", message="no", retriable=True))
DRAINED = Outcome(requeue="the agent leaves")
ENDS = {"raised": RAISED, "lost": LOST, "drained": DRAINED}
LEASE = """SELECT leases.token, leases.attempt, leases.container_id FROM leases JOIN jobs ON jobs.seq = leases.job
            WHERE jobs.id = ?"""


class Held(NamedTuple):
    """The lease of an attempt."""

    token: str
    attempt: int
    container: str


class Ground(ABC):
    """A store with one agent and a function for each window, for one job after the other. Who owns it opens it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.functions: dict[int, str] = {}

    @abstractmethod
    async def _open(self) -> Any:
        """Open everything under `folder`; return what has the parts of a store."""

    @abstractmethod
    async def close(self) -> None: ...

    async def open(self) -> None:
        """Begin the life of a control plane. The agent says hello to it by itself."""
        self.parts = await self._open()
        self.stream = Stream(self.parts.db, self.parts.jobs)

    async def furnish(self) -> None:
        """Open it for the first time, and deploy the functions."""
        await self.open()
        await self.hello(None)
        specs = [
            FunctionSpec(
                name=f"window_{window}", module="app", qualname="f", is_generator=True,
                options=FunctionOptions(cpu=0.001, memory_mb=1, max_containers=99, stream_window=window),
            )
            for window in WINDOWS
        ]  # fmt: skip
        view = await self.parts.catalog.deploy(AppManifest(app="app", functions=specs))
        self.functions = {each.options.stream_window: each.id for each in view.functions}
        await self.tend()

    async def hello(self, held: Held | None) -> None:
        """Let the agent come, with the lease that it has kept, or with nothing."""
        leases, containers = [], []
        if held is not None:
            job = (await self.rows("SELECT id FROM jobs JOIN leases ON job = seq WHERE token = ?", held.token))[0][0]
            leases = [Lease(job=job, attempt=held.attempt, token=held.token)]
            containers = [ContainerNews(id=held.container, state="ready", pid=7)]
        about = {"host": "h", "pid": 1, "cpu": 64.0, "memory_mb": 1 << 16}
        hello = Hello(agent=AGENT, version="0", leases=leases, containers=containers, **about)
        if await self.parts.catalog.key("key_play") is None:
            await self.parts.catalog.add_key("key_play", "play", "0" * 64, ["worker"], None)
        await self.parts.fleet.hello(hello, "key_play", lambda: None)

    async def report(self, *reports: Report, containers: list[ContainerNews] | None = None) -> list[str]:
        """Send a frame of the agent's; return the tokens that no longer count."""
        frame = Reports(number=0, reports=list(reports), containers=containers or [])
        dead: list[str] = (await self.parts.fleet.reports(AGENT, frame)).dead
        return dead

    async def tend(self) -> None:
        """Let containers that are to start become ready, and those that are to stop be gone."""
        while found := await self.rows("SELECT id, state FROM containers WHERE state <> 'ready'"):
            news = {"starting": "ready", "stopping": "gone"}
            await self.report(containers=[ContainerNews(id=each, state=news[state], pid=7) for each, state in found])

    async def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        def read(tx: Tx) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in tx._connection.execute(sql, values)]

        found: list[tuple[Any, ...]] = await self.parts.db.read(read)
        return found

    def broken(self) -> dict[str, list[str]]:
        """Run the auditor on what was left behind."""
        connection = sqlite3.connect(self.parts.db.path)
        try:
            return audit(connection)
        finally:
            connection.close()


class Played:
    """A job and its book. Each method is one thing that happens; it says in the book what must come of it."""

    def __init__(self, ground: Ground, window: int, stream: str, retries: int) -> None:
        self.ground = ground
        self.book = Book(window)
        self.held: Held | None = None
        self._stream = stream
        self._left = {"raised": retries, "lost": CRASHES, "drained": DRAINS}
        self._status, self._attempt = "", 0
        self._seq = self._yielded = 0

    async def submit(self) -> None:
        retries = Retries(self._left["raised"], initial_delay_s=0, jitter=False, stream=self._stream)
        new = NewJob(
            function_id=self.ground.functions[self.book.window], input=Packed(encoding="json", data=b"[]"),
            accept=("json",), options=CallOptions(retries=retries),
        )  # fmt: skip
        self.id: str = await self.ground.parts.jobs.submit(new)
        self._move("queued")
        await self._look()

    async def say(self, said: str) -> None:
        """Report lines and items: "lli" is two lines and an item."""
        assert await self._report(said, None) == []
        await self._look()

    async def end(self, said: str, how: str) -> None:
        """End the attempt: `done`, `raised`, `lost` or `drained`, with the last that it said."""
        more = sum(each == "i" for each in said)
        value = Packed(encoding="json", data=b"42")
        outcome = ENDS.get(how) or Outcome(value=value, items=self._yielded + more, ran_s=60.0)
        await self._report(said, outcome)
        self._after(how)
        await self._look()

    async def cancel(self) -> None:
        await self.ground.parts.jobs.cancel(self.id)
        if self._status in ("starting", "running"):
            self._move("cancelling")
        elif self._status in ("queued", "retrying"):
            self._finish("cancelled", ERROR, kind="cancelled")
        await self._look()

    async def time_passes(self, seconds: float, *, renewed: bool) -> None:
        """Let time pass and sweep; a lease that was not renewed in time is lost."""
        await self.ground.clock.advance(seconds)
        if renewed:
            await self.ground.parts.fleet.renew(AGENT)
        swept = await self.ground.parts.fleet.sweep()
        if swept.overdue:
            assert not renewed and self.held is not None
            self._after("lost")
            await self.ground.hello(None)  # its session was ended, and it comes again
        await self._look()

    async def server_restarts(self, *, keeps: bool) -> None:
        """Close the store and open it again; the agent comes back with its lease, or as another process."""
        await self.ground.close()
        await self.ground.open()
        await self.ground.hello(self.held if keeps else None)
        if self.held is not None and not keeps:
            self._after("drained" if self._status == "starting" else "lost")
        await self._look()

    async def conclude(self) -> None:
        """Bring the job to its end, if it has none."""
        while not self.book.ended:
            if self.held is not None:
                await self.end("", "done")
            else:
                await self.cancel()

    # --- what must come of it

    async def _report(self, said: str, outcome: Outcome | None) -> list[str]:
        assert self.held is not None
        report = Report(
            job=self.id, attempt=self.held.attempt, token=self.held.token, seq=self._seq, at=self.ground.clock.now(),
            began=True, said=self._said(said), outcome=outcome,
        )  # fmt: skip
        self._seq += 1
        return await self.ground.report(report)

    def _said(self, said: str) -> list[Said]:
        """Return what the agent reports, and write down what is stored of it."""
        if self._status == "starting":
            self._move("running")
        found: list[Said] = []
        for each in said:
            if each == "l":
                text = f"line of attempt {self._attempt}"
                self.book.write(LOG, text=text, stream="stdout", attempt=self._attempt, line=self.book.count(LOG))
                found.append(Line(stream="stdout", text=text, at=1.0))
                continue
            number, self._yielded = self._yielded, self._yielded + 1
            value = [number, self._attempt if self._stream == "restart" else 1]
            if self._stream != "replay" or number == self.book.count(ITEM):
                packed = {"encoding": "json", "data": value}
                self.book.write(ITEM, item_index=number, attempt=self._attempt, value=packed)
            found.append(Item(index=number, value=Packed(encoding="json", data=msgspec.json.encode(value))))
        self.book.trim()
        return found

    def _after(self, how: str) -> None:
        """Write down what follows the end of an attempt."""
        items, cancelling = self.book.count(ITEM), self._status == "cancelling"
        if how == "done":
            if self._stream == "replay" and self._attempt > 1 and self._yielded < items:
                self._finish("failed", ERROR, kind="user", type="ReplayDiverged")
            else:
                self._finish("succeeded", RESULT, value={"encoding": "json", "data": 42}, items=self._yielded)
        elif cancelling and how != "raised":
            self._finish("cancelled", ERROR, kind="cancelled")
        elif cancelling or self._left[how] == 0 or (items and self._stream == "none"):
            self._finish("failed", ERROR, kind="user" if how == "raised" else "worker_lost")
        else:
            self._left[how] -= 1
            self._move("queued" if how == "drained" else "retrying")

    def _move(self, status: str) -> int:
        self._status = status
        return self.book.write(STATUS, status=status, attempt=self._attempt)

    def _finish(self, status: str, outcome: str, **says: Any) -> None:
        self._move(status)
        self.book.write(outcome, attempt=self._attempt, **says)
        self.book.write(END, status=status, attempts=self._attempt, last_index=self.book.head + 1)

    async def _look(self) -> None:
        """See whether the job was given to a container, which the store decides; a new attempt has begun then."""
        found = await self.ground.rows(LEASE, self.id)
        self.held = Held(*found[0]) if found else None
        if self.held is not None and self.held.attempt != self._attempt:
            assert self._status in ("queued", "retrying") and self.held.attempt == self._attempt + 1
            published = self.book.count(ITEM) > 0
            assert not (published and self._stream == "none"), "what has published was run again"
            self._attempt, self._seq, self._yielded = self.held.attempt, 0, 0
            opened = self._move("starting")
            if published and self._stream == "restart":
                self.book.restarts.append(opened)
        await self.ground.tend()
