"""A full disk: refused by name, nothing acknowledged is lost, and it goes on once there is space."""

from __future__ import annotations

from pathlib import Path

import pytest
from storerig import DONE, Store, broken, lines

from apothic.errors import StorageFullError
from apothic.store.tx import Tx


async def limit_pages(store: Store, pages: int) -> int:
    """Let the file grow to so many pages and no further; return how many it has."""

    def write(tx: Tx) -> int:
        tx._connection.execute(f"PRAGMA max_page_count = {pages}")
        return int(tx._connection.execute("PRAGMA page_count").fetchone()[0])

    return await store.db.write(write)


async def fill(store: Store, function: str) -> list[str]:
    """Submit until the disk is full; return what was acknowledged."""
    taken: list[str] = []
    with pytest.raises(StorageFullError, match="cannot take more") as caught:
        for _ in range(1000):
            taken.append(await store.submit(function, b"x" * 20_000))
    assert "free some space" in caught.value.hint
    return taken


async def test_a_full_disk_is_named_and_nothing_acknowledged_is_lost(store: Store) -> None:
    function = await store.live()
    await limit_pages(store, await limit_pages(store, 1 << 30) + 100)
    taken = await fill(store, function)
    assert len(taken) > 5
    assert broken(store.path) == {}
    assert [job for (job,) in await store.rows("SELECT id FROM jobs ORDER BY seq")] == taken
    await limit_pages(store, 1 << 30)
    taken.append(await store.submit(function, b"x" * 20_000))
    assert await store.rows("SELECT count(*) FROM jobs") == [(len(taken),)]


async def test_a_report_that_found_no_room_comes_again(store: Store) -> None:
    function = await store.live()
    job = await store.submit(function)
    (given,) = store.taken()
    await limit_pages(store, await limit_pages(store, 1 << 30) + 60)
    await fill(store, function)
    with pytest.raises(StorageFullError):
        await store.report(given, began=True, outcome=DONE, said=lines("y" * 60_000))
    assert await store.status(job) == "starting"
    await limit_pages(store, 1 << 30)
    assert await store.report(given, began=True, outcome=DONE, said=lines("y" * 60_000)) == []
    assert await store.status(job) == "succeeded"


async def test_a_store_that_was_full_opens_clean(store: Store, tmp_path: Path) -> None:
    function = await store.live()
    await limit_pages(store, await limit_pages(store, 1 << 30) + 50)
    taken = await fill(store, function)
    await store.db.close()
    again = Store(store.path)
    again.db.open()
    await again.fleet.restart()
    await again.hello()
    for job in taken:
        assert await again.status(job) in ("queued", "starting")
    assert await again.submit(function)
    await again.db.close()
    assert broken(store.path) == {}
