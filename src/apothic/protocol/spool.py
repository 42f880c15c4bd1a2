"""Where packed bytes go while they are made: memory first, past a limit a file; counted all along, hashed in the file.

A gibibyte that is packed is written straight through: no second copy of it is ever in memory.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from apothic.errors import ConfigError, PayloadTooLargeError, StorageFullError

if TYPE_CHECKING:
    import hashlib


class Spool:
    """A binary file to write to, once. Keeps up to `keep` bytes in memory; more than `limit` bytes are refused.

    The file is made in `directory` (the system's temporary one by default) with mode 0600. Whoever takes
    `file` deletes it; `discard` does so when it is not wanted after all.
    """

    def __init__(self, *, keep: int, limit: int, what: str, directory: Path | None = None) -> None:
        self.size = 0
        self.file: Path | None = None
        self._keep = keep
        self._limit = limit
        self._what = what
        self._directory = directory
        self._chunks: list[bytes] = []
        self._sink: BinaryIO | None = None
        self._hash: hashlib._Hash | None = None

    def write(self, data: Any) -> int:
        """Take the bytes of any buffer. Raises `PayloadTooLargeError` before anything past the limit is kept."""
        length = len(data) if type(data) is bytes else memoryview(data).nbytes
        if self.size + length > self._limit:
            raise too_large(self.size + length, self._limit, self._what)
        self.size += length
        if self._sink is None and self.size <= self._keep:
            # A view may change after we return; bytes cannot.
            self._chunks.append(data if type(data) is bytes else bytes(data))
            return length
        try:
            if self._sink is None:
                self._spill()
            self._put(data)
        except OSError as error:
            raise self._trouble(error) from error
        return length

    def finish(self) -> None:
        """Say that nothing more comes: the file is complete under its name."""
        if self._sink is not None:
            sink, self._sink = self._sink, None
            try:
                sink.close()
            except OSError as error:
                raise self._trouble(error) from error

    def discard(self) -> None:
        """Let go of everything that was written."""
        self._chunks.clear()
        if self._sink is not None:
            sink, self._sink = self._sink, None
            with contextlib.suppress(OSError):  # what could not be written is thrown away anyway
                sink.close()
        if self.file is not None:
            self.file.unlink(missing_ok=True)
            self.file = None

    def data(self) -> bytes:
        """Return what is in memory; only meaningful while there is no `file`."""
        return b"".join(self._chunks)

    def sha256(self) -> str:
        """Return the hash of the file's bytes in hex. Raises `ValueError` when there is no file."""
        if self._hash is None:
            raise ValueError("nothing was spooled to a file")
        return self._hash.hexdigest()

    def _spill(self) -> None:
        # Both are slow to import (tempfile alone loads lzma, bz2 and random), and most values are small.
        import hashlib
        import tempfile

        number, name = tempfile.mkstemp(prefix="apothic-", suffix=".value", dir=self._directory)
        self.file = Path(name)
        self._sink = os.fdopen(number, "wb")
        self._hash = hashlib.sha256()
        for chunk in self._chunks:
            self._put(chunk)
        self._chunks.clear()

    def _put(self, data: Any) -> None:
        assert self._sink is not None and self._hash is not None
        self._hash.update(data)
        self._sink.write(data)

    def _trouble(self, error: OSError) -> StorageFullError | ConfigError:
        import errno

        where = self._directory or "the temporary directory"
        said = f"{self._what} cannot be written to {where}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return StorageFullError(said, hint="free some space there, or set TMPDIR to a directory with more")
        return ConfigError(said, hint="set TMPDIR to a directory that can be written")


def too_large(size: int, limit: int, what: str) -> PayloadTooLargeError:
    """Make the error for something whose packing was given up: it has `size` bytes or more."""
    return PayloadTooLargeError(
        f"{what}: at least {size:,} bytes, over the limit of {limit:,}", size=size, limit=limit, what=what
    )
