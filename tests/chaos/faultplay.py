"""One play of everything that writes, on the real control plane in this process, and what it has promised since.

Submit, output, items past the window, large inputs in blobs, ends, cancels, an attached reader, deadlines, sweeps. A
test listens to it (`Probe`, `Recorder`), takes the disk away in the middle, and asks `check` what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "walk"))

from walkrig import DONE, Answer, Puppet, Stage, items, spec

from apothic import nearby
from apothic.protocol.session import Assignment, Renew, Renewed
from apothic.protocol.specs import Period
from apothic.store.collector import GRACE_S
from apothic.store.schema import audit
from apothic.store.tx import Tx

WINDOW = 3  # items and lines that a job keeps: every play trims
PROMISED = Callable[..., None]


class Refused(Exception):
    """The server did not do it, and said so."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status} {answer.body!r}")
        self.answer = answer


class Play:
    """A stage with one agent and one function, and the acts. `promised(kind, …)` is called at each acknowledgement."""

    def __init__(self, stage: Stage, agent: Puppet, function: str, promised: PROMISED) -> None:
        self.stage = stage
        self.agent = agent
        self.function = function
        self.promised = promised
        self.count = 0
        self.doing = "open"

    async def got(self, line: str, json_body: Any = None, **more: Any) -> Any:
        answer = await self.stage.ask(line, json_body, **more)
        if answer.status not in (200, 202):
            raise Refused(answer)
        return answer.json()

    async def submit(self, *args: Any, **body: Any) -> str:
        """Submit one job, acknowledged."""
        self.doing = "submit"
        told = await self.got(f"POST /v1/functions/{self.function}/jobs", {"args": list(args)} | body)
        job = str(told["job"]["id"])
        self.promised("job", job)
        return job

    async def upload(self, data: bytes) -> str:
        """Store a blob, acknowledged; every second one as a file that lies in the server's directory."""
        self.doing = "blob"
        sha256 = hashlib.sha256(data).hexdigest()
        if self.count % 2 == 0:
            place = nearby.offer(self.stage.data_dir / "blobs", sha256[:32])
            place.write_bytes(data)
            await self.got(f"PUT /v1/blobs/{sha256}", headers={nearby.HEADER: sha256[:32]})
        else:
            await self.got(f"PUT /v1/blobs/{sha256}", body=data)
        self.promised("blob", sha256, data)
        return sha256

    async def with_baggage(self, dice: random.Random) -> str:
        """Submit a job whose input is a blob."""
        data = b"[" + dice.randbytes(30_000).hex().encode() + b"]"
        value = {"encoding": "json", "sha256": await self.upload(data), "size": len(data)}
        told = await self.got(f"POST /v1/functions/{self.function}/jobs", {"input": value})
        job = str(told["job"]["id"])
        self.promised("job", job)
        return job

    async def page(self, job: str) -> None:
        """Read a page of its events."""
        self.doing = "page"
        await self.got(f"GET /v1/jobs/{job}/events", query={"limit": 2, "wait_s": 0})

    async def batch(self) -> None:
        """Submit three jobs in one request, acknowledged."""
        self.doing = "batch"
        told = await self.got(
            f"POST /v1/functions/{self.function}/jobs/batch", {"jobs": [{"args": [n]} for n in "abc"]}
        )
        for job in told["jobs"]:
            self.promised("job", job)

    async def pass_time(self) -> None:
        """Let the sweeps come round, and the agent renew its leases."""
        self.doing = "sweep"
        await self.stage.sweep(20.0)  # past a queue deadline
        self.doing = "renew"
        await self.agent.say(Renew(number=1))
        await self.agent.next(Renewed)

    async def output(self, given: Assignment, count: int, *, first: int = 0) -> None:
        """Say that it runs, print lines and yield items, acknowledged."""
        self.doing = "append" if first + count <= WINDOW else "trim"
        said = [*items(*range(count), first=first)]
        report = self.agent.report(given, began=given.token not in self.agent.seqs, said=said, texts=["x" * 40] * count)
        await self.agent.tell(report)
        self.promised("items", given.job, first + count)

    async def finish(self, given: Assignment, value: bytes = b"42") -> None:
        """Report its end, acknowledged."""
        self.doing = "finish"
        await self.agent.finish(given, DONE, "goodbye")
        self.promised("ended", given.job, "succeeded")

    async def cancel(self, job: str) -> None:
        """Ask for its end, acknowledged."""
        self.doing = "cancel"
        told = await self.got(f"POST /v1/jobs/{job}/cancel")
        self.promised("cancel", job, told["status"])

    async def act(self, dice: random.Random) -> None:
        """Play one round of everything."""
        self.count += 1
        job = await self.submit(self.count, attached=self.count % 2 == 1)
        given = await self.agent.work()
        await self.output(given, WINDOW - 1)
        await self.output(given, dice.randint(WINDOW, WINDOW + 3), first=WINDOW - 1)
        waiting = await self.submit("waiting", options={"expires_in_s": 5.0} if self.count % 3 == 0 else {})
        await self.with_baggage(dice)
        await self.page(job)
        await self.batch()
        if self.count % 3 != 0:
            await self.cancel(waiting)
        if self.count % 4 == 0:
            await self.cancel(job)
        await self.finish(given)
        for _ in range(4 if self.count % 2 else 1):  # four times are longer than a reader's hold
            await self.pass_time()
        await self.drain()

    async def deploy_again(self) -> None:
        """Deploy the same once more, acknowledged."""
        self.doing = "deploy"
        await self.stage.deploy("app", spec(stream_window=WINDOW, max_pending_tasks=1_000))

    async def scheduled(self) -> None:
        """Let a schedule's tick come."""
        self.doing = "tick"
        await self.stage.live(self.agent, "clock", spec(schedule=Period(seconds=30)))
        await self.stage.clock.advance(31.0)
        await self.stage.control.schedules.tick()
        await self.drain()

    async def collect(self) -> None:
        """Let a blob go that nobody has named for long."""
        self.doing = "collect"
        sha256 = hashlib.sha256(b"unwanted").hexdigest()
        await self.got(f"PUT /v1/blobs/{sha256}", body=b"unwanted")
        await self.stage.control.collector.step()
        await self.stage.clock.advance(GRACE_S + 1.0)
        await self.stage.control.collector.step()
        assert not self.stage.control.blobs.path(sha256).exists()

    async def drain(self) -> None:
        """Run all that waits to its end."""
        while await self.unfinished():
            await self.finish(await self.agent.work())

    async def unfinished(self) -> int:
        def count(tx: Tx) -> int:
            return int(tx._connection.execute("SELECT count(*) FROM jobs WHERE ended_at IS NULL").fetchone()[0])

        return await self.stage.control.db.read(count)

    async def come_back(self) -> None:
        """Let the agent lose its session, say hello again, and finish what it holds."""
        self.doing = "hello"
        # A session whose end could not be written is told again by the clock.
        await self.stage.settled(asyncio.ensure_future(self.agent.cut()), by_s=1.0)
        await self.agent.connect()
        for given in list(self.agent.held.values()):
            await self.finish(given)


