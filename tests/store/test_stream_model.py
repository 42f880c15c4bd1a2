"""Random histories of a job, read in pages from the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storerig import Store
from streammachine import play
from streamplay import Ground
from streamreaders import Pages


class StoreGround(Ground):
    """The store by itself."""

    async def _open(self) -> Any:
        store = Store(self.folder / "apothic.db", self.clock)
        store.db.open()
        await store.fleet.restart()
        await store.holds.restart()
        return store

    async def close(self) -> None:
        await self.parts.db.close()


def test_every_reader_is_told_all_that_was_kept_and_of_all_that_was_lost(tmp_path: Path) -> None:
    play(tmp_path, StoreGround, (Pages,), named="1", first=0, last=500)
