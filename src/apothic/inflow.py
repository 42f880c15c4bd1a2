"""Bytes that come in on an event loop, on their way into a file: counted, hashed and written a MiB at a time."""

from __future__ import annotations

import asyncio
import hashlib
import os

# What one turn of a thread takes. Connections bring 64 to 256 KiB at once, and a turn costs 0.1 ms, and up to 5 more
# while the loop is at work: each time it lets go of the interpreter it has to wait for it again.
PIECE = 1024 * 1024


class Inflow:
    """Owns a file descriptor. While a thread hashes and writes one piece, the next one comes in: two are in memory."""

    def __init__(self, file: int) -> None:
        self.size = 0
        self._file = file
        self._digest = hashlib.sha256()
        self._gathered: list[bytes] = []
        self._held = 0
        self._work: asyncio.Future[None] | None = None

    async def take(self, chunk: bytes) -> None:
        """Take what has come. Raises `OSError`, also for what came before."""
        self.size += len(chunk)
        self._held += len(chunk)
        self._gathered.append(chunk)
        if self._held >= PIECE:
            await self._put_in(sync=False)

    async def finish(self, *, sync: bool) -> str:
        """Return the hash of all bytes, which are in the file by then; with `sync` on disk. Raises `OSError`."""
        await self._put_in(sync=sync)
        await self._settle()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file, once no thread is at work at it: its number would be another file's by then."""
        if self._work is None or self._work.done():
            os.close(self._file)
        else:
            self._work.add_done_callback(self._closed_behind)

    def _closed_behind(self, work: asyncio.Future[None]) -> None:
        os.close(self._file)
        if not work.cancelled():
            work.exception()  # nobody waits for it any more

    async def _put_in(self, *, sync: bool) -> None:
        await self._settle()
        gathered, self._gathered, self._held = self._gathered, [], 0
        self._work = asyncio.get_running_loop().run_in_executor(None, _put_in, self._file, self._digest, gathered, sync)

    async def _settle(self) -> None:
        if self._work is not None:
            await asyncio.shield(self._work)


def _put_in(file: int, digest: hashlib._Hash, pieces: list[bytes], sync: bool) -> None:
    piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    digest.update(piece)
    view = memoryview(piece)
    while view:
        view = view[os.write(file, view) :]
    if sync:
        os.fsync(file)
