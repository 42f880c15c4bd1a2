"""Bytes by content: `<data>/blobs/ab/<sha256>`. Written under a temporary name, synced, checked, then named."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import sqlite3
import stat
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from apothic import nearby
from apothic.clock import Clock
from apothic.errors import InvalidRequestError, NotFoundError, PayloadTooLargeError, StorageFullError
from apothic.inflow import PIECE, Inflow
from apothic.probe import Probe
from apothic.protocol.messages import BlobView
from apothic.store import folders
from apothic.store.db import Database
from apothic.store.tx import Tx

T = TypeVar("T")
# What a disk says that is full or fails.
FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Offer(NamedTuple):
    """A file that somebody with access to our directory has put there, by the name it was given."""

    name: str


class Blobs:
    """The blob store. Nothing is ever held whole in memory."""

    def __init__(self, root: Path, db: Database, clock: Clock, probe: Probe, limit: int) -> None:
        self._root = root
        self._db = db
        self._clock = clock
        self._probe = probe
        self._limit = limit
        # A name and its row come together, and go together: by the first two digits, so that uploads share commits.
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def path(self, sha256: str) -> Path:
        """Return where the bytes of that hash are, or would be. Raises `InvalidRequestError` for what is no hash."""
        if not is_hash(sha256):
            raise InvalidRequestError("a blob is named by its SHA-256, 64 lower-case hexadecimal digits")
        return self._root / sha256[:2] / sha256

    async def put(self, sha256: str, source: AsyncIterator[bytes] | Offer) -> BlobView:
        """Store a stream, or a file that was put into our directory, under its hash; a second time is a no-op.

        Raises `InvalidRequestError` when the bytes are not those of the hash, `NotFoundError` when there is no such
        offer, `PayloadTooLargeError`, `StorageFullError`. A stream that breaks off leaves nothing behind.
        """
        target = self.path(sha256)
        temporary: Path | None = None
        try:
            folders.make(target.parent)
            self._probe.reach("blob.write.before")
            if isinstance(source, Offer):
                temporary, size = self._offered(source)
                seen = await self._examine(temporary, size)
            else:
                handle, name = tempfile.mkstemp(prefix=".part-", dir=target.parent)
                temporary = Path(name)
                size, seen = await self._receive(handle, source)
            self._probe.reach("blob.write.after")
            if seen != sha256:
                raise InvalidRequestError(f"these bytes have the SHA-256 {seen}, not {sha256}")
            async with self._locks[sha256[:2]]:
                self._probe.reach("blob.before")
                await asyncio.to_thread(_name, temporary, target)
                self._probe.reach("blob.after")
                await self._db.write(lambda tx: self._note(tx, sha256, size))
        except OSError as error:
            if error.errno in FAULTS:
                raise StorageFullError(
                    f"the data directory cannot take this: {error.strerror}",
                    hint="free some space in the data directory, see that its disk is in order, and send it again",
                ) from error
            raise
        finally:
            if temporary is not None:
                _forget(temporary)
        return BlobView(sha256=sha256, size=size)

    async def _receive(self, file: int, chunks: AsyncIterator[bytes]) -> tuple[int, str]:
        with closing(Inflow(file)) as inflow:
            async for chunk in chunks:
                self._check_size(inflow.size + len(chunk))
                await inflow.take(chunk)
            return inflow.size, await inflow.finish(sync=True)

    def _offered(self, offer: Offer) -> tuple[Path, int]:
        place = nearby.offer(self._root, offer.name)
        try:
            about = place.lstat()
        except FileNotFoundError:
            raise NotFoundError("there is no such offer", hint="send the bytes instead") from None
        # A link could lead anywhere, and a pipe would hold up who opens it.
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
            raise InvalidRequestError("an offer is a plain file of ours")
        return place, about.st_size

    async def _examine(self, offered: Path, size: int) -> str:
        """Hash an offer while it is synced: both take the same time, and neither needs the interpreter."""
        self._check_size(size)
        seen, _ = await asyncio.gather(asyncio.to_thread(_hash, offered), asyncio.to_thread(_sync, offered))
        return seen

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise PayloadTooLargeError(size=size, limit=self._limit, what="a blob")

    def _note(self, tx: Tx, sha256: str, size: int) -> None:
        tx.run("insert_blob", sha256=sha256, size=size, now=self._clock.now())
        tx.run("unmark_blobs", hashes=json.dumps([sha256]))

    def clear(self) -> None:
        """Remove what interrupted uploads have left behind, and open for offers. Before the first request only."""
        for part in self._root.glob("*/.part-*"):
            with suppress(OSError):  # a directory, say, which is none of ours
                part.unlink()
        folders.make(nearby.offers(self._root))

    def clear_offers(self, before: float) -> None:
        """Remove offers of before a time: whoever was to be told what became of them is gone."""
        for part in nearby.offers(self._root).glob("*"):
            with suppress(OSError):
                if part.lstat().st_mtime < before:
                    part.unlink()

    def look(self, sha256: str) -> BlobView:
        """Return what is stored under a hash. Raises `NotFoundError`."""
        try:
            return BlobView(sha256=sha256, size=self.path(sha256).stat().st_size)
        except FileNotFoundError:
            raise NotFoundError(f"there is no blob {sha256}", hint="PUT it first") from None

    async def touch(self, sha256: str) -> BlobView:
        """Return what is stored under a hash, for one who is about to name it: it stays for a while.

        Raises `NotFoundError`.
        """
        view, hashes = self.look(sha256), json.dumps([sha256])

        def write(tx: Tx) -> None:
            tx.run("unmark_blobs", hashes=hashes)
            known(tx)

        def known(tx: Tx) -> None:
            if not tx.all("known_blobs", hashes=hashes):
                raise NotFoundError(f"there is no blob {sha256}", hint="PUT it first")

        def marked(tx: Tx) -> bool:
            known(tx)
            return bool(tx.all("marked_blobs", hashes=hashes))

        if await self._db.read(marked):
            await self._db.write(write)
        return view

    # --- away -----------------------------------------------------------------------------------------------------

    async def collect(self, sha256: str, before: float) -> bool:
        """Delete what nothing has named since `before`: its row, then its file. Tell whether it was so.

        A crash in between leaves a file without a row, which `discard` takes away; a row never stands without its file.
        """

        def drop(tx: Tx) -> bool:
            return tx.run("take_mark", sha256=sha256, before=before) == 1 and tx.run("delete_blob", sha256=sha256) == 1

        async def deed() -> bool:
            async with self._locks[sha256[:2]]:
                went = await self._db.write(drop)
                if went:
                    self._probe.reach("collect.before")
                    await asyncio.to_thread(self.path(sha256).unlink, missing_ok=True)
                    self._probe.reach("collect.after")
                return went

        return await _whole(deed())

    async def discard(self, sha256: str) -> None:
        """Delete a file that has no row."""
        hashes = json.dumps([sha256])

        async def deed() -> None:
            async with self._locks[sha256[:2]]:
                # As a write: behind the row of an upload whose client has left, and which is still on its way.
                if not await self._db.write(lambda tx: tx.all("known_blobs", hashes=hashes)):
                    await asyncio.to_thread(self.path(sha256).unlink, missing_ok=True)

        await _whole(deed())

    def names(self, folder: str) -> list[str]:
        """Return the hashes that have a file in one of the 256 folders."""
        return _names(self._root / folder)

    async def chunks(self, sha256: str) -> AsyncIterator[bytes]:
        """Yield the bytes in pieces. Raises `NotFoundError` before the first."""
        self.look(sha256)
        with self.path(sha256).open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, PIECE):
                yield chunk


def is_hash(text: str) -> bool:
    """Tell whether this can be the name of a blob."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _hash(path: Path) -> str:
    digest, piece = hashlib.sha256(), memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(piece):
            digest.update(piece[:size])
    return digest.hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _name(temporary: Path, target: Path) -> None:
    """Give the bytes their name, and make the name last."""
    temporary.replace(target)
    folders.sync(target.parent)


