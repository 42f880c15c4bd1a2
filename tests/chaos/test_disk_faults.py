"""A disk that fails at the Nth write, sync or read: a clean error, nothing lost, and it goes on in the same process.

Every N of one round of a play is tried by the long form; the short form tries some. FIRST is the N to go on from.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from faultplay import Play, Refused, check, checkpoint_often, playing
from powercut import Disk, Recorder, recording
from shim import FULL, IOERR_READ, IOERR_SHORT_READ, IOERR_SYNC, IOERR_WRITE, OK, Listener, listening

from apothic.clock import ManualClock
from apothic.errors import StorageFullError
from apothic.probe import Probe
from apothic.store.db import Database
from apothic.store.tx import Tx

LITTLE = 60  # pages of log before it is written into the database: a round does that a few times
LASTING = 4  # faults in a row, for a disk that stays broken for a while
KINDS = {
    "full": ("write", FULL),
    "write": ("write", IOERR_WRITE),
    "sync": ("sync", IOERR_SYNC),
    "read": ("read", IOERR_READ),
    "short": ("read", IOERR_SHORT_READ),
}
STEPS = {"full": 53, "write": 53, "sync": 11, "read": 17, "short": 17}  # of the short form


class Fault:
    """Fails from the Nth time on, so many times."""

    def __init__(self, kind: str, nth: int, times: int) -> None:
        self.what, self.code = KINDS[kind]
        self.nth = nth
        self.times = times
        self.seen = 0
        self.told = 0

    def __call__(self, what: str, path: Path) -> int:
        if what != self.what:
            return OK
        self.seen += 1
        if self.nth <= self.seen < self.nth + self.times:
            self.told += 1
            return self.code
        return OK


async def broken_round(play: Play, dice: random.Random) -> str:
    """Play a round on a disk that fails; return how it ended."""
    try:
        await play.act(dice)
    except Refused as refused:
        assert refused.answer.status == 507, refused
        assert refused.answer.json()["error"]["hint"]
        return "refused"
    except StorageFullError:
        return "swept"
    except ConnectionError:
        return "session"
    return "unseen"


async def fail_at(folder: Path, kind: str, nth: int, times: int) -> tuple[str, int]:
    """Break the disk at the Nth time of a kind, mend it, go on; cut the power. Return what was seen of it."""
    data_dir, dice = folder / "data", random.Random(7)
    fault = Fault(kind, nth, times)
    with recording(data_dir) as recorder:
        async with playing(data_dir, recorder.acknowledge) as play:
            await checkpoint_often(play.stage, LITTLE)
            recorder.faults = fault
            seen = await broken_round(play, dice)
            recorder.faults = lambda what, path: OK
            await play.come_back()
            await play.drain()
            await play.act(dice)
    await check(data_dir, [op[1] for op in recorder.ops if op[0] == "acknowledged"])
    after_a_cut(recorder, folder / "cut")
    await check(folder / "cut", [op[1] for op in recorder.ops if op[0] == "acknowledged"])
    assert fault.told or seen == "unseen"
    return seen, fault.told


def after_a_cut(recorder: Recorder, target: Path) -> None:
    """Cut the power at the end: what a sync that failed has lost was never written later, unless by the store."""
    disk = Disk()
    for op in recorder.ops:
        disk.do(op)
    disk.cut("forgets", random.Random(0), target)


async def fail_each(tmp_path: Path, kind: str, numbers: Callable[[], itertools.count[int]], times: int) -> Counter[str]:
    """Break it at each of the numbers, until a round is over before the fault; return how often each was seen."""
    counted: Counter[str] = Counter()
    for nth in numbers():
        folder = tmp_path / "one"
        folder.mkdir()
        try:
            seen, told = await fail_at(folder, kind, nth, times)
        except BaseException as error:
            error.add_note(f"{kind} FIRST={nth}, {times} in a row")
            raise
        shutil.rmtree(folder)
        if not told:
            break
        counted[seen] += 1
    return counted


@pytest.mark.parametrize("kind", KINDS)
async def test_a_disk_that_fails_is_told_and_loses_nothing(tmp_path: Path, kind: str) -> None:
    counted = await fail_each(tmp_path, kind, lambda: itertools.count(3, STEPS[kind]), 1)
    print(kind, dict(counted))
    assert counted.total() > 0


@pytest.mark.parametrize("kind", ["full", "sync"])
async def test_a_disk_that_stays_broken_for_a_while(tmp_path: Path, kind: str) -> None:
    counted = await fail_each(tmp_path, kind, lambda: itertools.count(5, 2 * STEPS[kind]), LASTING)
    print(kind, dict(counted))
    assert counted["refused"] + counted["session"] > 0


class Short(Listener):
    """Gives less than a page of the database, while it is told to."""

    def __init__(self) -> None:
        self.on = False

    def read(self, path: Path, offset: int, size: int) -> int:
        return IOERR_SHORT_READ if self.on and path.suffix == ".db" and offset > 0 else OK


@pytest.mark.parametrize("looks", [False, True])
async def test_a_page_that_was_read_short_is_not_believed_for_ever(tmp_path: Path, looks: bool) -> None:
    def fill(tx: Tx) -> None:
        tx._connection.execute("CREATE TABLE big (a)")
        tx._connection.executemany("INSERT INTO big VALUES (?)", [("x" * 2000,)] * 200)

    def count(tx: Tx) -> tuple[int, int]:
        return tuple(tx._connection.execute("SELECT count(*), sum(length(a)) FROM big").fetchone())

    disk = Short()
    with listening(disk, tmp_path):
        before = Database(tmp_path / "a.db", clock=ManualClock(), probe=Probe())
        before.open()
        await before.write(fill)
        await before.close()
        db = Database(tmp_path / "a.db", clock=ManualClock(), probe=Probe())
        db.open()
        disk.on = True
        for ask in () if looks else (db.read, db.write, db.write):
            with pytest.raises(StorageFullError, match="disk fails"):
                await ask(count)
        with pytest.raises(StorageFullError, match="disk fails"):
            db.look(count)
        disk.on = False
        if looks:
            assert db.look(count) == (200, 400_000)
        assert await db.read(count) == await db.write(count) == (200, 400_000)
        await db.close()


async def test_a_log_whose_sync_failed_is_not_built_upon_by_the_next_process(tmp_path: Path) -> None:
    """The kernel shows the next process a log that is not on the disk: it must be written again first."""
    data_dir, restarted, dice = tmp_path / "data", tmp_path / "restarted", random.Random(7)
    disk = Disk()
    with recording(data_dir) as recorder:
        async with playing(data_dir, recorder.acknowledge) as play:
            await play.act(dice)
            recorder.faults = Fault("sync", 1, 1)
            with pytest.raises(Refused) as caught:
                await play.submit("whose sync fails")
            assert caught.value.answer.status == 507
            # A kill is the files as they are seen now, and the disk as it is now.
            shutil.copytree(data_dir, restarted, ignore=shutil.ignore_patterns("*-shm"))
            for op in list(recorder.ops):
                disk.do(op)
    with recording(restarted) as recorder:
        async with playing(restarted, recorder.acknowledge) as play:
            await play.submit("after it")
            cut_at = len(recorder.ops)
    for left, op in zip(range(cut_at, 0, -1), recorder.ops, strict=False):
        disk.do(op)
        if left % 4 == 1:  # the last one, too
            disk.cut("forgets", dice, tmp_path / f"cut{left}")
            await check(tmp_path / f"cut{left}", disk.promises)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("times", [1, LASTING])
@pytest.mark.parametrize("kind", KINDS)
async def test_every_write_sync_and_read_may_fail(tmp_path: Path, kind: str, times: int) -> None:
    begun = time.monotonic()
    counted = await fail_each(tmp_path, kind, lambda: itertools.count(int(os.environ.get("FIRST", "1"))), times)
    took = time.monotonic() - begun
    print(f"{kind} x {times}: each of {counted.total()} failed, {dict(counted)}, {took:.0f} s", flush=True)
