"""Pickles: what JSON cannot carry, by cloudpickle, with a header that tells a reader beforehand what it needs.

Nothing here is run by the control plane, which never unpickles.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Protocol

from apothic.errors import ApothicError, SerializationError
from apothic.protocol.messages import PickleHeader

PROTOCOL = 5  # since Python 3.8; the first that writes large buffers without a copy
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

# A module's name here → its name there. A file run as a script is `__main__` here and a module of its own there.
TRAVELS: dict[str, str] = {}

# Every reader has these, or cannot read at all; versions of the rest are worth telling.
_EVERYWHERE = sys.stdlib_module_names | {"__main__", "apothic", "cloudpickle"}
_NOWHERE = "<dynamic-code>"
_PACKAGES = {"site-packages", "dist-packages"}
_MODULES_OWN = {"__builtins__", "__cached__", "__file__", "__loader__", "__spec__"}  # where it was loaded from, here


class Writable(Protocol):
    """What a pickle is written to."""

    def write(self, data: Any, /) -> int: ...


def home(module: str) -> str:
    """Return the name under which the module that a pickle names is found here."""
    if module not in sys.modules:
        for here, there in tuple(TRAVELS.items()):
            if there == module:
                return here
    return module


def locate(module: str, qualname: str) -> Any:
    """Return what `module` defines as `qualname`. Pickles refer to a travelling module's classes through this.

    Raises `ImportError` or `AttributeError` when it is not there.
    """
    found = importlib.import_module(home(module))
    for name in qualname.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise AttributeError(
                f"module {module} defines no {qualname}; what stands under `if __name__ == '__main__':` "
                "exists only in the script that was run"
            ) from None
    return found


def dump(value: Any, sink: Writable, what: str, *, whole: bool = False) -> PickleHeader:
    """Pickle `value` into `sink`; return the header. With `whole`, what modules define that are not installed goes
    along by value, those of the script included: the reader has no file of theirs.

    Raises `SerializationError` that names the type that stood in the way; errors of `sink` pass through.
    """
    pickler = (_whole_pickler() if whole else _pickler())(sink)
    try:
        pickler.dump(value)
    except ApothicError:
        raise
    except (Exception, SystemExit) as error:
        raise _refusal(error, pickler.last, what) from error
    return PickleHeader(python=PYTHON, cloudpickle=_cloudpickle().__version__, modules=_versions(pickler.modules))


def load(source: Any, header: PickleHeader | None, what: str) -> Any:
    """Unpickle from a binary file. Raises `SerializationError` that names the versions on both sides."""
    for module in header.modules if header is not None else ():
        if not _is_here(module):
            version = header.modules[module] if header is not None else ""
            raise SerializationError(
                f"cannot unpack {what}: it needs the module {f'{module} {version}'.rstrip()}, which is not "
                f"installed here ({_sides(header)})",
                hint=f"install {module} on this side, or return plain data instead",
            )
    try:
        return _unpickler()(source).load()
    except (Exception, SystemExit) as error:
        raise SerializationError(
            f"cannot unpack {what}: {type(error).__name__}: {_said(error)} ({_sides(header)})",
            hint="use the same Python and package versions on both sides, and define what travels where both import it",
        ) from error


def _sides(header: PickleHeader | None) -> str:
    there = f"Python {header.python}, cloudpickle {header.cloudpickle}" if header is not None else "unknown versions"
    told = header.modules if header is not None else {}
    here = {m: v for m, v in _versions(m for m in told if m in sys.modules).items() if v != told[m]}
    extra_there = "".join(f", {m} {told[m]}" for m in here)
    extra_here = "".join(f", {m} {v or 'of unknown version'}" for m, v in here.items())
    return (
        f"packed with {there}{extra_there}; here Python {PYTHON}, cloudpickle {_cloudpickle().__version__}{extra_here}"
    )


def _refusal(error: BaseException, last: Any, what: str) -> SerializationError:
    if isinstance(error, RecursionError) or "recursion" in str(error)[:200]:
        return SerializationError(
            f"cannot pack {what}: it is nested too deeply to be pickled", hint="flatten it, or pack it yourself"
        )
    name = type_name(type(last)) if last is not None else "value"
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return SerializationError(
        f"cannot pack {what}: {article} {name} object ({type(error).__name__}: {_said(error)})",
        hint="pass what it is made from instead, and make it again on the other side",
    )


def type_name(kind: type) -> str:
    """Return how people call a type: builtins by their bare name, others with their module."""
    module, name = kind.__module__, kind.__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def _said(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except Exception:
        return "its message cannot be read"


def _versions(modules: Any) -> dict[str, str]:
    versions = {}
    for name in sorted(modules):
        version = getattr(sys.modules.get(name), "__version__", "")
        versions[name] = version if isinstance(version, str) else ""
    return versions


def _is_here(module: str) -> bool:
    if module in sys.modules or home(module) in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _named(thing: Any) -> tuple[str, str] | None:
    """Return the module and qualified name under which a class or function is found again, or None if it is not."""
    try:
        module, qualname = thing.__module__, thing.__qualname__
        found: Any = sys.modules.get(module)
        for name in qualname.split("."):
            found = getattr(found, name)
    except Exception:  # a metaclass may do anything when asked
        return None
    return (module, qualname) if found is thing else None


def _subimport(name: str) -> Any:
    return importlib.import_module(home(name))


def _cloudpickle() -> Any:
    return importlib.import_module("cloudpickle")


def _by_value(module: str) -> bool:
    asked: set[str] = _cloudpickle().list_registry_pickle_by_value()
    return any(module == name or module.startswith(f"{name}.") for name in asked)


@cache
def _pickler() -> Callable[[Writable], Any]:
    # Made on first use: cloudpickle costs 15 ms to import, and most values travel as JSON.
    cloudpickle = _cloudpickle()

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc,name-defined]
        """Notes which modules the pickle refers to, and what it was at when it failed."""

        def __init__(self, sink: Writable) -> None:
            super().__init__(sink, protocol=PROTOCOL)
            self.last: Any = None
            self.modules: set[str] = set()

        def reducer_override(self, obj: Any) -> Any:
            self.last = obj
            kind = type(obj)
            if kind is FunctionType or kind is BuiltinFunctionType or issubclass(kind, type):
                named = _named(obj)
                if named is not None:
                    if named[0] in TRAVELS:
                        return self._travelling(locate, TRAVELS[named[0]], named[1])
                    self._note(named[0])
            elif issubclass(kind, ModuleType):
                name: str = getattr(obj, "__name__", "")
                if name in TRAVELS:
                    return self._travelling(_subimport, TRAVELS[name])
                if sys.modules.get(name) is obj:
                    self._note(name)
            return super().reducer_override(obj)

        def _travelling(self, finder: Callable[..., Any], module: str, *rest: str) -> Any:
            self._note(module)
            return finder, (module, *rest)

        def _note(self, module: str) -> None:
            top = module.partition(".")[0]
            if top not in _EVERYWHERE and top not in self.modules and not _by_value(module):
                self.modules.add(top)

    return Pickler


@cache
def is_installed(module: str) -> bool:
    """Tell whether a module is part of Python or of an installed package, so that a reader may have it as well.

    >>> is_installed("json"), is_installed("__main__")
    (True, False)
    """
    if module == "__main__":
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if module.partition(".")[0] in _EVERYWHERE or file is None:
        return True
    path = Path(file).resolve()
    library = Path(sysconfig.get_path("stdlib")).resolve()
    return path.is_relative_to(library) or not _PACKAGES.isdisjoint(path.parts)


@cache
def _whole_pickler() -> Callable[[Writable], Any]:
    # cloudpickle's public switch for this is one for the whole process, and others pickle at the same time.
    pickled = _cloudpickle().cloudpickle

    class Whole(_pickler()):  # type: ignore[misc]
        """Leaves nothing behind that only this side can import."""

        def reducer_override(self, obj: Any) -> Any:
            self.last = obj
            kind = type(obj)
            if kind is FunctionType or issubclass(kind, type):
                named = _named(obj)
                if named is not None and not is_installed(named[0]):
                    is_function = kind is FunctionType
                    return self._dynamic_function_reduce(obj) if is_function else pickled._dynamic_class_reduce(obj)
            elif issubclass(kind, ModuleType):
                name: str = getattr(obj, "__name__", "")
                if sys.modules.get(name) is obj and not is_installed(name):
                    kept = {key: value for key, value in vars(obj).items() if key not in _MODULES_OWN}
                    return pickled.dynamic_subimport, (name, kept)
            elif kind is CodeType:
                rebuild, parts = pickled._code_reduce(obj)
                # Versions of cloudpickle leave out the file's name; tracebacks need it.
                there = {_NOWHERE: obj.co_filename}
                return rebuild, tuple(there.get(part, part) if isinstance(part, str) else part for part in parts)
            elif hasattr(kind, "__apothic_away__"):
                return obj.__apothic_away__()
            return super().reducer_override(obj)

    return Whole


@cache
def _unpickler() -> Callable[[Any], Any]:
    import pickle

    class Unpickler(pickle.Unpickler):
        """Finds at home what travelled under another name."""

        def find_class(self, module: str, name: str, /) -> Any:
            if name == "subimport" and module == "cloudpickle.cloudpickle":
                return _subimport
            return super().find_class(home(module) if TRAVELS else module, name)

    return Unpickler
