"""Bytes by content: `<data>/blobs/ab/<sha256>`. Written under a temporary name, synced, checked, then named."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from apothic.clock import Clock
from apothic.errors import InvalidRequestError, NotFoundError, PayloadTooLargeError, StorageFullError
from apothic.probe import Probe
from apothic.protocol.messages import BlobView
from apothic.store.db import Database

CHUNK = 1024 * 1024


class Blobs:
    """The blob store. Nothing is ever held whole in memory."""

    def __init__(self, root: Path, db: Database, clock: Clock, probe: Probe, limit: int) -> None:
        self._root = root
        self._db = db
        self._clock = clock
        self._probe = probe
        self._limit = limit

    def path(self, sha256: str) -> Path:
        """Return where the bytes of that hash are, or would be. Raises `InvalidRequestError` for what is no hash."""
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise InvalidRequestError("a blob is named by its SHA-256, 64 lower-case hexadecimal digits")
        return self._root / sha256[:2] / sha256

    async def put(self, sha256: str, chunks: AsyncIterator[bytes]) -> BlobView:
        """Store a stream under its hash; a second time is a no-op.

        Raises `InvalidRequestError` when the bytes are not those of the hash, `PayloadTooLargeError`,
        `StorageFullError`. A stream that breaks off leaves nothing behind.
        """
        target = self.path(sha256)
        temporary: Path | None = None
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".part-", dir=target.parent)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                size, seen = await self._receive(file.fileno(), chunks)
            if seen != sha256:
                raise InvalidRequestError(f"these bytes have the SHA-256 {seen}, not {sha256}")
            self._probe.reach("blob.before")
            await asyncio.to_thread(_name, temporary, target)
            self._probe.reach("blob.after")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageFullError(hint="free some space in the data directory and send it again") from error
            raise
        finally:
            if temporary is not None:
                _forget(temporary)
        await self._db.write(lambda tx: tx.run("insert_blob", sha256=sha256, size=size, now=self._clock.now()))
        return BlobView(sha256=sha256, size=size)

    async def _receive(self, file: int, chunks: AsyncIterator[bytes]) -> tuple[int, str]:
        size, digest = 0, hashlib.sha256()
        async for chunk in chunks:
            size += len(chunk)
            if size > self._limit:
                raise PayloadTooLargeError(size=size, limit=self._limit, what="a blob")
            # Hashing and writing a MiB takes 1 to 2 ms; in the loop it would delay every other request by that.
            await asyncio.to_thread(_take_in, file, digest, chunk)
        await asyncio.to_thread(os.fsync, file)
        return size, digest.hexdigest()

    def clear(self) -> None:
        """Remove what interrupted uploads have left behind. Before the first request only."""
        for part in self._root.glob("*/.part-*"):
            part.unlink(missing_ok=True)

    def look(self, sha256: str) -> BlobView:
        """Return what is stored under a hash. Raises `NotFoundError`."""
        try:
            return BlobView(sha256=sha256, size=self.path(sha256).stat().st_size)
        except FileNotFoundError:
            raise NotFoundError(f"there is no blob {sha256}", hint="PUT it first") from None

    async def chunks(self, sha256: str) -> AsyncIterator[bytes]:
        """Yield the bytes in pieces. Raises `NotFoundError` before the first."""
        self.look(sha256)
        with self.path(sha256).open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk


def _take_in(file: int, digest: hashlib._Hash, chunk: bytes) -> None:
    digest.update(chunk)
    view = memoryview(chunk)
    while view:
        view = view[os.write(file, view) :]


def _name(temporary: Path, target: Path) -> None:
    """Give the bytes their name, and make the name last."""
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _forget(temporary: Path) -> None:
    temporary.unlink(missing_ok=True)
