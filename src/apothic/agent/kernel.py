"""What this machine's kernel offers to hold containers in, and what of it is used: for `apothic doctor`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

from apothic.agent.cgroup import Level, level_here
from apothic.agent.tree import lists_children
from apothic.protocol.findings import Finding, State

_PR_GET_CHILD_SUBREAPER = 37
_LANDLOCK_CREATE_RULESET = 444  # the number is the same on every architecture
_LANDLOCK_VERSION = 1


def probe_host() -> list[Finding]:
    """Look at what containers are held in here: limits, kills, sandboxes."""
    level = level_here()
    return [*_limits(level), _trees(level.kill), _sandbox()]


def _limits(level: Level) -> Iterator[Finding]:
    if level.memory:
        yield Finding("memory", State.OK, f"memory_mb is a hard limit ({level.memory})")
    else:
        hint = "run the agent where it may make control groups: as root, or in a systemd unit with Delegate=yes"
        yield Finding("memory", State.NOTE, "memory_mb is watched: ten samples a second, then SIGKILL", hint)
    cpu = f"cpu is a weight ({level.cpu})" if level.cpu else "cpu is planned with, and not enforced"
    pids = f"processes are limited ({level.pids})" if level.pids else "processes are not limited"
    yield Finding("processor", State.OK if level.cpu and level.pids else State.NOTE, f"{cpu}; {pids}")


def _trees(kill: str) -> Finding:
    ways = [
        f"{kill} of a container's group" if kill else "SIGKILL to a container's process group",
        "child subreaper" if _subreaper() else "no child subreaper",
        "/proc lists children" if lists_children() else "/proc is searched for children",
    ]
    return Finding("process trees", State.OK if kill else State.NOTE, ", ".join(ways))


def _sandbox() -> Finding:
    abi = _landlock()
    found = [f"Landlock ABI {abi}" if abi else "no Landlock"]
    found.append("seccomp" if Path("/proc/sys/kernel/seccomp/actions_avail").exists() else "no seccomp")
    found.append("user namespaces" if _number("/proc/sys/user/max_user_namespaces") else "no user namespaces")
    return Finding("sandbox", State.OK if abi else State.NOTE, ", ".join(found))


def _subreaper() -> bool:
    seen = ctypes.c_int()
    return bool(ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(seen), 0, 0, 0) == 0)


def _landlock() -> int:
    """Return the version of Landlock's interface; 0 when there is none."""
    return max(0, int(ctypes.CDLL(None).syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)))


def _number(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return 0
