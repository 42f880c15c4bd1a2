"""The store by itself as the ground of a job."""

from __future__ import annotations

from typing import Any

from storerig import Store
from streamplay import Ground


class StoreGround(Ground):
    """A store without a control plane."""

    async def _open(self) -> Any:
        store = Store(self.folder / "apothic.db", self.clock)
        store.db.open()
        await store.fleet.restart()
        await store.holds.restart()
        return store

    async def close(self) -> None:
        await self.parts.db.close()
