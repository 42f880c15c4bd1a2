"""Which of the user's files travel with an app, and how a function is found again in them.

A function of a file travels as its module's files: the whole top-level package, or the single file. A function that
no file defines (typed into a session or a notebook, or made inside another function) travels by value.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from apothic.errors import ConfigError
from apothic.protocol import pickling
from apothic.protocol.messages import SourceFile

MAX_FILES = 10_000
MAX_BYTES = 256 << 20
_CACHES = {"__pycache__", "node_modules", "venv", "__pypackages__"}
_COMPILED = {".pyc", ".pyo", ".pyd"}


@dataclass(frozen=True)
class Bundle:
    """Files by the place they go to, and where the bytes of each hash are here."""

    files: list[SourceFile]
    sources: dict[str, Path | bytes]


@dataclass(frozen=True)
class Home:
    """How the container finds a function: by `module` and `qualname`, or, with neither, by value."""

    module: str = ""
    qualname: str = ""


def home_of(fn: Callable[..., Any]) -> Home:
    """Return where a function is found in the container.

    >>> home_of(lambda: 1)
    Home(module='', qualname='')
    """
    name, qualname = fn.__module__, fn.__qualname__
    if "<" in qualname or _file_of(sys.modules.get(name)) is None:
        return Home()
    return Home(remote_name(name), qualname)


def remote_name(module: str) -> str:
    """Return a module's name in the container. The file that was run as a script is a module of its own there."""
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)  # set by `python -m package.module`
    return spec.name if spec is not None else Path(str(main.__file__)).stem


def note_travels(fn: Callable[..., Any]) -> None:
    """Remember the script's other name, so that its classes and functions are the container's own when they arrive."""
    name = fn.__module__
    if name == "__main__" and _file_of(sys.modules.get(name)) is not None:
        pickling.TRAVELS[name] = remote_name(name)


def by_value(fn: Callable[..., Any]) -> bytes:
    """Pickle a function that is found in no file. Raises `SerializationError` that says what stood in the way."""
    sink = io.BytesIO()
    pickling.dump(fn, sink, f"the function {fn.__qualname__}")
    return sink.getvalue()


def collect(modules: Iterable[str]) -> Bundle:
    """Return the files of those modules, by the names they have here. Reads and hashes them.

    Raises `ConfigError` for links that lead out of the package, and past the limits of 10,000 files and 256 MiB.
    """
    places: dict[str, Path] = {}
    for name in modules:
        file = _file_of(sys.modules.get(name))
        if file is not None and name.partition(".")[0] != "apothic":  # every agent has that, and in its own version
            places.update(_places(remote_name(name), file))
            _check_count(len(places), file)
    files: list[SourceFile] = []
    sources: dict[str, Path | bytes] = {}
    total = 0
    for place, path in sorted(places.items()):
        sha256, size = _hashed(path)
        total += size
        if total > MAX_BYTES:
            raise ConfigError(
                f"the files to send have more than {MAX_BYTES >> 20} MiB; {path} is one of them",
                hint="move data out of the package, and pass it as an argument or by a path or URL",
            )
        files.append(SourceFile(path=place, sha256=sha256, size=size))
        sources[sha256] = path
    return Bundle(files, sources)


def origins(modules: Iterable[str]) -> list[Path]:
    """Return where those modules' files are: single files, and whole packages by their directories."""
    found: set[Path] = set()
    for name in modules:
        file = _file_of(sys.modules.get(name))
        if file is not None and name.partition(".")[0] != "apothic":
            found.add(_top(remote_name(name), file))
    return sorted(found)


def files_of(origin: Path) -> Iterator[Path]:
    """Yield the files of one of `origins` that travel. Raises `ConfigError` for links that lead out of the package."""
    return _walk(origin) if origin.is_dir() else iter([origin])


def _file_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py"):
        return None
    path = Path(file).resolve()
    return path if path.is_file() else None  # a notebook's kernel may name a file that it never wrote


def _places(module: str, file: Path) -> dict[str, Path]:
    """Return where the files go that travel for one module."""
    top = _top(module, file)
    if top == file:
        return {f"{module}.py": file}
    package = module.partition(".")[0]
    return {str(PurePosixPath(package, *path.relative_to(top).parts)): path for path in _walk(top)}


def _top(module: str, file: Path) -> Path:
    """Return the single file, or the directory of the top-level package."""
    parts = module.split(".")
    is_package = file.name == "__init__.py"
    if len(parts) == 1 and not is_package:
        return file
    # pkg/sub/mod.py as pkg.sub.mod: the top-level package is as many folders up as there are dots.
    above = len(parts) - (0 if is_package else 1)
    return file.parents[above - 1]


def _walk(top: Path) -> Iterator[Path]:
    found = 0
    for folder, folders, names in os.walk(top):
        here = Path(folder)
        for name in folders:
            if _travels(name) and (here / name).is_symlink():
                raise ConfigError(
                    f"{here / name} is a link to a directory, and those do not travel",
                    hint="move the directory into the package, or remove the link",
                )
        folders[:] = sorted(name for name in folders if _travels(name))
        for name in sorted(names):
            path = here / name
            if not _travels(name) or path.suffix in _COMPILED:
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(top.resolve()):
                raise ConfigError(
                    f"{path} is a link that leads out of its package {top.name}",
                    hint="copy the file into the package, or remove the link",
                )
            if not path.is_file():
                continue  # a socket, a pipe, a dangling link
            found += 1
            _check_count(found, top)
            yield path


def _travels(name: str) -> bool:
    # Names with a dot in front are for tools (.git, .venv) or secret (.env).
    return not name.startswith(".") and name not in _CACHES


def _check_count(found: int, where: Path) -> None:
    if found > MAX_FILES:
        raise ConfigError(
            f"{where} has more than {MAX_FILES:,} files to send",
            hint="define the app in a smaller package, or in a single file",
        )


def _hashed(path: Path) -> tuple[str, int]:
    try:
        with path.open("rb") as source:
            sha256 = hashlib.file_digest(source, "sha256").hexdigest()
            return sha256, source.tell()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="make it readable, or remove it") from None
