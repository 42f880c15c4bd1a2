"""Two workers that believe in the same lease, and writes that come late, twice and out of order: none is accepted.

SEED repeats a history; ROUNDS is how many stale writes are tried in the long form, ROUND those already done.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from storerig import DONE, LEASE_S, RAISED, Store, broken, items, lines, spec

from apothic.errors import ConflictError
from apothic.protocol.messages import Failure
from apothic.protocol.session import Assignment, ContainerNews, Outcome, Packed, Report, Reports

STALE = Outcome(value=Packed(encoding="json", data=b'"stale"'), ran_s=60.0)
LOST = Outcome(failure=Failure(kind="worker_lost", type="ProcessDied", message="signal 9", retriable=True))
OUTCOMES = [None, DONE, RAISED, LOST, STALE, Outcome(requeue="drained"), Outcome(requeue="behind", behind=True)]
AGENTS = ("agt", "twin")


class History:
    """Attempts that begin, lose their lease or end, and every write that they might still send."""

    def __init__(self, store: Store, seed: str) -> None:
        self.store = store
        self.dice = random.Random(seed)
        self.late: list[Report] = []  # of leases that are gone
        self.stale = 0

    async def begin(self) -> None:
        for agent in AGENTS:
            await self.store.hello(agent, cpu=4.0)
        options = {"cpu": 1.0, "max_containers": 4, "retries": 2, "stream_window": 6, "keep_warm_s": 10_000}
        await self.store.deploy("app", spec(**options))
        ((self.function,),) = await self.store.rows("SELECT id FROM functions")
        await self.ready()

    async def ready(self) -> None:
        rows = await self.store.rows("SELECT id, agent_id FROM containers WHERE state = 'starting'")
        for container, agent in rows:
            await self.store.news(agent, ContainerNews(id=container, state="ready", pid=1))
        self.store.started()

    async def step(self) -> None:
        """Let one more attempt live and lose its lease; then replay what is late, in any order."""
        dice, store = self.dice, self.store
        await store.submit(self.function)
        await self.ready()
        given = store.taken()
        if not given:
            await self._time(LEASE_S)
            return
        for each in given:
            await self._live(each)
        await self._time(dice.choice([0.0, 2.0, LEASE_S + 1]))
        await self._replay(dice.randint(20, 60))

    async def _time(self, seconds: float) -> None:
        await self.store.clock.advance(seconds)
        await self.store.fleet.sweep()
        for container, agent in await self.store.rows("SELECT id, agent_id FROM containers WHERE state = 'stopping'"):
            await self.store.news(agent, ContainerNews(id=container, state="gone"))
        for agent in AGENTS:
            await self.store.hello(agent, cpu=4.0, containers=await self._containers(agent), leases=[])
        await self.ready()

    async def _containers(self, agent: str) -> list[ContainerNews]:
        rows = await self.store.rows("SELECT id FROM containers WHERE agent_id = ?", agent)
        return [ContainerNews(id=container, state="ready", pid=1) for (container,) in rows]

    async def _live(self, given: Assignment) -> None:
        """Send some of an attempt's reports, as two workers would, up to one that ends it or to nothing at all."""
        dice, length = self.dice, self.dice.randint(0, 4)
        reports = [self._report(given, seq, last=False) for seq in range(length)]
        reports.append(self._report(given, length, last=True))
        for report in reports[: dice.randint(0, len(reports))]:
            for _ in range(dice.choice([1, 1, 2])):
                await self._send(report, dice.choice(AGENTS))
        # The twin worked on under the same lease, and said other things.
        self.late += reports + [self._report(given, seq, last=dice.random() < 0.5) for seq in range(length + 3)]

    def _report(self, given: Assignment, seq: int, *, last: bool) -> Report:
        said: Any = lines(f"{given.attempt} {seq}") if self.dice.random() < 0.7 else items(given.attempt, first=0)
        outcome = self.dice.choice(OUTCOMES[1:]) if last else None
        return Report(
            job=given.job, attempt=given.attempt, token=given.token, seq=seq, at=self.store.clock.now(),
            began=seq == 0, said=said if isinstance(said, list) and self.dice.random() < 0.8 else [], outcome=outcome,
        )  # fmt: skip

    async def _send(self, report: Report, agent: str) -> bool:
        """Send it; return whether it was refused."""
        try:
            told = await self.store.fleet.reports(agent, Reports(number=0, reports=[report]))
        except ConflictError:
            return True
        return report.token in told.dead

    async def _replay(self, count: int) -> None:
        leased = {token for (token,) in await self.store.rows("SELECT token FROM leases")}
        late = [report for report in self.late if report.token not in leased]
        before = await self._all()
        for report in self.dice.choices(late, k=count) if late else []:
            job = self.dice.choice([report.job, report.job, self.dice.choice(late).job])
            assert await self._send(_of(report, job), self.dice.choice(AGENTS)), f"accepted: {report}"
            self.stale += 1
        assert await self._all() == before
        self.late = self.late[-400:]

    async def _all(self) -> list[Any]:
        """Return all that a write could change."""
        return [
            await self.store.rows("SELECT seq, status, attempt, next_index, user_failures, crashes, drains FROM jobs"),
            await self.store.rows("SELECT job, token, last_report FROM leases ORDER BY job"),
            await self.store.rows("SELECT count(*), total(idx), total(length(data)) FROM events"),
        ]


def _of(report: Report, job: str) -> Report:
    return Report(
        job=job, attempt=report.attempt, token=report.token, seq=report.seq, at=report.at, began=report.began,
        said=report.said, outcome=report.outcome,
    )  # fmt: skip


async def histories(folder: Path, seed: str, first: int, last: int) -> None:
    """Try stale writes, in stores of their own of about a thousand each."""
    done, number = first, first // 1_000
    while done < last:
        folder.mkdir(exist_ok=True)
        store = Store(folder / f"{number}.db")
        store.db.open()
        history = History(store, f"{seed}/{number}")
        await history.begin()
        while history.stale < min(1_000, last - done):
            await history.step()
        await store.db.close()
        assert broken(store.path) == {}
        store.path.unlink()
        done, number = done + history.stale, number + 1
        print(f"SEED={seed} ROUND={done}: {done} stale writes, 0 accepted", flush=True)


async def test_no_stale_write_is_accepted(tmp_path: Path) -> None:
    await histories(tmp_path, os.environ.get("SEED", "1"), 0, 1_000)


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_no_stale_write_of_fifty_thousand_is_accepted(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or random.randbytes(4).hex()
    await histories(tmp_path, seed, int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "50000")))
