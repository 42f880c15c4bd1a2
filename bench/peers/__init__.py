"""Other projects that do the same, each installed into a virtual environment of its own, never into this project's."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

# What pip installs, and the scripts that measure it.
KNOWN = {"ray": ("ray[serve]", {"streams": "ray_stream.py", "services": "ray_serve.py"})}
_HERE = Path(__file__).resolve().parent
_HOMES = _HERE.parent.parent / ".bench"


def chosen(names: str) -> list[str]:
    """Return the names in a text like `ray`. Raises `ValueError` for one that is not known."""
    found = names.replace(",", " ").split()
    for name in found:
        if name not in KNOWN:
            raise ValueError(f"there is no peer {name!r}; there are {', '.join(KNOWN)}")
    return found


def prepare(names: list[str]) -> list[str]:
    """Install what is not there yet; return what can be measured. What cannot is said loudly."""
    return [name for name in names if _installed(name)]


def version(name: str) -> str:
    """Return the version that is installed."""
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.run([_python(name), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _python(name: str) -> Path:
    return _HOMES / name / "bin" / "python"


def _installed(name: str) -> bool:
    what = KNOWN[name][0]
    stamp = _HOMES / name / f"installed-{what}"
    if stamp.exists():
        return True
    print(f"installing {name} into {stamp.parent}, once", file=sys.stderr)
    install = [str(_python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what]
    try:
        venv.create(stamp.parent, with_pip=True, clear=True)
        subprocess.run(install, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        left_out(name, f"it cannot be installed: {error}")
        return False
    stamp.touch()
    return True


def left_out(name: str, why: str) -> None:
    """Say loudly that a peer is missing from what follows."""
    print(f"\n!!! {name.upper()} WAS LEFT OUT: {why}\n", file=sys.stderr)


def measured(name: str, *words: str, part: str) -> dict[str, float]:
    """Run a peer's script; return the figures it printed. When it fails there are none, which is said loudly."""
    command = [str(_python(name)), str(_HERE / KNOWN[name][1][part]), *words]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        # Ray's own processes print beside it.
        return dict(json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))))
    except (OSError, subprocess.SubprocessError, ValueError, StopIteration) as error:
        left_out(name, f"{error}\n{(getattr(error, 'stderr', None) or '')[-2000:]}")
        return {}
