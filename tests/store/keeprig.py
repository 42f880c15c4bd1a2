"""A store with blobs, and with what deletes from it, step by step."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

from msgspec.structs import replace
from storerig import DONE, Store, new_job, spec

from apothic.probe import Probe
from apothic.protocol.messages import AppManifest, SourceFile
from apothic.protocol.session import Assignment, ContainerNews, Item, Outcome, Packed
from apothic.store.blobs import Astray, Blobs, missing_files
from apothic.store.collector import Collector
from apothic.store.retention import Retention

DAY = 86_400.0


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def referred(data: bytes) -> Packed:
    return Packed(encoding="pickle", sha256=sha(data), size=len(data))


class Keeper:
    """What `ControlPlane` puts around the store: blobs, retention for a week, the collector."""

    def __init__(self, store: Store, root: Path, ceiling: int | None = None) -> None:
        self.store = store
        self.root = root
        self.probe = Probe()
        self.room = store.jobs.room
        self.room.ceiling = ceiling
        self.blobs = Blobs(root, store.db, store.clock, self.probe, 1 << 30)
        self.retention = Retention(store.db, store.clock, store.rung.append, self.room, 7 * DAY)
        self.collector = Collector(store.db, store.clock, self.blobs, self.room)

    async def start(self, *, window: int = 10_000, name: str = "f") -> str:
        """Deploy one function with room for many jobs; return its id."""
        return await self.store.live("app", spec(name, max_containers=4, concurrent_requests=50, stream_window=window))

    async def take(
        self, function: str, packed: Packed | None = None, *, key: str | None = None
    ) -> tuple[str, Assignment]:
        """Submit a job and return the work that came of it."""
        new = new_job(function, key=key)
        if packed is not None:
            new = replace(new, input=packed)
        job = await self.store.jobs.submit(new)
        while True:
            for given in self.store.taken():
                if given.job == job:
                    return job, given
            for start in self.store.started():
                await self.store.news("agt", ContainerNews(id=start.container, state="ready", pid=7))

    async def run(self, function: str, *texts: str, key: str | None = None) -> str:
        """Submit a job and let it succeed; return its id."""
        job, given = await self.take(function, key=key)
        await self.store.finish(given, DONE, *texts)
        return job

    async def put(self, data: bytes) -> str:
        async def chunks() -> AsyncIterator[bytes]:
            yield data

        return (await self.blobs.put(sha(data), chunks())).sha256

    async def deploy_file(self, app: str, data: bytes) -> None:
        file = SourceFile(path="a.py", sha256=sha(data), size=len(data))
        await self.store.catalog.deploy(AppManifest(app=app, functions=[], files=[file]))

    async def pass_time(self, seconds: float) -> int:
        """Let time pass, then do all that is due; return how many steps it took."""
        await self.store.clock.advance(seconds)
        steps = 1
        while any([await self.retention.step(), await self.collector.step()]):
            steps += 1
            assert steps < 2_000
        return steps

    async def whole_round(self) -> None:
        """Let the collector come by every blob and every folder once."""
        for _ in range(256):
            await self.collector.step()

    def files(self) -> set[str]:
        return {path.name for path in self.root.rglob("*") if path.is_file()}

    async def rows(self) -> set[str]:
        return {row for (row,) in await self.store.rows("SELECT sha256 FROM blobs")}

    async def astray(self) -> Astray:
        def look() -> Astray:
            connection = sqlite3.connect(self.store.path)
            try:
                return missing_files(connection, self.root)
            finally:
                connection.close()

        return await asyncio.to_thread(look)


def ended(data: bytes) -> Outcome:
    """Return a success whose value is in a blob."""
    return Outcome(value=referred(data), ran_s=60.0)


def large_item(index: int, data: bytes) -> Item:
    return Item(index=index, value=referred(data))
