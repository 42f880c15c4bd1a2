"""Blobs that nothing names any more: noted, and deleted once that has been so for a while; files without a row."""

from __future__ import annotations

import asyncio
import json

from apothic.clock import Clock
from apothic.store.blobs import Blobs
from apothic.store.db import Database
from apothic.store.room import Room
from apothic.store.tx import Tx

# An upload comes before its submit, and a reader fetches an item after it was told of it. An hour is longer than either
# takes, at 2 GiB over a line of 5 Mbit/s.
GRACE_S = 3600.0
# Over the disk ceiling: long enough for what is on its way, short enough that a full directory is not full for long.
HASTE_S = 300.0
# One step: 500 blobs are looked at in 5 ms of a reader's time.
STEP_LOOKS, STEP_BLOBS = 500, 50
_FOLDERS = [f"{n:02x}" for n in range(256)]


class Collector:
    """Goes round all blobs and all their folders, a little at each step."""

    def __init__(self, db: Database, clock: Clock, blobs: Blobs, room: Room) -> None:
        self._db = db
        self._clock = clock
        self._blobs = blobs
        self._room = room
        self._after = ""
        self._folder = 0

    async def restart(self) -> None:
        """Begin a control plane's life: nobody could name anything in between, so every blob has its whole time.

        A power cut may bring back the row of a blob whose file was gone (`durability=fast`); it goes for good.
        """
        marked = [row[0] for row in await self._db.read(lambda tx: tx.all("all_marks"))]
        lost = [sha256 for sha256 in marked if not self._blobs.path(sha256).exists()]

        def write(tx: Tx) -> None:
            tx.run("unmark_all")
            for sha256 in lost:
                tx.run("delete_blob", sha256=sha256)

        await self._db.write(write)

    async def step(self) -> bool:
        """Delete what is due; when that is little, look at some blobs and into one folder. Tell whether more is due.

        It writes only when there is something to write.
        """
        before = self._clock.now() - (HASTE_S if self._room.haste else GRACE_S)
        due = await self._db.read(lambda tx: tx.all("due_blobs", before=before, limit=STEP_BLOBS))
        went = await asyncio.gather(*(self._blobs.collect(row[0], before) for row in due))
        self._room.collected += sum(went)
        if len(due) == STEP_BLOBS:
            return True
        await self._look()
        await self.sweep_folder(_FOLDERS[self._folder])
        self._folder = (self._folder + 1) % len(_FOLDERS)
        if self._folder == 0:
            await asyncio.to_thread(self._blobs.clear_offers, self._clock.now() - GRACE_S)
        return False

    async def _look(self) -> None:
        after = self._after
        rows = await self._db.read(lambda tx: tx.all("blobs_in_range", after=after, limit=STEP_LOOKS))
        self._after = rows[-1]["sha256"] if len(rows) == STEP_LOOKS else ""
        idle = json.dumps([row["sha256"] for row in rows if row["idle"]])
        if idle != "[]":
            now = self._clock.now()
            await self._db.write(lambda tx: tx.run("mark_blobs", hashes=idle, now=now))

    async def sweep_folder(self, folder: str) -> None:
        """Delete the files of one folder that have no row: a crash left them, between a row and its file."""
        names = await asyncio.to_thread(self._blobs.names, folder)
        for first in range(0, len(names), STEP_LOOKS):
            part = names[first : first + STEP_LOOKS]
            for sha256 in set(part) - await self._known(part):
                await self._blobs.discard(sha256)

    async def _known(self, names: list[str]) -> set[str]:
        hashes = json.dumps(names)
        return await self._db.read(lambda tx: {row[0] for row in tx.all("known_blobs", hashes=hashes)})
