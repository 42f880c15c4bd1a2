"""A SQLite VFS that listens to what the store's own SQLite does to its files, and breaks it where a test says so.

It is registered by ctypes in the very library that Python's sqlite3 module has loaded, as the default, so nothing of
the store knows of it. Files are the system's own, their method tables are copies of its own with four entries
replaced; locks and shared memory are untouched.
"""

from __future__ import annotations

import contextlib
import ctypes as c
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OK, OPEN_CREATE = 0, 0x4
IOERR, FULL = sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL
IOERR_SHORT_READ, IOERR_READ, IOERR_WRITE, IOERR_SYNC = (IOERR | n << 8 for n in (2, 1, 3, 4))

_P, _I, _L = c.c_void_p, c.c_int, c.c_int64
_METHODS = {
    "xClose": None, "xRead": c.CFUNCTYPE(_I, _P, _P, _I, _L), "xWrite": c.CFUNCTYPE(_I, _P, _P, _I, _L),
    "xTruncate": c.CFUNCTYPE(_I, _P, _L), "xSync": c.CFUNCTYPE(_I, _P, _I), "xFileSize": None, "xLock": None,
    "xUnlock": None, "xCheckReservedLock": None, "xFileControl": None, "xSectorSize": None,
    "xDeviceCharacteristics": None, "xShmMap": None, "xShmLock": None, "xShmBarrier": None, "xShmUnmap": None,
    "xFetch": None, "xUnfetch": None,
}  # fmt: skip
_OPEN = c.CFUNCTYPE(_I, _P, _P, _P, _I, _P)
_DELETE = c.CFUNCTYPE(_I, _P, c.c_char_p, _I)
_SET_CALL = c.CFUNCTYPE(_I, _P, c.c_char_p, _P)
_GET_CALL = c.CFUNCTYPE(_P, _P, c.c_char_p)
_OPEN_DIRECTORY = c.CFUNCTYPE(_I, c.c_char_p, c.POINTER(_I))


class _Methods(c.Structure):
    _fields_ = [("iVersion", _I)] + [(name, _P) for name in _METHODS]


class _Vfs(c.Structure):
    _fields_ = [("iVersion", _I), ("szOsFile", _I), ("mxPathname", _I), ("pNext", _P), ("zName", c.c_char_p)] + [
        (name, _P)
        for name in (
            "pAppData", "xOpen", "xDelete", "xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym", "xDlClose",
            "xRandomness", "xSleep", "xCurrentTime", "xGetLastError", "xCurrentTimeInt64", "xSetSystemCall",
            "xGetSystemCall", "xNextSystemCall",
        )
    ]  # fmt: skip


class Listener:
    """What a test wants to hear of. Each may return a SQLite error, which is then what happens instead."""

    def read(self, path: Path, offset: int, size: int) -> int:
        return OK

    def write(self, path: Path, offset: int, data: bytes) -> int:
        return OK

    def truncate(self, path: Path, size: int) -> int:
        return OK

    def sync(self, path: Path) -> int:
        return OK

    def created(self, path: Path) -> None:
        pass

    def deleted(self, path: Path) -> None:
        pass

    def directory(self, path: Path) -> None:
        """A directory is synced."""


def library() -> c.CDLL:
    """Return the SQLite that Python's sqlite3 module runs on, wherever that is."""
    import _sqlite3

    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    for path in [*sorted(path for path in mapped if "libsqlite3" in path), _sqlite3.__file__, None]:
        found = c.CDLL(path)
        if hasattr(found, "sqlite3_vfs_find"):
            version = found.sqlite3_libversion
            version.restype = c.c_char_p
            assert version().decode() == sqlite3.sqlite_version, f"{path} is another SQLite"
            return found
    raise RuntimeError("this Python hides its SQLite (linked into it without names): no disk can be broken under it")


_kept: list[Any] = []  # a connection that was left open may still call


