"""What SQLite says when something is wrong, in our words, and what a fault may leave behind."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from apothic.errors import ApothicError, StorageFullError

MIB = 1024 * 1024


def named_error(error: Exception) -> Exception:
    """Turn what SQLite says into one of our errors, where it is one."""
    if isinstance(error, ApothicError):
        return error
    if code(error) == sqlite3.SQLITE_FULL:
        return StorageFullError(
            f"the data directory cannot take more: {error}",
            hint="free some space; what was acknowledged is safe, and the server goes on by itself",
        )
    if is_faulty(error):
        return StorageFullError(
            f"the data directory's disk fails: {error}",
            hint="see that the disk has space and is in order; what was acknowledged is safe, and the server goes on "
            "by itself",
        )
    return error


def code(error: Exception | None) -> int:
    """Return SQLite's primary code of an error, or 0."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_faulty(error: Exception | None) -> bool:
    """Tell whether a disk, not a statement, is at fault."""
    return code(error) in (
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
    )


def write_again(wal: Path) -> None:
    """Write and sync the log that a process before this one has left, as it is seen. Raises `OSError`.

    After a sync that failed, Linux shows what was written, takes it for clean, and will never write it: SQLite would
    find transactions in the log that are not on the disk, and build upon them what the next power cut takes with them
    (https://lwn.net/Articles/752063/).
    """
    with contextlib.suppress(FileNotFoundError), wal.open("r+b") as file:
        while seen := file.read(MIB):
            file.seek(-len(seen), os.SEEK_CUR)
            file.write(seen)
        file.flush()
        os.fsync(file.fileno())
