"""The user's file on the command line, `FILE[::name]`: imported as the container will import it, and looked through."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from apothic.errors import ApothicError, ConfigError

if TYPE_CHECKING:
    from apothic.client.app import App


class UserCodeError(Exception):
    """The user's own code raised `inner`, here in this process."""

    def __init__(self, inner: Exception) -> None:
        super().__init__(str(inner))
        self.inner = inner


@dataclass(frozen=True)
class Source:
    """What `FILE[::name]` names: the imported module, and the name, empty for none."""

    module: ModuleType
    file: str
    name: str

    def apps(self) -> dict[str, App]:
        """Return the apps of the module, by the variable that holds each. Raises `ConfigError` if there is none."""
        from apothic.client.app import App

        found: dict[str, App] = {}
        for variable, value in vars(self.module).items():
            if isinstance(value, App) and value not in found.values():
                found[variable] = value
        if not found:
            raise ConfigError(f"there is no app in {self.file}", hint='write: app = apothic.App("name")')
        return found

    def app(self) -> App:
        """Return the app that `name` names, by variable or by its own name; without a name, the only one."""
        apps = self.apps()
        wanted = [one for variable, one in apps.items() if self.name in ("", variable, one.name)]
        if len(wanted) == 1:
            return wanted[0]
        known = ", ".join(apps)
        if wanted:
            raise ConfigError(
                f"{self.file} has several apps: {known}", hint=f"say which one: {self.file}::{next(iter(apps))}"
            )
        raise ConfigError(f"there is no app {self.name!r} in {self.file}", hint=f"it has {known}")


def load(target: str) -> Source:
    """Import the file that `FILE[::name]` names. Raises `ConfigError`, and `UserCodeError` if the import raises."""
    file, _, name = target.partition("::")
    return Source(_imported(_found(file)), file, name)


def origin(target: str) -> Path:
    """Return the file that `FILE[::name]` names, or the package it is in. Raises `ConfigError`."""
    path = _found(target.partition("::")[0])
    root, name = _home(path)
    return root / name.partition(".")[0] if "." in name else path


def _found(file: str) -> Path:
    path = Path(file).resolve()
    if not path.is_file():
        raise ConfigError(
            f"there is no file {file}", hint="give the path of a Python file, such as app.py or app.py::name"
        )
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise ConfigError(f"{file} cannot be imported", hint="it must be called like a Python module, such as app.py")
    return path


def _home(path: Path) -> tuple[Path, str]:
    """Return where a file is imported from, and as what."""
    root, name = path.parent, path.stem
    while (root / "__init__.py").is_file() and root != root.parent:
        root, name = root.parent, f"{root.name}.{name}"
    return root, name


def _imported(path: Path) -> ModuleType:
    root, name = _home(path)
    # As with `python file.py`: what lies beside the file can be imported from it.
    sys.path.insert(0, str(root))
    known = sys.modules.get(name)
    if known is not None:
        if Path(getattr(known, "__file__", None) or "").resolve() == path:
            return known
        raise ConfigError(f"{path.name} has the name of a module that is in use: {name}", hint="rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported", hint="it must be a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        if "." in name:
            return importlib.import_module(name)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except ApothicError as error:
        sys.modules.pop(name, None)
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        error.message += f" ({path.name}, line {lines[-1]})" if lines else ""
        raise
    except Exception as error:
        sys.modules.pop(name, None)
        raise UserCodeError(error) from None
    return module
