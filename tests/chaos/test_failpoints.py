"""The program may die at each named point of each operation: its store keeps its rules and its promises.

A kill leaves the files as the system sees them at that instant. So one play is enough: at each point that it reaches,
its data directory is copied with what the agent holds, and each copy is a server that died there. It is opened by a new
control plane, the agent comes back to it, and everything is run to its end. `test_failpoint_exits.py` has real
processes that really die at each point.
"""

from __future__ import annotations

import copy
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faultplay import Play, Puppet, inspect, kept_jobs, playing, reopened
from storm import fresh_seed

from apothic.probe import POINTS

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = {"submit", "append", "trim", "finish", "cancel", "sweep"}
# What the agent remembers, so that it can come back to another control plane.
MEMORY = ("containers", "held", "seqs", "outbox", "number")


@dataclass
class Death:
    """A server that died: where, at what, and what it had promised."""

    point: str
    doing: str
    data_dir: Path
    promises: list[tuple[Any, ...]]
    memory: dict[str, Any]


class Deaths:
    """Copies everything at each point, for each operation that reaches it, `each` times drawn by `dice`."""

    def __init__(self, folder: Path, dice: random.Random, each: int) -> None:
        self.folder = folder
        self.play: Play | None = None
        self.promises: list[tuple[Any, ...]] = []
        self.found: list[Death] = []
        self.seen: Counter[tuple[str, str]] = Counter()
        self._dice = dice
        self._each = each

    def promised(self, *what: Any) -> None:
        self.promises.append(what)

    def listen(self, play: Play) -> None:
        self.play = play
        for point in POINTS:
            play.stage.probe.on(point, lambda point=point: self._die(point))

    def _die(self, point: str) -> None:
        assert self.play is not None
        doing = self.play.doing
        self.seen[point, doing] += 1
        # The first time, and then by chance: the same point of a later round has another past.
        if self.seen[point, doing] > 1 and self._dice.random() > 0.15 * (self._each - 1):
            return
        data_dir = self.folder / f"{len(self.found)}"
        agent = self.play.agent
        memory = {name: copy.copy(getattr(agent, name)) for name in MEMORY}
        shutil.copytree(self.play.stage.data_dir, data_dir, ignore=shutil.ignore_patterns("*-shm"))
        self.found.append(Death(point, doing, data_dir, list(self.promises), memory))


async def died(tmp_path: Path, seed: str, rounds: int, each: int) -> Deaths:
    """Play some rounds, and let the server die at all that it comes by."""
    dice = random.Random(seed)
    deaths = Deaths(tmp_path, dice, each)
    async with playing(tmp_path / "data", deaths.promised, durability="fast") as play:
        deaths.listen(play)
        for _ in range(rounds):
            await play.act(dice)
        await play.come_back()
        await play.deploy_again()
        await play.scheduled()
        await play.collect()
        play.stage.probe.clear()
    return deaths


async def come_after(death: Death) -> None:
    """Start again where a server died; let the agent come back and everything end; check it."""
    stage = await reopened(death.data_dir)
    try:
        inspect(death.data_dir, death.promises)
        agent = Puppet(stage, "agt_one")
        for name, value in death.memory.items():
            setattr(agent, name, value)
        play = Play(stage, agent, "", lambda *what: None)
        await play.come_back()
        await play.drain()
    finally:
        await stage.close()
    inspect(death.data_dir, death.promises)
    ended = kept_jobs(death.data_dir)
    assert set(ended.values()) <= {"succeeded", "failed", "cancelled"}
    assert {what[1] for what in death.promises if what[0] == "job"} <= ended.keys()


async def come_after_all(deaths: Deaths) -> None:
    for death in deaths.found:
        try:
            await come_after(death)
        except BaseException as error:
            error.add_note(f"died at {death.point} of {death.doing}")
            raise
        shutil.rmtree(death.data_dir)


async def test_a_server_may_die_at_each_point_of_each_operation(tmp_path: Path) -> None:
    deaths = await died(tmp_path, "1", 2, 1)
    assert {point for point, _ in deaths.seen} == set(POINTS)
    assert {doing for _, doing in deaths.seen} >= OPERATIONS
    await come_after_all(deaths)
    print(f"{len(deaths.found)} deaths at {len(POINTS)} points")


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_forty_deaths_at_each_point(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or fresh_seed()
    first, last = int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "40"))
    begun, total = time.monotonic(), Counter[str]()
    for number in range(first, last):
        folder = tmp_path / f"round{number}"
        folder.mkdir()
        deaths = await died(folder, f"{seed}/{number}", 2, 1)
        assert {point for point, _ in deaths.seen} == set(POINTS)
        await come_after_all(deaths)
        total.update(death.point for death in deaths.found)
        shutil.rmtree(folder)
        took = time.monotonic() - begun
        least = min(total[point] for point in POINTS)
        print(
            f"SEED={seed} ROUND={number + 1}: {total.total()} deaths, {least} a point or more, {took:.0f} s", flush=True
        )


def reached_in_the_source() -> Iterator[str]:
    for path in (ROOT / "src" / "apothic").rglob("*.py"):
        yield from re.findall(r'reach\("([\w.]+)"\)', path.read_text())


def test_every_point_is_somewhere_and_every_place_is_a_point() -> None:
    replies = {"submit.reply", "submit_batch.reply", "cancel.reply", "put_blob.reply", "deploy.reply", "events.reply"}
    assert set(reached_in_the_source()) | replies == set(POINTS)
    assert len(POINTS) >= 25
