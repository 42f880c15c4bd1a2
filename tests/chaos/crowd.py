"""One process of a crowd: writers, or readers, of one server, until enough was done. Prints what it did as JSON.

Arguments: `writes` or `reads`, URL, key, function, how many at once, how many operations, a seed. Readers get a line
on stdin with the ids of jobs.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter

from apothic import ControlPlaneClient, Job
from apothic.errors import ApothicError, JobError, QueueFullError
from apothic.protocol import messages as m
from apothic.protocol import routes


class Member:
    """Does operations one after the other; what is refused is written down with its text."""

    def __init__(self, client: ControlPlaneClient, function: str, dice: random.Random) -> None:
        self.client, self.function, self.dice = client, function, dice
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.jobs: list[str] = []

    async def live(self, deeds: list[str], count: int) -> None:
        while self.done.total() < count:
            deed = self.dice.choice(deeds)
            try:
                await getattr(self, deed)()
            except (ApothicError, OSError) as error:
                if not isinstance(error, QueueFullError | JobError):
                    self.errors[f"{deed}: {type(error).__name__}: {error}"[:300]] += 1
            self.done[deed] += 1

    def _some(self) -> str:
        return self.dice.choice(self.jobs)

    async def submit(self) -> None:
        ask = m.Submit(function=self.function, args=[self.dice.random()])
        self.jobs.append((await self.client.ask(routes.SUBMIT, ask)).job.id)
        del self.jobs[:-50]

    async def batch(self) -> None:
        later = m.CallOptions(run_at=time.time() + 3600)
        jobs = [m.JobInput(args=[n]) for n in range(5)]
        ask = m.SubmitBatch(function=self.function, jobs=jobs, options=later)
        for job in (await self.client.ask(routes.SUBMIT_BATCH, ask)).jobs:
            await self.client.ask(routes.CANCEL, m.CancelJob(job=job))
            self.done["cancel"] += 1

    async def cancel(self) -> None:
        if self.jobs:
            await self.client.ask(routes.CANCEL, m.CancelJob(job=self._some()))

    async def show(self) -> None:
        await self.client.ask(routes.SHOW_JOB, m.ShowJob(job=self._some()))

    async def result(self) -> None:
        await self.client.ask(routes.RESULT, m.ShowResult(job=self._some(), wait_s=0.0))

    async def page(self) -> None:
        await self.client.ask(routes.LIST_JOBS, m.ListJobs(limit=5))

    async def stream(self) -> None:
        assert [item async for item in Job(self._some(), self.client).aio.wait_gen(timeout_s=120)] == list(range(20))


async def main(role: str, url: str, key: str, function: str, at_once: int, count: int, seed: str) -> None:
    jobs = json.loads(sys.stdin.readline()) if role == "reads" else []
    async with ControlPlaneClient(url, api_key=key, timeout_s=60) as client:
        members = [Member(client, function, random.Random(f"{seed}/{n}")) for n in range(at_once)]
        deeds = ["submit", "submit", "batch", "cancel"] if role == "writes" else ["show", "result", "page", "stream"]
        for member in members:
            member.jobs = list(jobs)
        await asyncio.gather(*(member.live(deeds, count // at_once) for member in members))
    done: Counter[str] = sum((member.done for member in members), Counter())
    errors: Counter[str] = sum((member.errors for member in members), Counter())
    print(json.dumps({"done": done, "errors": errors}))


if __name__ == "__main__":
    role, url, key, function, at_once, count, seed = sys.argv[1:]
    asyncio.run(main(role, url, key, function, int(at_once), int(count), seed))
