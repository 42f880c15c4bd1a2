"""A deployment's files: from blobs into a directory, once for each content."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from apothic.errors import InvalidRequestError
from apothic.protocol.messages import SourceFile

MAKING = "making-"  # begins the name of a directory that is not whole yet


class Blobs(Protocol):
    """Where bytes come from and go to by their SHA-256."""

    async def fetch(self, sha256: str, dest: Path) -> None:
        """Write the blob to the new file `dest`."""
        ...

    async def store(self, path: Path, sha256: str, size: int) -> None:
        """Keep the file's bytes as a blob."""
        ...


class Bundles:
    """A cache of directories below `root`, named by what is in them."""

    def __init__(self, root: Path, blobs: Blobs) -> None:
        self._root = root
        self._blobs = blobs

    async def directory(self, files: Sequence[SourceFile]) -> Path:
        """Return a directory that holds exactly `files`.

        Raises `InvalidRequestError` for a path that would leave it, or bytes that are not what was named.
        """
        paths = _checked(files)
        name = hashlib.sha256("".join(f"{f.sha256} {f.path}\n" for f in sorted(files, key=_path)).encode()).hexdigest()
        dest = self._root / "code" / name
        if dest.is_dir():
            return dest
        self._root.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=MAKING, dir=self._root))
        try:
            for file, path in zip(files, paths, strict=True):
                target = making / "code" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                await self._fetch(file.sha256, target)
            (making / "code").mkdir(exist_ok=True)
            dest.parent.mkdir(exist_ok=True)
            _settle(making / "code", dest)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return dest

    async def blob(self, sha256: str) -> Path:
        """Return a file with a blob's bytes: a function that travels by value."""
        dest = self._root / "values" / sha256
        if not dest.exists():
            dest.parent.mkdir(parents=True, exist_ok=True)
            making = Path(tempfile.mkdtemp(prefix=MAKING, dir=self._root))
            try:
                await self._fetch(sha256, making / "value")
                _settle(making / "value", dest)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        return dest

    async def _fetch(self, sha256: str, target: Path) -> None:
        await self._blobs.fetch(sha256, target)
        with target.open("rb") as source:
            found = hashlib.file_digest(source, "sha256").hexdigest()
        if found != sha256:
            raise InvalidRequestError(f"blob {sha256} has other bytes: they hash to {found}", hint="deploy again")


def _settle(made: Path, dest: Path) -> None:
    try:
        made.rename(dest)
    except OSError:  # somebody else made the same one meanwhile
        if not dest.exists():
            raise


def _path(file: SourceFile) -> str:
    return file.path


def _checked(files: Sequence[SourceFile]) -> list[PurePosixPath]:
    found = []
    taken: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for file in files:
        path = PurePosixPath(file.path)
        parts = file.path.split("/")
        if path.is_absolute() or not file.path or "\0" in file.path or any(part in ("", ".", "..") for part in parts):
            raise InvalidRequestError(
                f"{file.path!r} is no place for a file of a deployment", hint="use relative paths without '..'"
            )
        if path in taken or path in folders or any(parent in taken for parent in path.parents):
            raise InvalidRequestError(f"{file.path!r} stands where another file is", hint="name each file once")
        taken.add(path)
        folders.update(path.parents)
        found.append(path)
    return found
