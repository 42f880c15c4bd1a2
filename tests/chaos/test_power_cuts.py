"""Power cuts: whatever was not synced is forgotten, whatever was acknowledged is there.

A play is recorded once, then cut at many instants and opened again each time. SEED repeats it, ROUND is the cut to go
on from, ROUNDS how many there are in all.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest
from faultplay import check, checkpoint_often, playing
from powercut import MODES, Disk, Op, Recorder, recording
from storm import fresh_seed

LITTLE = 40  # pages of log before it is written into the database: a play does that many times


async def recorded(data_dir: Path, seed: str, rounds: int, **settings: str) -> list[Op]:
    """Play so many rounds from an empty directory, and half as many after a restart.

    Return what was done to it and what was acknowledged.
    """
    dice = random.Random(seed)
    with recording(data_dir) as recorder:
        for count in (rounds, rounds // 2):
            async with playing(data_dir, recorder.acknowledge, **settings) as play:
                await checkpoint_often(play.stage, LITTLE)
                for _ in range(count):
                    await play.act(dice)
                await play.come_back()
    return recorder.ops


def cuts(ops: list[Op], seed: str, count: int) -> list[tuple[int, str]]:
    """Choose instants, evenly by chance, and what the disk does at each."""
    return [
        (at, MODES[random.Random(f"{seed}/{n}").randrange(len(MODES))])
        for n, at in enumerate(sorted(random.Random(seed).choices(range(1, len(ops) + 1), k=count)))
    ]


async def cut_all(tmp_path: Path, ops: list[Op], seed: str, first: int, last: int) -> int:
    """Cut, open and check; return how many promises were looked at."""
    disk, done, looked = Disk(), 0, 0
    for number, (at, mode) in enumerate(cuts(ops, seed, last)):
        while done < at:
            disk.do(ops[done])
            done += 1
        if number < first:
            continue
        place = tmp_path / "cut"
        disk.cut(mode, random.Random(f"{seed}/{number}"), place)
        try:
            await check(place, disk.promises)
        except BaseException as error:
            error.add_note(f"SEED={seed} ROUND={number}: step {at} of {len(ops)}, a disk that {mode}")
            raise
        looked += len(disk.promises)
        shutil.rmtree(place)
        if number % 100 == 99:
            print(f"SEED={seed} ROUND={number + 1}: {looked} promises kept", flush=True)
    return looked


async def test_nothing_acknowledged_is_lost_when_the_power_goes(tmp_path: Path) -> None:
    ops = await recorded(tmp_path / "data", "1", 3)
    kinds = {op[0] for op in ops}
    assert kinds == {"create", "mkdir", "write", "truncate", "sync", "directory", "rename", "unlink", "acknowledged"}
    assert await cut_all(tmp_path, ops, os.environ.get("SEED", "1"), 0, 30) > 100


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_a_thousand_power_cuts(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or fresh_seed()
    first, last = int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "1000"))
    begun = time.monotonic()
    ops = await recorded(tmp_path / "data", seed, 25)
    looked = await cut_all(tmp_path, ops, seed, first, last)
    print(
        f"SEED={seed} {last - first} cuts, {len(ops)} steps, {looked} promises kept, {time.monotonic() - begun:.0f} s"
    )


async def test_the_cuts_find_what_a_store_without_syncs_loses(tmp_path: Path) -> None:
    ops = await recorded(tmp_path / "data", "1", 2, durability="fast")
    with pytest.raises((AssertionError, TypeError)) as caught:
        await cut_all(tmp_path, ops, "1", 0, 100)
    assert "SEED=1 ROUND=" in caught.value.__notes__[0]


def test_the_disk_forgets_what_was_not_synced(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.created(tmp_path / "a")
    recorder.write(tmp_path / "a", 0, b"first")
    recorder.sync(tmp_path / "a")
    recorder.directory(tmp_path)
    recorder.write(tmp_path / "a", 0, b"again")
    recorder.created(tmp_path / "b")
    recorder.sync(tmp_path / "b")
    disk = Disk()
    for op in recorder.ops:
        disk.do(op)
    found = {}
    for mode in ("forgets", "keeps"):
        disk.cut(mode, random.Random(1), tmp_path / mode)
        found[mode] = {path.name: path.read_bytes() for path in (tmp_path / mode).iterdir()}
    assert found == {"forgets": {"a": b"first"}, "keeps": {"a": b"again", "b": b""}}