class _Shim:
    """The registered VFS. Everything that C holds a pointer to lives as long as this does."""

    def __init__(self, listener: Listener, root: Path) -> None:
        self.listener = listener
        self._root = str(root)
        self._files: dict[int, Path] = {}
        self._tables: dict[int, tuple[_Methods, list[Any]]] = {}
        self._library = library()
        self._library.sqlite3_vfs_find.restype = _P
        self._library.sqlite3_vfs_find.argtypes = [c.c_char_p]
        self._library.sqlite3_vfs_register.argtypes = [_P, _I]
        self._library.sqlite3_vfs_unregister.argtypes = [_P]
        self._system = self._library.sqlite3_vfs_find(None)
        system = _Vfs.from_address(self._system)
        self._vfs = _Vfs.from_buffer_copy(system)
        self._vfs.zName = b"apothic-test"
        self._open, self._delete = _OPEN(system.xOpen), _DELETE(system.xDelete)
        self._callbacks = [_OPEN(self._on_open), _DELETE(self._on_delete), _OPEN_DIRECTORY(self._on_directory)]
        self._vfs.xOpen, self._vfs.xDelete = (c.cast(each, _P).value for each in self._callbacks[:2])
        self._set_call, get_call = _SET_CALL(system.xSetSystemCall), _GET_CALL(system.xGetSystemCall)
        self._open_directory = _OPEN_DIRECTORY(get_call(self._system, b"openDirectory"))
        # A sync that makes a name last goes round the VFS: it opens the directory by this call.
        self._set_call(self._system, b"openDirectory", c.cast(self._callbacks[2], _P))
        self._library.sqlite3_vfs_register(c.addressof(self._vfs), 1)

    def close(self) -> None:
        self.listener = Listener()
        self._library.sqlite3_vfs_unregister(c.addressof(self._vfs))
        self._library.sqlite3_vfs_register(self._system, 1)
        self._set_call(self._system, b"openDirectory", None)

    def _ours(self, name: bytes | None) -> Path | None:
        text = os.fsdecode(name) if name else ""
        return Path(text) if text.startswith(self._root) else None

    def _on_open(self, _: int, name: int | None, file: int, flags: int, out: int) -> int:
        path = self._ours(c.string_at(name)) if name else None
        fresh = path is not None and flags & OPEN_CREATE and not path.exists()
        # The pointer itself goes on, not its text: the system keeps it, and reads what SQLite has put behind the name.
        done = int(self._open(self._system, name, file, flags, out))
        if done == OK and path is not None:
            self._files[file] = path
            slot = c.c_void_p.from_address(file)
            slot.value = self._table(slot.value or 0)
            if fresh:
                self.listener.created(path)
        return done

    def _on_delete(self, _: int, name: bytes, sync: int) -> int:
        path = self._ours(name)
        if path is not None and path.exists():
            self.listener.deleted(path)
        return int(self._delete(self._system, name, sync))

    def _on_directory(self, name: bytes, handle: Any) -> int:
        path = self._ours(name)
        done = int(self._open_directory(name, handle))
        if path is not None and done == OK:
            self.listener.directory(path.parent)
        return done

    def _table(self, system: int) -> int:
        """Return our copy of a table of file methods."""
        if system not in self._tables:
            table = _Methods.from_buffer_copy(_Methods.from_address(system))
            deeds = {"xRead": self._reads, "xWrite": self._writes, "xTruncate": self._truncates, "xSync": self._syncs}
            kept = []
            for name, make in deeds.items():
                kind = _METHODS[name]
                assert kind is not None
                ours = kind(make(kind(getattr(table, name))))
                setattr(table, name, c.cast(ours, _P).value)
                kept.append(ours)
            self._tables[system] = table, kept
        return c.addressof(self._tables[system][0])

    def _reads(self, system: Callable[..., int]) -> Callable[..., int]:
        def read(file: int, buffer: int, size: int, offset: int) -> int:
            fault = self.listener.read(self._files[file], offset, size)
            if fault == IOERR_SHORT_READ:  # whoever returns it fills the rest with zeros
                c.memset(buffer, 0, size)
            return fault or system(file, buffer, size, offset)

        return read

    def _writes(self, system: Callable[..., int]) -> Callable[..., int]:
        def write(file: int, data: int, size: int, offset: int) -> int:
            fault = self.listener.write(self._files[file], offset, c.string_at(data, size))
            return fault or system(file, data, size, offset)

        return write

    def _truncates(self, system: Callable[..., int]) -> Callable[..., int]:
        def truncate(file: int, size: int) -> int:
            return self.listener.truncate(self._files[file], size) or system(file, size)

        return truncate

    def _syncs(self, system: Callable[..., int]) -> Callable[..., int]:
        def sync(file: int, flags: int) -> int:
            # The system's own first: it may sync the directory, too. A fault is told after it, as a late one is.
            return system(file, flags) or self.listener.sync(self._files[file])

        return sync


@contextlib.contextmanager
def listening(listener: Listener, root: Path) -> Iterator[None]:
    """Let the listener hear of, and break, what SQLite does below `root`, for the length of the block."""
    shim = _Shim(listener, root)
    _kept.append(shim)
    try:
        yield
    finally:
        shim.close()
