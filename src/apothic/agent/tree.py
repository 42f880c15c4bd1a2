"""Process trees, read from /proc: what lives below a process, and how much memory it holds."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from apothic.clock import Clock

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")  # a second
_LISTS_CHILDREN = Path("/proc/thread-self/children").exists()  # a kernel option
_PAUSE_S = 0.002


def lists_children() -> bool:
    """Tell whether the kernel lists the children of a process; without it every process has to be looked at."""
    return _LISTS_CHILDREN


def children(pid: int) -> list[int]:
    """Return the direct children of a process, dead ones that nobody has collected included."""
    if not _LISTS_CHILDREN:
        return [child for child in _pids() if _parent(child) == pid]
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split())
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def _parent(pid: int) -> int | None:
    try:
        # After the name, which is in brackets and may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def below(pid: int) -> Iterator[int]:
    """Yield every descendant of a process."""
    for child in children(pid):
        yield child
        yield from below(child)


def younger(pid: int, than_s: float) -> list[int]:
    """Return the descendants of a process that were born in the last `than_s` seconds."""
    # The kernel counts births in ticks; a moment too many only finds what an earlier job has just left.
    since = (float(Path("/proc/uptime").read_text().split()[0]) - than_s) * _TICKS - 2
    return [child for child in below(pid) if (_born(child) or 0) >= since]


def _born(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return None


def resident(pid: int) -> int:
    """Return the bytes that one process holds in memory; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def tree_resident(pid: int) -> int:
    """Return the bytes that a process and all below it hold in memory. Pages they share count for each."""
    return resident(pid) + sum(map(resident, below(pid)))


def proportional(pid: int) -> int:
    """Return the bytes that one process holds in memory, its part of each shared page; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:  # a program that gains privileges shows its size only
        pass
    return resident(pid)


def tree_proportional(pid: int) -> int:
    """Return the bytes that a process and all below it hold in memory. Pages they share count once.

    The kernel walks the page tables for it: milliseconds for each GB, where `tree_resident` takes microseconds.
    """
    return proportional(pid) + sum(map(proportional, below(pid)))


class Leftovers:
    """Finds what dead containers and zygotes have left behind: every child of this process that is in another session
    and is neither live nor was here before us. A live container keeps its orphans, so nothing else can be meant.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pid = os.getpid()
        self._session = os.getsid(0)
        self._bystanders = set(children(self._pid))

    async def end(self, live: Callable[[], Iterable[int]]) -> None:
        """Kill and collect them, those below them too, until none is left.

        `live` is asked at each look: a container that is started meanwhile is no leftover.
        """
        while found := self._find(set(live())):
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            waiting = [pid for pid in found if not _collected(pid)]
            if waiting:
                await self._clock.sleep(_PAUSE_S)

    def _find(self, live: set[int]) -> list[int]:
        found = []
        for pid in children(self._pid):
            if pid not in live and pid not in self._bystanders:
                with contextlib.suppress(ProcessLookupError):
                    if os.getsid(pid) != self._session:
                        found.append(pid)
        return found


def _collected(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def end_marked(prefix: str, name: str) -> list[int]:
    """Kill every process whose environment says that `name` starts with `prefix`; return their pids.

    For what an agent that was killed has left behind: nobody else knows of it.
    """
    wanted = f"{name}={prefix}".encode()
    found = []
    for pid in _pids():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if pid != os.getpid() and any(variable.startswith(wanted) for variable in variables):
                os.kill(pid, signal.SIGKILL)
                found.append(pid)
        except OSError:
            continue
    return found
