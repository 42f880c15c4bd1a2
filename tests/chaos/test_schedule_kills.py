"""Two schedulers on one database under `kill -9`: each tick is looked at once, and makes one job at most.

SEED repeats a storm, TICKS says how long it is. 10,000 ticks are some 680 kills and take six minutes on two busy cores.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from aftermath import broken
from rig import ROOT
from storm import fresh_seed

from apothic.clock import ManualClock
from apothic.probe import Probe
from apothic.protocol.messages import AppManifest, FunctionSpec
from apothic.protocol.specs import FunctionOptions, Period
from apothic.store.catalog import Catalog
from apothic.store.db import Database
from apothic.store.jobs import Jobs
from apothic.store.rollout import Rollout

PERIOD_S = 60.0
SCHEDULER = Path(__file__).with_name("scheduling.py")


class Scheduler:
    """One of the two: told the time, killed, started again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCHEDULER), str(self._path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip

    def tell(self, now: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{now!r}\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Wait until it has looked."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "a scheduler has ended by itself"

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Storm:
    """A function that comes round once a minute, and what became of each minute."""

    def __init__(self, path: Path, seed: str) -> None:
        self.path = path
        self.dice = random.Random(seed)
        self.clock = ManualClock()
        self.db = Database(path, clock=self.clock, probe=Probe(), durable=False)
        self.jobs = Jobs(self.db, self.clock, lambda job: None, random.Random(seed))
        self.seen: Counter[str] = Counter()
        self.kills = 0

    async def open(self) -> None:
        self.db.open()
        spec = FunctionSpec(name="f", module="app", options=FunctionOptions(schedule=Period(seconds=PERIOD_S)))
        view = await Catalog(self.db, self.clock, print).deploy(AppManifest(app="app", functions=[spec]))
        await self.db.write(lambda tx: Rollout(tx, self.clock.now(), print).go_live("app", view.id))
        self.since = self.clock.now()
        self.schedulers = [Scheduler(self.path), Scheduler(self.path)]

    async def close(self) -> None:
        for each in self.schedulers:
            each.end()
        await self.db.close()

    async def play(self, number: int) -> None:
        """Let one tick come: both look, some are killed while they do, and what it made is ended, or left to run."""
        tick = self.since + number * PERIOD_S
        now = tick + self.dice.uniform(0.0, PERIOD_S - 1.0)
        if self.dice.random() < 0.02:  # a clock that is wrong for a moment
            self._look([now - self.dice.uniform(60.0, 3600.0)] * 2)
        if self.dice.random() < 0.05:
            self._kill(now)
        self._look([now, now + self.dice.uniform(0.0, 0.5)])
        rows = await self.db.read(
            lambda tx: tx._connection.execute("SELECT at, outcome, job FROM ticks ORDER BY at DESC LIMIT 2").fetchall()
        )
        assert [row["at"] for row in rows] == [tick, tick - PERIOD_S][: min(number, 2)]
        self.seen[rows[0]["outcome"]] += 1
        self.clock.jump(now - self.clock.now())
        unfinished = await self.db.read(
            lambda tx: tx._connection.execute("SELECT id FROM jobs WHERE ended_at IS NULL").fetchall()
        )
        assert len(unfinished) <= 1
        if self.dice.random() < 0.8:
            for row in unfinished:
                await self.jobs.cancel(row["id"])

    def _look(self, times: list[float]) -> None:
        for each, now in zip(self.schedulers, times, strict=True):
            each.tell(now)
        for each in self.schedulers:
            each.wait()

    def _kill(self, now: float) -> None:
        """Kill one, or both, at any point of their look; the next ones look again."""
        for each in self.schedulers:
            each.tell(now)
        time.sleep(self.dice.uniform(0.0, 0.003))
        for each in self.dice.sample(self.schedulers, self.dice.choice([1, 1, 2])):
            each.end()
            each.start()
            each.tell(now)
            self.kills += 1
        for each in self.schedulers:
            each.wait()


async def play(path: Path, seed: str, ticks: int) -> None:
    storm, began = Storm(path, seed), time.monotonic()
    await storm.open()
    try:
        for number in range(1, ticks + 1):
            await storm.play(number)
            if number % 1_000 == 0:
                print(f"{number} ticks, {storm.kills} kills, {dict(storm.seen)}, {time.monotonic() - began:.0f} s")
        made = await storm.db.read(lambda tx: tx._connection.execute("SELECT count(*) FROM jobs").fetchone()[0])
    finally:
        await storm.close()
    assert made == storm.seen["job"] and set(storm.seen) == {"job", "overlap"}
    assert broken(path.parent) == {}


@pytest.mark.timeout(120)
async def test_each_tick_is_looked_at_once_while_schedulers_die(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or fresh_seed()
    print(f"SEED={seed}")
    await play(tmp_path / "apothic.db", seed, 100)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_ten_thousand_ticks_while_schedulers_die(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or fresh_seed()
    print(f"SEED={seed}")
    await play(tmp_path / "apothic.db", seed, int(os.environ.get("TICKS", "10000")))
