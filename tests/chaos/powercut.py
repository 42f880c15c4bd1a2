"""A disk that forgets: all that was done to a data directory, replayed up to a power cut.

What was synced is there. What was not may be there, or not, or in part, sector by sector. A name is there once its
directory was synced. A sync that failed is the worst of its kind: the kernel shows what was written, believes it
clean, and will never write it again (https://lwn.net/Articles/752063/).
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from shim import OK, Listener, listening

SECTOR = 512  # what a disk writes whole
MODES = ("forgets", "keeps", "tears", "tears")
Op = tuple[Any, ...]


class Recorder(Listener):
    """Writes down what is done below a directory, and what was acknowledged when."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ops: list[Op] = []
        self.faults: Callable[[str, Path], int] = lambda kind, path: OK
        self._lock = threading.Lock()
        self._known = {str(path) for path in root.rglob("*")} if root.exists() else set[str]()

    def note(self, *op: Any) -> None:
        with self._lock:
            self.ops.append(op)

    def acknowledge(self, *what: Any) -> None:
        """Note a promise: a power cut after this must not break it."""
        self.note("acknowledged", what)

    def place(self, path: Path | str) -> str:
        return os.path.relpath(path, self.root)

    # --- SQLite's files

    def write(self, path: Path, offset: int, data: bytes) -> int:
        fault = self.faults("write", path)
        if fault == OK:
            self.note("write", self.place(path), offset, data)
        return fault

    def truncate(self, path: Path, size: int) -> int:
        fault = self.faults("write", path)
        if fault == OK:
            self.note("truncate", self.place(path), size)
        return fault

    def sync(self, path: Path) -> int:
        fault = self.faults("sync", path)
        self.note("sync" if fault == OK else "lost", self.place(path))
        return fault

    def read(self, path: Path, offset: int, size: int) -> int:
        return self.faults("read", path)

    def created(self, path: Path) -> None:
        self._known.add(str(path))
        self.note("create", self.place(path))

    def deleted(self, path: Path) -> None:
        self._known.discard(str(path))
        self.note("unlink", self.place(path))

    def directory(self, path: Path) -> None:
        self.note("directory", self.place(path))

    # --- Python's

    def below(self, path: Any) -> bool:
        return str(path).startswith(str(self.root))

    def fsync(self, system: Callable[..., None], handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if not self.below(path):
            return system(handle)
        if path.is_dir():
            system(handle)
            return self.directory(path)
        if str(path) not in self._known:
            self._known.add(str(path))
            self.note("create", self.place(path))
        self.note("write", self.place(path), 0, path.read_bytes())
        if self.faults("sync", path) != OK:
            self.note("lost", self.place(path))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        system(handle)
        self.note("sync", self.place(path))

    def os_write(self, system: Callable[..., int], handle: int, data: bytes) -> int:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if self.below(path) and self.faults("write", path) != OK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return system(handle, data)

    def replace(self, system: Callable[..., None], source: Any, target: Any, **more: Any) -> None:
        system(source, target, **more)
        if self.below(target):
            self._known.discard(str(source))
            self.note("rename", self.place(source), self.place(target))

    def unlink(self, system: Callable[..., None], path: Any, **more: Any) -> None:
        system(path, **more)
        if self.below(path):
            self._known.discard(str(path))
            self.note("unlink", self.place(path))

    def mkdir(self, system: Callable[..., None], path: Any, *more: Any, **named: Any) -> None:
        system(path, *more, **named)
        if self.below(path):
            self.note("mkdir", self.place(path))


@contextlib.contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    """Record all that SQLite and Python do below `root`. Stores that were opened in the block must be closed in it."""
    recorder = Recorder(root)
    with contextlib.ExitStack() as stack:
        stack.enter_context(listening(recorder, root))
        deeds = {name: getattr(recorder, name) for name in ("fsync", "replace", "unlink", "mkdir")}
        for name, ours in (deeds | {"write": recorder.os_write}).items():
            system = getattr(os, name)
            stack.enter_context(
                mock.patch.object(os, name, lambda *a, _ours=ours, _system=system, **k: _ours(_system, *a, **k))
            )
        yield recorder


@dataclass
class File:
    """What of a file is on the disk, and what is on its way there."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # no bytes: cut off there

    def as_of(self, mode: str, dice: random.Random) -> bytes:
        """Return what is found after the power is back."""
        found = bytearray(self.durable)
        for offset, data in self.pending if mode != "forgets" else []:
            if mode == "keeps":
                _put(found, offset, data)
            elif data is None:
                if dice.random() < 0.5:
                    _put(found, offset, None)
            else:
                start = offset
                while start < offset + len(data):
                    end = min(offset + len(data), (start // SECTOR + 1) * SECTOR)
                    if dice.random() < 0.5:
                        _put(found, start, data[start - offset : end - offset])
                    start = end
        return bytes(found)


def _put(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class Disk:
    """A disk to which a recording is done step by step."""

    def __init__(self) -> None:
        self.names: dict[str, File | None] = {".": None}  # a directory is None
        self.lasting: dict[str, File | None] = {".": None}
        self.pending: list[Op] = []
        self.promises: list[tuple[Any, ...]] = []

    def do(self, op: Op) -> None:
        """Do one step."""
        kind, place, *more = op
        if kind == "acknowledged":
            self.promises.append(place)
        elif kind in ("create", "mkdir", "unlink", "rename"):
            self._name(self.names, op)
            self.pending.append((op, self.names.get(more[0] if more else place)))
        elif kind == "directory":
            mine = [one for one in self.pending if os.path.dirname(one[0][-1]) == ("" if place == "." else place)]
            for one in mine:
                self._last(one)
            self.pending = [one for one in self.pending if one not in mine]
        else:
            self._content(self.names[place], kind, *more)

    def _content(self, file: File | None, kind: str, *more: Any) -> None:
        assert file is not None
        if kind == "write":
            file.pending.append((more[0], more[1]))
        elif kind == "truncate":
            file.pending.append((more[0], None))
        else:
            for offset, data in file.pending if kind == "sync" else []:
                _put(file.durable, offset, data)
            file.pending.clear()

    @staticmethod
    def _name(names: dict[str, File | None], op: Op, file: File | None = None) -> None:
        kind, place, *more = op
        if kind == "rename":
            names[more[0]] = names.pop(place)
        elif kind == "unlink":
            names.pop(place, None)
        elif kind == "mkdir":
            names[place] = None
        else:
            names[place] = file or File()

    def _last(self, one: Op) -> None:
        op, file = one
        if op[0] == "rename":
            self.lasting.pop(op[1], None)
            self.lasting[op[2]] = file
        else:
            self._name(self.lasting, op, file)

    def cut(self, mode: str, dice: random.Random, target: Path) -> None:
        """Write down what is there after a power cut now."""
        lasting = self.lasting
        if mode == "keeps":
            lasting = self.names
        elif mode == "tears":
            # Names are written in order: a journalling file system loses the last ones.
            self.lasting = dict(lasting)
            for one in self.pending[: dice.randint(0, len(self.pending))]:
                self._last(one)
            lasting, self.lasting = self.lasting, lasting
        target.mkdir()
        for place, file in sorted(lasting.items()):
            if any(str(parent) not in lasting for parent in Path(place).parents):
                continue  # its directory is lost
            if file is None:
                (target / place).mkdir(exist_ok=True)
            else:
                (target / place).write_bytes(file.as_of(mode, dice))
