"""User code that writes into its container's connection to the agent: it hurts its own job, and nobody else."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from containerbench import Bench
from fuzzground import Progress, cases, seed
from hostile import Builder, frame_of
from msgspec import inspect

from apothic.agent.frames import LONGEST, News

NEWS = inspect.type_info(News)
FRAMES = 25  # that one job sends, at most
AT_ONCE = 4

HOSTILE = """
import os

def f(frames, printed):
    for stream in (1, 2):
        os.write(stream, printed)
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found = int(name)
        except OSError:
            pass
    for frame in frames:
        left = memoryview(frame)
        while left:
            left = left[os.write(found, left):]
    return "it said all"
"""
PATIENT = """
import time

def f(path):
    import pathlib
    while not pathlib.Path(path).exists():
        print("still here")
        time.sleep(0.02)
    return "unharmed"
"""


def said_by(dice: random.Random, job: str) -> list[bytes]:
    """Return what a hostile job writes: frames that may be right, one after the other, and lengths that lie."""
    builder = Builder([job, job, "job_none", "/etc/passwd", "../../../etc/passwd"])
    frames = []
    for _ in range(dice.randint(1, FRAMES)):
        body = frame_of(builder, NEWS, dice)
        told = len(body) if dice.random() < 0.97 else dice.choice((0, 1, len(body) + 3, LONGEST + 1, 2**32 - 1))
        frames.append(told.to_bytes(4, "big") + body)
    return frames


async def onslaught(bench: Bench, chosen: int, count: int) -> int:
    """Run hostile jobs, each in a container of its own, until that many frames were said."""
    said, number = 0, 0
    trouble: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: trouble.append(context))

    async def one(number: int) -> int:
        dice = random.Random(f"{chosen}/{number}")
        job = f"job_{chosen}_{number}"
        frames = said_by(dice, job)
        container = bench.start(HOSTILE, memory_mb=512)
        token = bench.give(container, frames, dice.randbytes(dice.randrange(5_000)), job=job, timeout_s=10.0)
        outcome = await bench.outcome(token)
        if outcome.failure is None:
            assert outcome.value is not None, f"SEED={chosen} job {number}: {outcome}"
        else:
            assert outcome.failure.kind is not None
        bench.containers.end([container])
        await bench.soon(lambda: container not in bench.containers.live)
        return len(frames)

    while said < count:
        said += sum(await asyncio.gather(*(one(number + n) for n in range(AT_ONCE))))
        number += AT_ONCE
        assert trouble == [], f"SEED={chosen}, before job {number}: {trouble[0]}"
    return said


async def test_what_a_job_writes_to_its_agent_hurts_only_itself(bench: Bench, tmp_path: Path) -> None:
    leave = tmp_path / "leave"
    neighbour = bench.give(bench.start(PATIENT), str(leave))
    await bench.printed(neighbour, "still here")
    print(await onslaught(bench, seed(), 300), "frames")
    leave.touch()
    assert await bench.value(neighbour) == "unharmed"
    assert await bench.run("def f(x):\n    return x + 1", 41) == 42


async def test_who_breaks_the_connection_is_told_so(bench: Bench) -> None:
    token = bench.give(bench.start(HOSTILE), [b"no frame at all, not even nearly"], b"last words\n")
    failure = await bench.failure(token)
    assert failure.kind == "worker_lost"
    assert "something wrote into the connection" in failure.message
    assert "last words" in failure.log_tail


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_what_jobs_write_to_their_agent_hurts_only_themselves(bench: Bench, tmp_path: Path) -> None:
    chosen, progress = seed(), Progress("frames of containers")
    while progress.done < cases(10_000):
        progress.add(await onslaught(bench, chosen, 500))
        assert await bench.run("def f(x):\n    return x + 1", 41) == 42
        chosen += 1
    progress.tell()
