"""A scheduler in a process of its own: each line it reads is what time it is, each line it writes is one look done."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from apothic.clock import ManualClock
from apothic.probe import Probe
from apothic.store.db import Database
from apothic.store.jobs import Jobs
from apothic.store.schedules import Schedules


async def look(path: Path) -> None:
    clock = ManualClock(0.0)
    db = Database(path, clock=clock, probe=Probe(), durable=False)
    db.open()
    schedules = Schedules(db, clock, Jobs(db, clock, lambda job: None, random.Random()))
    while line := await asyncio.to_thread(sys.stdin.readline):
        clock.jump(float(line) - clock.now())
        await schedules.tick()
        print(line, end="", flush=True)
    await db.close()


if __name__ == "__main__":
    asyncio.run(look(Path(sys.argv[1])))
