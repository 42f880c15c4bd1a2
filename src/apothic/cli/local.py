"""What runs on this machine for a data directory: found by the locks that it holds, which no crash leaves behind."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apothic.agent.ports import port_holder as port_holder
from apothic.errors import ConfigError, ConflictError

SERVER_LOCK, AGENT_LOCK = "server.lock", "agent.lock"
_LOOK_S = 0.02


@dataclass(frozen=True)
class Running:
    """A server of this machine, as its `server.json` has it."""

    base_url: str
    gateway_url: str | None
    data_dir: str
    pid: int
    version: str


def running(data_dir: Path) -> Running | None:
    """Return the server of that data directory, or `None` if none runs."""
    if holder(data_dir / SERVER_LOCK) is None:
        return None
    try:
        told: dict[str, Any] = json.loads((data_dir / "server.json").read_text())
        names = ("base_url", "gateway_url", "data_dir", "pid", "version")
        return Running(**{name: told.get(name) for name in names})  # type: ignore[arg-type]
    except (OSError, ValueError):
        return None  # it starts just now


def holder(lock: Path) -> int | None:
    """Return the process that holds a lock file, or `None` if nobody does; 0 if it cannot be told who.

    The kernel is asked, not a pid file: a pid in a file may by now be that of somebody else. And the lock is not
    tried, because that would refuse it to a server that starts at the same moment.
    """
    try:
        at = lock.stat()
    except OSError:
        return None
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return _tried(lock)
    place = f"{os.major(at.st_dev):02x}:{os.minor(at.st_dev):02x}:{at.st_ino}"
    for line in lines:
        words = line.split()
        if "->" not in words and len(words) >= 6 and words[1] == "FLOCK" and words[5] == place:
            return max(0, int(words[4]))
    return None


def _tried(lock: Path) -> int | None:
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return 0
    return None


def end(pid: int, seconds: float) -> None:
    """Ask a process to end, and wait until it is gone. Raises `ConflictError` if it is not after `seconds`."""
    import psutil

    from apothic.clock import SystemClock

    try:
        process = psutil.Process(pid)
        process.send_signal(signal.SIGTERM)
        clock = SystemClock()
        until = clock.monotonic() + seconds
        # A zombie has ended; that its parent has not asked for its status is not our affair.
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if clock.monotonic() > until:
                raise ConflictError(f"process {pid} is still there after {seconds:g} s", hint=f"kill -9 {pid}")
            clock.pause(0.02)
    except psutil.NoSuchProcess:
        return


def make_private(folder: Path) -> None:
    """Make a data directory that only its owner can read. Raises `ConfigError` if it cannot be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise ConfigError(
            f"the data directory {folder} cannot be written: {error.strerror}",
            hint="give another one with --data-dir or APOTHIC_DATA_DIR",
        ) from None


def first_document(log: Path, offset: int, alive: Any, seconds: float) -> dict[str, Any] | None:
    """Wait for the first line of JSON in `log` past `offset`; `None` when `alive()` is false and there is none."""
    from apothic.clock import SystemClock

    clock = SystemClock()
    until = clock.monotonic() + seconds
    while True:
        last = not alive() or clock.monotonic() > until
        with log.open("rb") as file:
            file.seek(offset)
            for line in file.read().split(b"\n")[:-1]:
                if line.startswith(b"{"):
                    document: dict[str, Any] = json.loads(line)
                    return document
        if last:
            return None
        clock.pause(_LOOK_S)
