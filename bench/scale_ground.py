"""A real store beneath a control plane in this process, with an agent whose side is played by hand.

No HTTP, no process, no container: what is timed is the transaction, with the dispatch and the synced commit in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from apothic.clock import SystemClock
from apothic.config import load
from apothic.control.plan import plan
from apothic.control.serve import ControlPlane
from apothic.probe import Probe
from apothic.protocol.messages import CallOptions
from apothic.protocol.session import (
    Assignment,
    ContainerNews,
    Downward,
    Hello,
    Outcome,
    Packed,
    Report,
    Reports,
    StartContainer,
    Work,
)  # fmt: skip
from apothic.store.dispatch import Dispatcher
from apothic.store.jobs import NewJob
from apothic.store.stream import Stream
from bench.scale_store import known

AGENT, LEASE_S = "agt_played", 3600.0
# A minute: of a slow function, containers hold no more jobs than they run.
DONE = Outcome(value=Packed(encoding="json", data=b"42", size=2), ran_s=60.0)


class Ground:
    """A control plane's store, open."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.clock = SystemClock()
        settings = load({"data_dir": str(data_dir)}, environ={}, cwd=data_dir, home=data_dir)
        self.control = ControlPlane(settings, self.clock, Probe())
        self.jobs, self.db = self.control.jobs, self.control.db
        self.stream = Stream(self.db, self.jobs)
        self._frames: list[Downward] = []
        self._number = 0
        dispatcher = Dispatcher(
            self.jobs, self.clock, plan=plan, push=lambda agent, frame: self._frames.append(frame),
            sign=self.control.keys.sign, ring=self.control.hub.ring,
            lease_s=LEASE_S,
        )  # fmt: skip
        self.db.last_word = dispatcher.last_word
        self.functions, self.ended = known(data_dir)

    def new(self, function: str) -> NewJob:
        """Return a small input as a submit."""
        return NewJob(
            function_id=self.functions[function], input=Packed(encoding="json", data=b"[[1],{}]", size=8),
            accept=("json",), options=CallOptions(),
        )  # fmt: skip

    async def hello(self) -> None:
        """Let the agent say hello, with room for two containers."""
        key = self.control.fleet.local_key
        about = Hello(agent=AGENT, version="0", host="here", pid=1, cpu=0.2, memory_mb=4096)
        await self.control.fleet.hello(about, key, lambda: None)

    async def taken(self) -> list[Assignment]:
        """Return the work that was pushed; the containers to be started for it are ready."""
        frames, self._frames[:] = list(self._frames), []
        ready = [ContainerNews(id=f.container, state="ready", pid=1) for f in frames if isinstance(f, StartContainer)]
        if ready:
            await self._said(Reports(number=self._next(), containers=ready))
        return [each for frame in frames if isinstance(frame, Work) for each in frame.assignments]

    async def finish(self, given: Assignment) -> None:
        """Report that a job has begun and succeeded."""
        at = self.clock.now()
        one = Report(
            job=given.job, attempt=given.attempt, token=given.token, seq=0, at=at, began=True, outcome=DONE
        )  # fmt: skip
        await self._said(Reports(number=self._next(), reports=[one]))

    async def _said(self, frame: Reports) -> None:
        await self.control.fleet.reports(AGENT, frame)

    def _next(self) -> int:
        self._number += 1
        return self._number


@asynccontextmanager
async def ground(data_dir: Path) -> AsyncIterator[Ground]:
    """Open a directory's store; one job holds the only container of `made`, and whatever is submitted to it waits."""
    made = Ground(data_dir)
    await made.control.open(data_dir)
    await made.hello()
    blocking = await made.jobs.submit(made.new("made"))
    try:
        assert [given.job for given in await made.taken()] == [blocking]
        yield made
    finally:
        await made.jobs.cancel(blocking)
        await made.db.close()
