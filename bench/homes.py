"""Virtual environments for what is measured beside us: one for each, below `.bench`, never the project's."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

_HOMES = Path(__file__).resolve().parent.parent / ".bench"


class LeftOutError(Exception):
    """Something cannot be had here, so that what needs it is not measured."""


def installed(name: str, package: str) -> Path:
    """Return the environment that has the package; make it at the first time."""
    home = _HOMES / name
    stamp = home / f"installed-{package}"
    if stamp.exists():
        return home
    print(f"installing {package} into {home}, once", file=sys.stderr)
    install = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
    try:
        venv.create(home, with_pip=True, clear=True)
        subprocess.run(install, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LeftOutError(f"it cannot be installed: {error}") from error
    stamp.touch()
    return home


def python(name: str) -> Path:
    """Return an environment's interpreter."""
    return _HOMES / name / "bin" / "python"


def version(name: str) -> str:
    """Return the version of the package that an environment is named after."""
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.run([str(python(name)), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def left_out(name: str, why: object) -> None:
    """Say loudly that something is missing from what follows."""
    print(f"\n!!! {name.upper()} WAS LEFT OUT: {why}\n", file=sys.stderr)
