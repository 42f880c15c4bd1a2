"""Blobs that nothing names: noted, given an hour, deleted; and never a row without its file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
from pathlib import Path

import pytest
from keeprig import DAY, Keeper, ended, large_item, referred, sha
from storerig import DONE, Store, broken

from apothic import nearby
from apothic.errors import InvalidRequestError, NotFoundError
from apothic.protocol.messages import AppManifest, SourceFile
from apothic.protocol.session import Assignment
from apothic.store import collector
from apothic.store.blobs import Astray
from apothic.store.catalog import MissingBlobs
from apothic.store.collector import GRACE_S, HASTE_S

ONE, TWO, THREE = b"one", b"two", b"three"


@pytest.fixture
def keeper(store: Store, tmp_path: Path) -> Keeper:
    return Keeper(store, tmp_path / "blobs")


async def sound(keeper: Keeper) -> None:
    """Assert that rows and files are the same, and no rule is broken."""
    assert await keeper.astray() == Astray([], [])
    assert keeper.files() == await keeper.rows()
    assert broken(keeper.store.path) == {}


async def test_what_nobody_ever_named_goes_after_an_hour(store: Store, keeper: Keeper) -> None:
    await keeper.put(ONE)
    await keeper.pass_time(0)
    await keeper.pass_time(GRACE_S - 1)
    assert await keeper.rows() == {sha(ONE)}
    await keeper.pass_time(1)
    assert (await keeper.rows(), keeper.files(), keeper.room.collected) == (set(), set(), 1)
    assert await store.rows("SELECT bytes FROM blob_total") == [(0,)]
    await sound(keeper)


async def test_what_is_named_stays_as_long_as_its_name(store: Store, keeper: Keeper) -> None:
    function = await keeper.start()
    for data in (ONE, TWO, THREE):
        await keeper.put(data)
    _, given = await keeper.take(function, referred(ONE))
    await keeper.deploy_file("other", THREE)
    await store.report(given, began=True, said=[large_item(0, TWO)])
    await store.report(given, seq=1, outcome=ended(TWO))
    await keeper.pass_time(6 * DAY)
    await keeper.pass_time(GRACE_S)
    assert keeper.files() == {sha(data) for data in (ONE, TWO, THREE)}
    await keeper.pass_time(1 * DAY)  # the job goes
    assert keeper.files() == {sha(data) for data in (ONE, TWO, THREE)}
    await keeper.pass_time(GRACE_S)
    assert keeper.files() == {sha(THREE)}
    await sound(keeper)


async def test_a_trimmed_item_lets_go_of_its_blob(store: Store, keeper: Keeper) -> None:
    function = await keeper.start(window=1)
    _, given = await keeper.take(function)
    await keeper.put(ONE)
    await keeper.put(TWO)
    await store.report(given, began=True, said=[large_item(0, ONE)])
    await store.report(given, seq=1, said=[large_item(1, TWO)])
    await keeper.pass_time(0)
    await keeper.pass_time(GRACE_S)
    assert keeper.files() == {sha(TWO)}
    await sound(keeper)


@pytest.mark.parametrize("how", ["submit", "result", "item", "deploy", "put", "touch", "missing"])
async def test_wanted_again_it_has_its_whole_time(store: Store, keeper: Keeper, how: str) -> None:
    function = await keeper.start()
    _, given = await keeper.take(function)
    await keeper.put(ONE)
    await keeper.pass_time(0)
    assert await store.rows("SELECT count(*) FROM unwanted_blobs") == [(1,)]
    await keeper.pass_time(GRACE_S - 1)
    manifest = AppManifest(app="o", functions=[], files=[SourceFile(path="a.py", sha256=sha(ONE), size=3)])
    match how:
        case "submit":
            await keeper.take(function, referred(ONE))
        case "result":
            await store.report(given, began=True, outcome=ended(ONE))
        case "item":
            await store.report(given, began=True, said=[large_item(0, ONE)])
        case "deploy":
            await store.catalog.deploy(manifest)
        case "put":
            await keeper.put(ONE)
        case "touch":
            await keeper.blobs.touch(sha(ONE))
        case "missing":
            assert await store.catalog.missing_blobs(manifest) == []
    assert await store.rows("SELECT count(*) FROM unwanted_blobs") == [(0,)]
    await keeper.pass_time(GRACE_S - 1)
    assert keeper.files() == {sha(ONE)}
    await sound(keeper)


async def test_a_new_control_plane_gives_every_blob_its_whole_time(store: Store, keeper: Keeper) -> None:
    await keeper.put(ONE)
    await keeper.pass_time(0)
    await store.clock.advance(GRACE_S * 3)  # nobody could name it in between
    await keeper.collector.restart()
    await keeper.pass_time(0)
    await keeper.pass_time(GRACE_S - 1)
    assert keeper.files() == {sha(ONE)}
    await keeper.pass_time(1)
    assert keeper.files() == set()


async def test_it_goes_round_in_small_steps(store: Store, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "STEP_LOOKS", 3)
    monkeypatch.setattr(collector, "STEP_BLOBS", 2)
    for n in range(10):
        await keeper.put(b"%d" % n)
    marks = []
    for _ in range(4):
        await keeper.collector.step()
        marks += await store.rows("SELECT count(*) FROM unwanted_blobs")
    assert marks == [(3,), (6,), (9,), (10,)]
    await store.clock.advance(GRACE_S)
    left = []
    while await keeper.collector.step():
        left.append(len(keeper.files()))
    assert left == [8, 6, 4, 2, 0]
    await sound(keeper)


async def test_an_idle_step_writes_nothing(store: Store, keeper: Keeper) -> None:
    await keeper.put(ONE)
    await keeper.pass_time(0)
    commits = store.db.commits
    await keeper.whole_round()
    assert store.db.commits == commits


async def test_over_the_ceiling_blobs_wait_less_and_no_job_goes_for_what_they_hold(
    store: Store, keeper: Keeper
) -> None:
    function = await keeper.start()
    large = bytes(4_000_000)
    await keeper.put(large)
    _, given = await keeper.take(function)
    await store.finish(given, ended(large))
    await store.clock.advance(1)
    young = [await keeper.run(function) for _ in range(3)]
    await keeper.retention.step()
    keeper.room.ceiling = keeper.room.held - 1_000_000
    await keeper.pass_time(0)
    assert {job for (job,) in await store.rows("SELECT id FROM jobs")} == set(young)
    assert keeper.room.full and keeper.files() == {sha(large)}  # it is still held
    await keeper.pass_time(HASTE_S)
    await keeper.pass_time(0)
    assert keeper.files() == set() and not keeper.room.full and not keeper.room.haste
    assert {job for (job,) in await store.rows("SELECT id FROM jobs")} == set(young)


# --- crashes and races --------------------------------------------------------------------------------------------


async def test_a_crash_between_row_and_file_leaves_a_file_that_is_found(store: Store, keeper: Keeper) -> None:
    await keeper.put(ONE)
    await keeper.pass_time(0)
    keeper.probe.on("collect.before", crash)
    await store.clock.advance(GRACE_S)
    with pytest.raises(Crash):
        await keeper.collector.step()
    assert (await keeper.rows(), keeper.files()) == (set(), {sha(ONE)})
    assert await keeper.astray() == Astray([], [sha(ONE)])
    keeper.probe.clear()
    await keeper.collector.restart()
    await keeper.whole_round()
    await sound(keeper)
    assert keeper.files() == set()


async def test_files_that_are_no_blobs_are_left_alone(store: Store, keeper: Keeper) -> None:
    await keeper.put(ONE)
    folder = keeper.root / sha(ONE)[:2]
    for name in ("notes.txt", ".part-x", sha(ONE)[:2] + "Z" * 62):
        (folder / name).write_text("mine")
    await keeper.whole_round()
    assert len(keeper.files()) == 4


async def test_a_row_that_came_back_without_its_file_goes_at_the_start(store: Store, keeper: Keeper) -> None:
    """As after a power cut with `durability=fast`: the file's end lasted, the row's did not."""
    await keeper.put(ONE)
    await keeper.put(TWO)
    await keeper.pass_time(0)
    keeper.blobs.path(sha(ONE)).unlink()
    await keeper.collector.restart()
    assert await keeper.rows() == {sha(TWO)}
    await sound(keeper)


async def test_an_upload_that_meets_the_deletion_is_whole(store: Store, keeper: Keeper) -> None:
    for _ in range(30):
        await keeper.put(ONE)
        await keeper.pass_time(0)
        await store.clock.advance(GRACE_S)
        before = store.clock.now() - GRACE_S
        await asyncio.gather(
            keeper.blobs.collect(sha(ONE), before), keeper.put(ONE), keeper.blobs.collect(sha(ONE), before),
            keeper.collector.sweep_folder(sha(ONE)[:2]),
        )  # fmt: skip
        assert await keeper.rows() == keeper.files() == {sha(ONE)}
    await sound(keeper)


@pytest.mark.parametrize("pause", [0, 1, 2, 3, 5, 8, 13])
async def test_who_gives_up_in_the_middle_leaves_it_sound(store: Store, keeper: Keeper, pause: int) -> None:
    async def soon(task: asyncio.Task[object]) -> None:
        for _ in range(pause):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

    for n in range(10):
        data = b"%d" % n
        await soon(asyncio.create_task(keeper.put(data)))
        await keeper.collector.sweep_folder(sha(data)[:2])
        await keeper.put(data)
        await store.db.write(lambda tx, name=sha(data): tx.run("mark_blobs", hashes=f'["{name}"]', now=0.0))
        await soon(asyncio.create_task(keeper.blobs.collect(sha(data), 1.0)))
        await keeper.put(data)
        assert keeper.blobs.path(sha(data)).read_bytes() == data
    assert (await keeper.astray()).rows == []
    assert len(await keeper.rows()) == 10


async def test_a_missing_blob_is_said_not_a_mistake_of_the_server(store: Store, keeper: Keeper) -> None:
    function = await keeper.start()
    await keeper.put(ONE)
    await keeper.pass_time(0)
    await keeper.pass_time(GRACE_S)
    with pytest.raises(MissingBlobs) as caught:
        await keeper.deploy_file("other", ONE)
    assert caught.value.hashes == [sha(ONE)]
    with pytest.raises(InvalidRequestError, match="is not here"):
        await keeper.take(function, referred(ONE))
    with pytest.raises(NotFoundError):
        await keeper.blobs.touch(sha(ONE))


async def test_what_is_missing_is_found(store: Store, keeper: Keeper) -> None:
    for data in (ONE, TWO, THREE):
        await keeper.put(data)
    keeper.blobs.path(sha(ONE)).unlink()
    keeper.blobs.path(sha(THREE)).write_bytes(b"cut")
    stray = keeper.root / "ab" / ("ab" + "0" * 62)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x")
    rows, files = await keeper.astray()
    assert (set(rows), files) == ({sha(ONE), sha(THREE)}, [stray.name])


# --- random histories ---------------------------------------------------------------------------------------------


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


async def history(store: Store, keeper: Keeper, seed: str, moves: int = 120) -> None:
    """Let anything happen; no name is ever without its row, and no row without its file."""
    dice = random.Random(seed)
    function = await keeper.start(window=3)
    pool = [b"%d" % n for n in range(8)]
    open_now: list[tuple[Assignment, int, int]] = []
    for _ in range(moves):
        data = dice.choice(pool)
        here = sha(data) in await keeper.rows()
        match dice.choice(
            ["put", "submit", "item", "end", "deploy", "time", "step", "step", "touch", "crash", "start"]
        ):
            case "put":
                await keeper.put(data)
            case "submit" if here:
                open_now.append(((await keeper.take(function, referred(data)))[1], 0, 0))
            case "item" if open_now:
                given, seq, index = open_now.pop()
                await keeper.put(data)
                await store.report(given, seq=seq, began=True, said=[large_item(index, data)])
                open_now.append((given, seq + 1, index + 1))
            case "end" if open_now:
                given, seq, _ = open_now.pop(dice.randrange(len(open_now)))
                await keeper.put(data)
                await store.report(given, seq=seq, began=True, outcome=dice.choice([DONE, ended(data)]))
            case "deploy" if here:
                await keeper.deploy_file(f"app{dice.randrange(2)}", data)
            case "time":
                await store.clock.advance(dice.choice([1.0, GRACE_S / 2, GRACE_S, 2 * DAY]))
            case "step":
                await keeper.retention.step()
                await keeper.collector.step()
            case "touch" if here:
                await keeper.blobs.touch(sha(data))
            case "crash":
                keeper.probe.on("collect.before", crash)
                with contextlib.suppress(Crash):
                    await keeper.collector.step()
                keeper.probe.clear()
            case "start":
                await keeper.collector.restart()
        wanted = {row for (row,) in await store.rows("SELECT DISTINCT sha256 FROM wanted_blobs")}
        assert wanted <= await keeper.rows() <= keeper.files()
    for given, seq, _ in open_now:
        await store.report(given, seq=seq, began=True, outcome=DONE)
    await keeper.pass_time(7 * DAY)
    await keeper.pass_time(GRACE_S)
    await keeper.whole_round()
    deployed = {row for (row,) in await store.rows("SELECT DISTINCT sha256 FROM deployment_blobs")}
    assert keeper.files() == await keeper.rows() == deployed
    await sound(keeper)


@pytest.mark.parametrize("seed", range(5))
async def test_files_are_rows_and_rows_are_wanted_or_young(store: Store, keeper: Keeper, seed: int) -> None:
    await history(store, keeper, str(seed))


@pytest.mark.soak
async def test_many_histories(tmp_path: Path) -> None:
    """In full; `SEED` begins other histories, `ROUND` and `ROUNDS` say which of them."""
    seed = os.environ.get("SEED", "1")
    first, last = int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "2000"))
    for number in range(first, last):
        folder = tmp_path / str(number)
        folder.mkdir()
        store = Store(folder / "apothic.db")
        store.db.open()
        await store.hello()
        await history(store, Keeper(store, folder / "blobs"), f"{seed}/{number}")
        await store.db.close()
        shutil.rmtree(folder)
        print(f"{number + 1:,} of {last:,} histories", flush=True)


async def test_an_offer_that_nobody_came_back_for_goes_after_an_hour(store: Store, keeper: Keeper) -> None:
    keeper.blobs.clear()
    old, new = (nearby.offer(keeper.root, name * 32) for name in "01")
    for offer, age in ((old, GRACE_S + 1), (new, 0)):
        offer.write_bytes(b"offered")
        os.utime(offer, times=(store.clock.now() - age,) * 2)
    for _ in range(256):  # once round all folders
        await keeper.collector.step()
    assert not old.exists()
    assert new.exists()
