"""Control groups: what a container may hold and use, enforced by the kernel where it lets us, in version 2 or 1.

A container gets a group below the agent's own in every hierarchy that the agent may write to. `memory_mb` is a hard
limit there, without swap; `cpu` is a weight; processes are counted; and the whole tree is killed at once. Whatever
cannot be had is left to the watchdog and to the process group, as `Level` tells.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from apothic.agent.places import Place, find_places
from apothic.clock import Clock

# Every thread counts. Enough for a library that starts one for each core of a large machine, and an end to a fork bomb.
PIDS = 4_096
_PERIODS = 200  # of `_PAUSE_S`, until a group whose processes are dead must be empty
_PAUSE_S = 0.005
_numbering = itertools.count()


@dataclass(frozen=True)
class Level:
    """What is enforced on this machine, and how; empty where the fallback is all there is."""

    memory: str = ""
    cpu: str = ""
    pids: str = ""
    kill: str = ""

    def __str__(self) -> str:
        fallback = {"memory": "watchdog", "cpu": "none", "pids": "none", "kill": "process group"}
        return " ".join(f"{name}={getattr(self, name) or other}" for name, other in fallback.items())


def level_here() -> Level:
    """Return what is enforced on this machine. A group is made to see, and removed; all others stay as they are."""
    return Groups(find_places(switch=False), sweeps=False).level


class Groups:
    """The groups of one agent's containers. Without places it makes groups that do nothing."""

    def __init__(self, places: Mapping[str, Place] | None = None, *, pids: int = PIDS, sweeps: bool = True) -> None:
        self._places = dict(find_places() if places is None else places)
        self._pids = pids
        self._prefix = f"apothic.{_namespace()}.{os.getpid()}.{_born(os.getpid())}.{next(_numbering)}."
        if sweeps:
            self.sweep()
        self.level = self._try_out()

    def make(self, name: str, memory: int, cpu: float) -> Group:
        """Make the group of a container. What fails is left out, and the fallback has it."""
        group = Group()
        for path in {place.path for place in self._places.values()}:
            with contextlib.suppress(OSError):
                made = path / f"{self._prefix}{name}"
                made.mkdir(exist_ok=True)
                group.paths[path] = made
        for what, place in self._places.items():
            folder = group.paths.get(place.path)
            if folder is not None:
                group.versions[what] = place.version
                with contextlib.suppress(OSError):
                    for file, text in self._limits(what, place.version, memory, cpu):
                        _write(folder / file, text)
                    if what == "memory":
                        _without_swap(folder, place.version)
                    if what != "kill" or (folder / "cgroup.kill").exists():  # since Linux 5.14
                        group.folders[what] = folder
        return group

    def sweep(self) -> None:
        """Remove what agents that were killed have left, with whatever still runs in there."""
        self._clear(of_the_dead=True)

    def close(self) -> None:
        """Remove what is left of ours."""
        self._clear(of_the_dead=False)

    def _limits(self, what: str, version: int, memory: int, cpu: float) -> Iterator[tuple[str, str]]:
        if what == "memory":
            if version == 2:
                yield "memory.max", f"{memory}"
            else:
                yield "memory.limit_in_bytes", f"{memory}"
        elif what == "cpu":
            # A weight, not a quota: a job that is alone may use what nobody else wants, and is never stopped in the
            # middle of a period (which shows as pauses of up to 100 ms in a program with more threads than its quota).
            # Never less than that of any other program: one that asks for 0.01 of a core is not to starve behind
            # strangers, who count for a whole one each (its imports took 45 s instead of 1 on a busy machine).
            weight = min(10_000, round(max(1.0, cpu) * 100))
            yield ("cpu.weight", f"{weight}") if version == 2 else ("cpu.shares", f"{round(max(1.0, cpu) * 1024)}")
        elif what == "pids":
            yield "pids.max", f"{self._pids}"

    def _try_out(self) -> Level:
        """Make a group, to see what comes of it: a file system may be writable and still refuse."""
        tried = self.make("probe", 64 * 1024 * 1024, 1.0)
        got = {what: f"cgroup v{tried.versions[what]}" for what in tried.folders}
        tried.remove_now()
        self._places = {what: place for what, place in self._places.items() if what in got}
        kill = "cgroup.kill" if "kill" in got else "freezer" if "freezer" in got else ""
        return Level(got.get("memory", ""), got.get("cpu", ""), got.get("pids", ""), kill)

    def _clear(self, *, of_the_dead: bool) -> None:
        """Remove groups: ours, or those of agents of this pid namespace that are gone, with whatever runs in them."""
        for path in {place.path for place in self._places.values()}:
            for found in path.glob(f"apothic.{_namespace()}.*"):
                pid, born = found.name.split(".")[2:4]
                dead = pid.isdigit() and _born(int(pid)) != born
                if dead if of_the_dead else found.name.startswith(self._prefix):
                    for left in _members(found):
                        with contextlib.suppress(OSError):
                            os.kill(left, signal.SIGKILL)
                    with contextlib.suppress(OSError):
                        found.rmdir()


