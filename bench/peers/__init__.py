"""Other projects that do the same, each installed into a virtual environment of its own, never into this project's."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench import homes, servers

PACKAGES = {  # what pip installs
    "ray": "ray[serve]",
    "celery": "celery[redis]",
    "taskiq": "taskiq-redis",
    "dbos": "dbos",
    "pgqueuer": "pgqueuer[asyncpg]",
}
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Script:
    """What measures a peer in one section of the bench, and the server that it needs for it."""

    name: str  # what its figures are noted under
    peer: str
    section: str
    file: str
    server: str = ""

    def measured(self, *words: str) -> dict[str, float]:
        """Return the figures it prints. When it fails there are none, which is said loudly."""
        command = [str(homes.python(self.peer)), str(_HERE / self.file), *words]
        try:
            with servers.KNOWN[self.server]() if self.server else nullcontext("") as place:
                environment = {**os.environ, "BENCH_PLACE": place}
                done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600, env=environment)
            # Their own processes print beside them.
            return dict(json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))))
        except (OSError, subprocess.SubprocessError, ValueError, StopIteration, homes.LeftOutError) as error:
            homes.left_out(self.name, f"{error}\n{str(getattr(error, 'stderr', None) or '')[-2000:]}")
            return {}


SCRIPTS = [
    Script("ray", "ray", "calls", "ray_calls.py"),
    Script("celery", "celery", "calls", "celery_calls.py", "redis"),
    Script("taskiq", "taskiq", "calls", "taskiq_calls.py", "redis"),
    Script("dbos sqlite", "dbos", "calls", "dbos_calls.py"),
    Script("dbos postgres", "dbos", "calls", "dbos_calls.py", "postgres"),
    Script("pgqueuer", "pgqueuer", "calls", "pgqueuer_calls.py", "postgres"),
    Script("ray", "ray", "streams", "ray_stream.py"),
    Script("ray", "ray", "services", "ray_serve.py"),
]


def chosen(names: str) -> list[str]:
    """Return the names in a text like `ray,celery`. Raises `ValueError` for one that is not known."""
    found = names.replace(",", " ").split()
    for name in found:
        if name not in PACKAGES:
            raise ValueError(f"there is no peer {name!r}; there are {', '.join(PACKAGES)}")
    return found


def scripts(section: str, names: list[str]) -> list[Script]:
    """Return what measures these peers in a section."""
    return [each for each in SCRIPTS if each.section == section and each.peer in names]


def prepare(names: list[str]) -> list[str]:
    """Install what is not there yet; return what can be measured. What cannot is said loudly."""
    return [name for name in names if _ready(name)]


def _ready(name: str) -> bool:
    try:
        homes.installed(name, PACKAGES[name])
    except homes.LeftOutError as error:
        homes.left_out(name, error)
        return False
    return True


def versions(names: list[str]) -> list[str]:
    """Return the versions of peers, and of the servers that they run on."""
    needed = sorted({each.server for each in SCRIPTS if each.peer in names and each.server})
    found = [f"{name} {homes.version(name)}" for name in names]
    for server in needed:
        try:
            found.append(f"{server} {servers.version(server)}")
        except homes.LeftOutError as error:
            homes.left_out(server, error)
    return found
