"""Hostile frames on agents' sessions: the session ends, or not; the store stays whole and other agents work on."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from aftermath import rows
from fuzzground import Progress, Target, cases, seed
from hostile import Builder, frame_of, packed
from msgspec import inspect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from apothic.protocol.routes import SESSION_PATH
from apothic.protocol.session import Hello, Upward

UPWARD = inspect.type_info(Upward)
HELLO = inspect.type_info(Hello)
AT_ONCE = 4
FRAMES = 20
ANSWER_S = 20.0


class Intruder:
    """An agent with a good key and a bad mind."""

    def __init__(self, target: Target, dice: random.Random, known: list[str]) -> None:
        self.sent = 0
        self._target = target
        self._dice = dice
        self._name = f"agt_evil{dice.randrange(8)}"
        self._builder = Builder([*known, self._name])

    async def intrude(self) -> None:
        """Say hello, then all kinds of things, until the session ends or nothing is left to say."""
        host, port = self._target.address
        headers = {"authorization": f"Bearer {self._target.agent_key}"}
        async with asyncio.timeout(ANSWER_S):
            with contextlib.suppress(WebSocketException, ConnectionError):
                async with connect(
                    f"ws://{host}:{port}{SESSION_PATH}", additional_headers=headers, max_size=None, proxy=None
                ) as line:
                    reading = asyncio.create_task(self._read(line))
                    try:
                        await self._talk(line)
                    finally:
                        reading.cancel()

    async def _talk(self, line: ClientConnection) -> None:
        dice = self._dice
        if dice.random() < 0.85:  # else out of order
            await line.send(packed(self._hello()))
        for _ in range(FRAMES):
            self.sent += 1
            frame = frame_of(self._builder, UPWARD, dice)
            await line.send(frame)

    def _hello(self) -> dict[str, Any]:
        """Return a hello of our own. What it declares lets it have work now and then."""
        room = self._dice.choice((0, 0, 0, 64.0))
        made = {"cpu": float(room), "memory_mb": 1 << 16, "host": "h", "pid": 1, "version": "0"}
        return {**self._builder.build(HELLO, self._dice), **made, "agent": self._name}

    async def _read(self, line: ClientConnection) -> None:
        """Take what is said: containers and tokens that are given to it are worth knowing."""
        with contextlib.suppress(WebSocketException, ConnectionError):
            async for _ in line:
                pass


async def intrude(target: Target, chosen: int, count: int) -> int:
    """Send some `count` frames over many sessions, several at once; return how many."""
    known = [*target.ids.values(), "job_none", "token", "ctr_none"]
    known += [row[0] for row in rows(target.server.data_dir, "SELECT id FROM containers")]
    gate, sent = asyncio.Semaphore(AT_ONCE), 0

    async def one(number: int) -> None:
        nonlocal sent
        async with gate:
            intruder = Intruder(target, random.Random(f"{chosen}/{number}"), known)
            try:
                await intruder.intrude()
            except TimeoutError:
                pytest.fail(f"SEED={chosen}: session {number} hangs")
            sent += intruder.sent

    async with asyncio.TaskGroup() as group:
        for number in range(count // FRAMES * 3):  # most sessions end early
            group.create_task(one(number))
    return sent


def test_a_hostile_agent_harms_nobody(target: Target) -> None:
    running = target.module.count.spawn(3)
    print(asyncio.run(intrude(target, seed(), 1_000)), "frames")
    assert list(running.wait_gen()) == [0, 1, 2]
    target.check_whole()


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_hostile_agents_harm_nobody(target: Target) -> None:
    chosen, progress = seed(), Progress("frames of sessions")
    while progress.done < cases(20_000):
        progress.add(asyncio.run(intrude(target, chosen, 2_000)))
        target.check_whole()
        chosen += 1
    progress.tell()