@dataclass
class Group:
    """The group of one container: a folder in each hierarchy, and what is enforced by it."""

    paths: dict[Path, Path] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    @property
    def limits_memory(self) -> bool:
        """Whether the kernel holds its processes to their memory."""
        return "memory" in self.folders

    def take(self, pid: int) -> None:
        """Put a process in, and with it all that it will start. Out of those that refuse, nothing is enforced."""
        for parent, folder in list(self.paths.items()):
            try:
                _write(folder / "cgroup.procs", f"{pid}")
            except OSError:
                self.folders = {what: path for what, path in self.folders.items() if path != folder}
                with contextlib.suppress(OSError):
                    folder.rmdir()
                del self.paths[parent]

    def ooms(self) -> int:
        """Return how many processes the kernel has killed for the memory of this group."""
        if not self.limits_memory:
            return 0
        name = "memory.events" if self.versions["memory"] == 2 else "memory.oom_control"
        return _numbers(self.folders["memory"] / name).get("oom_kill", 0)

    def peak(self) -> int:
        """Return the most memory that it has held, in bytes; 0 where nobody counts."""
        if not self.limits_memory:
            return 0
        name = "memory.peak" if self.versions["memory"] == 2 else "memory.max_usage_in_bytes"
        with contextlib.suppress(OSError, ValueError):
            return int((self.folders["memory"] / name).read_text())
        return 0

    def kill(self) -> None:
        """Kill all that is in it, what forks at this very moment included."""
        with contextlib.suppress(OSError):
            if "kill" in self.folders:
                _write(self.folders["kill"] / "cgroup.kill", "1")
                return
            folder = self.folders.get("freezer")
            if folder is None:
                return
            _write(folder / "freezer.state", "FROZEN")
            try:
                for pid in _members(folder):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            finally:
                _write(folder / "freezer.state", "THAWED")

    async def remove(self, clock: Clock) -> None:
        """Remove it once it is empty: the dead leave it a moment after they are collected."""
        for _ in range(_PERIODS):
            self.remove_now()
            if not self.paths:
                return
            await clock.sleep(_PAUSE_S)

    def remove_now(self) -> None:
        """Remove what can be removed at once."""
        for parent, folder in list(self.paths.items()):
            with contextlib.suppress(OSError):
                folder.rmdir()
            if not folder.exists():
                del self.paths[parent]


def _without_swap(folder: Path, version: int) -> None:
    """Keep it in memory, and let it die as one; kernels differ in what of this they offer."""
    wanted = {"memory.swap.max": "0", "memory.oom.group": "1"} if version == 2 else {"memory.swappiness": "0"}
    for file, text in wanted.items():
        with contextlib.suppress(OSError):
            _write(folder / file, text)


def _write(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY), "w") as file:  # noqa: PTH123  one that is not there is not made
        file.write(text)


def _members(folder: Path) -> list[int]:
    try:
        return [int(pid) for pid in (folder / "cgroup.procs").read_text().split() if pid != "0"]
    except OSError:
        return []


def _numbers(path: Path) -> dict[str, int]:
    try:
        return {name: int(number) for name, number in map(str.split, path.read_text().splitlines())}
    except (OSError, ValueError):
        return {}


def _born(pid: int) -> str:
    """Return when a process was started, in ticks since the machine was: a number alone may be another's by now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