@contextlib.asynccontextmanager
async def playing(data_dir: Path, promised: PROMISED, **settings: Any) -> AsyncIterator[Play]:
    """Open a stage with an agent and a live function for the length of a block."""
    stage = Stage(data_dir, **{"durability": "full"} | settings)
    try:
        await stage.open()
        agent = await stage.agent()
        function = await stage.live(agent, "app", spec(stream_window=WINDOW, max_pending_tasks=1_000))
        promised("function", function)
        yield Play(stage, agent, function, promised)
    finally:
        await stage.close()


async def checkpoint_often(stage: Stage, pages: int) -> None:
    """Write the log into the database each time that it has so many pages."""
    await stage.control.db.write(lambda tx: tx._connection.execute(f"PRAGMA wal_autocheckpoint = {pages}") and None)


async def reopened(data_dir: Path) -> Stage:
    """Open what is left with the real control plane; its own agent is gone with the machine."""
    stage = Stage(data_dir)
    await stage.open()
    return stage


async def check(data_dir: Path, promises: Iterable[tuple[Any, ...]]) -> None:
    """Open what is left of a store with the real control plane: it keeps its rules, and its promises."""
    stage = await reopened(data_dir)
    try:
        inspect(data_dir, promises)
    finally:
        await stage.close()


def inspect(data_dir: Path, promises: Iterable[tuple[Any, ...]]) -> None:
    """Look into a store, open or closed: does it keep its rules, and its promises?"""
    with contextlib.closing(sqlite3.connect(f"file:{data_dir}/apothic.db?mode=ro", uri=True)) as connection:
        assert audit(connection) == {}
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        for promise in promises:
            kept(connection, data_dir, *promise)
        for (sha256,) in connection.execute("SELECT sha256 FROM blobs"):
            blob(data_dir, sha256)


def kept(connection: sqlite3.Connection, data_dir: Path, kind: str, what: str, *more: Any) -> None:
    """Check one promise."""
    ask = "SELECT status, ended_at FROM jobs WHERE id = ?"
    match kind:
        case "function":
            assert connection.execute("SELECT 1 FROM functions WHERE id = ?", (what,)).fetchone(), what
        case "job":
            assert connection.execute(ask, (what,)).fetchone(), f"{what} is lost"
        case "blob":
            assert blob(data_dir, what) == more[0], what
            assert connection.execute("SELECT 1 FROM blobs WHERE sha256 = ?", (what,)).fetchone(), f"{what} is lost"
        case "items":
            counted = "SELECT kept + lost FROM windows JOIN jobs ON job = seq WHERE id = ? AND type = 'job.stream_item'"
            assert connection.execute(counted, (what,)).fetchone()[0] >= more[0], f"items of {what} are lost"
        case "ended":
            assert connection.execute(ask, (what,)).fetchone()[1] is not None, f"the end of {what} is lost"
            ends = "SELECT count(*) FROM events JOIN jobs ON job = seq WHERE id = ? AND type = 'job.end'"
            assert connection.execute(ends, (what,)).fetchone()[0] == 1, what
        case "cancel":
            status = connection.execute(ask, (what,)).fetchone()[0]
            assert status not in ("queued", "starting", "running") or more[0] in ("queued", "running"), (what, status)
        case _:
            raise AssertionError(kind)


def blob(data_dir: Path, sha256: str) -> bytes:
    """Return the bytes that a row names, checked."""
    data = (data_dir / "blobs" / sha256[:2] / sha256).read_bytes()
    assert hashlib.sha256(data).hexdigest() == sha256
    return data


def kept_jobs(data_dir: Path) -> dict[str, str]:
    """Return each job's status."""
    with contextlib.closing(sqlite3.connect(f"file:{data_dir}/apothic.db?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT id, status FROM jobs"))


__all__ = [
    "DONE",
    "Play",
    "Puppet",
    "Refused",
    "Stage",
    "check",
    "checkpoint_often",
    "inspect",
    "kept_jobs",
    "playing",
    "reopened",
]
