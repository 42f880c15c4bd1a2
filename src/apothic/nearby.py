"""The blobs of a server whose data directory is open to the asker: read where they lie, and handed over as files.

It saves the way through two sockets, half the time of a large value. Nothing is opened that was closed: whoever can
write below `<data>/blobs` could change any blob. The server adopts what it is offered once it has hashed it itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path

from apothic.errors import InvalidRequestError
from apothic.inflow import PIECE

HEADER = "apothic-offer"  # of a PUT without a body: the name of the file that has it
_FOLDER = "offers"
_PREFIX = ".part-"  # of whatever is no blob yet
_NAME = re.compile(r"[0-9a-f]{32}")
_MOST = 1 << 30  # that the kernel is asked to copy at once


def offers(blobs: Path) -> Path:
    """Return the directory of offers below that of the blobs; the server makes it."""
    return blobs / _FOLDER


def offer(blobs: Path, name: str) -> Path:
    """Return where an offer lies. Raises `InvalidRequestError` for what is no name of one."""
    if _NAME.fullmatch(name) is None:
        raise InvalidRequestError(f"{HEADER} is 32 hexadecimal digits, the name of a file in the data directory")
    return offers(blobs) / f"{_PREFIX}{name}"


class Nearby:
    """The directory of a server's blobs, from outside.

    With `links`, a blob is fetched as one more name for it, which only who never writes there may have: who runs the
    code of others takes copies.
    """

    def __init__(self, blobs: Path, *, links: bool = False) -> None:
        self._blobs = blobs
        self._links = links

    def has(self, sha256: str) -> bool:
        """Tell whether a blob seems to be there, for nothing; the server alone knows."""
        return self._place(sha256).exists()

    async def fetch(self, sha256: str, dest: Path) -> bool:
        """Make the new file `dest` of a blob, as a whole or not at all; tell whether it was found.

        It is not hashed again: it was when it was stored.
        """
        if self._links:
            with contextlib.suppress(OSError):
                os.link(self._place(sha256), dest)
                return True
        try:
            there = FileIO(self._place(sha256))
        except OSError:
            return False
        part = dest.with_name(f"{dest.name}{_PREFIX}{secrets.token_hex(4)}")
        try:
            await _copied(there, part)
            part.replace(dest)
        finally:
            part.unlink(missing_ok=True)
        return True

    @contextlib.asynccontextmanager
    async def offering(self, source: Path, *, given: bool) -> AsyncIterator[str | None]:
        """Offer a file for the length of the block, under the name it yields; none where that cannot be.

        What is `given` nobody writes to any more: it may become the blob as it is. Of all else it is a copy.
        """
        name = secrets.token_hex(16)
        place = offer(self._blobs, name)
        try:
            yield name if await _offered(source, place, given) else None
        finally:
            with contextlib.suppress(OSError):  # it was adopted, or was never there
                place.unlink()

    def _place(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256


async def _offered(source: Path, place: Path, given: bool) -> bool:
    if given:
        with contextlib.suppress(OSError):  # of another file system
            os.link(source, place)
            return True
    try:
        await _copied(FileIO(source), place)
    except OSError:  # there is no such directory, or it is full
        return False
    return True


async def _copied(there: FileIO, dest: Path) -> None:
    """Copy what is open to a new file of our own."""
    try:
        here = FileIO(os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
    except BaseException:
        there.close()
        raise
    # The thread opens nothing: when we are cancelled, our file is unlinked, and the rest goes to where nobody looks.
    await asyncio.to_thread(_copy, there, here)


def _copy(there: FileIO, here: FileIO) -> None:
    with there, here:
        try:
            while os.copy_file_range(there.fileno(), here.fileno(), _MOST):
                pass
        except (OSError, AttributeError):  # of another file system, or another system
            shutil.copyfileobj(there, here, PIECE)