def _forget(temporary: Path) -> None:
    temporary.unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [path.name for path in folder.iterdir() if path.name[:2] == folder.name and is_hash(path.name)]


async def _whole(deed: Coroutine[Any, Any, T]) -> T:
    """Do it to its end, also when whoever asked is cancelled: its lock is held for as long as a thread is at work."""
    return await asyncio.shield(asyncio.ensure_future(deed))


class Astray(NamedTuple):
    """Rows without a file of their size, and files without a row, by hash."""

    rows: list[str]
    files: list[str]


def missing_files(connection: sqlite3.Connection, root: Path) -> Astray:
    """Compare the table of blobs with the folder. It only reads, and may run beside a server.

    A row without its file is damage, unless it only waits to be collected. A file without a row is what a crash left,
    or an upload that is on its way; the server takes it away by itself.
    """
    files = {name for folder in root.glob("[0-9a-f][0-9a-f]") for name in _names(folder)}
    rows = connection.execute(
        "SELECT sha256, size, since IS NOT NULL FROM blobs LEFT JOIN unwanted_blobs USING (sha256)"
    )
    lost: list[str] = []
    for sha256, size, unwanted in rows:
        try:
            whole = (root / sha256[:2] / sha256).stat().st_size == size
        except FileNotFoundError:
            whole = bool(unwanted)
        if not whole:
            lost.append(sha256)
        files.discard(sha256)
    return Astray(lost, sorted(files))
