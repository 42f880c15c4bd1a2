"""Where control groups can be made: the agent's own group in each hierarchy of this machine, if it may write there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_CONTROLLERS = ("memory", "cpu", "pids")
_LEAF = "apothic-agent"


class Place(NamedTuple):
    """A folder below which groups may be made, and the version of its hierarchy."""

    path: Path
    version: int


class Mount(NamedTuple):
    """A mounted hierarchy: `root` is the group that is seen at `point`."""

    version: int
    controllers: frozenset[str]
    root: str
    point: Path


def find_places(mountinfo: str | None = None, own: str | None = None, *, switch: bool = True) -> dict[str, Place]:
    """Return where `memory`, `cpu`, `pids`, `freezer` and `kill` (version 2 alone) may be had.

    The texts are those of /proc/self/mountinfo and /proc/self/cgroup. Without `switch` nothing is switched on for it.
    """
    try:
        seen = list(mounts(Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo))
        groups = own_groups(Path("/proc/self/cgroup").read_text() if own is None else own)
    except (OSError, ValueError):
        return {}
    found: dict[str, Place] = {}
    for mount in seen:
        path = _below(mount, groups)
        if path is None or not os.access(path, os.W_OK):
            continue
        if mount.version == 2:
            path = path.parent if path.name == _LEAF else path
            for name in _delegated(path, switch):
                found.setdefault(name, Place(path, 2))
            found["kill"] = Place(path, 2)
        else:
            for name in mount.controllers & {*_CONTROLLERS, "freezer"}:
                found.setdefault(name, Place(path, 1))
    return found


def mounts(mountinfo: str) -> Iterator[Mount]:
    """Yield the hierarchies that are mounted. Raises `ValueError` on what is no mountinfo."""
    for line in mountinfo.splitlines():
        front, _, back = line.partition(" - ")
        kind, _, options = back.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, point = front.split(" ")[3:5]
            names = frozenset(options.split(",")) if kind == "cgroup" else frozenset[str]()
            yield Mount(2 if kind == "cgroup2" else 1, names, root, Path(point))


def own_groups(text: str) -> dict[str, str]:
    """Return a process's groups by controller; that of version 2 under the empty name."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        groups |= {name.removeprefix("name="): path for name in names.split(",")}
    return groups


def _below(mount: Mount, groups: dict[str, str]) -> Path | None:
    names = [""] if mount.version == 2 else [name for name in mount.controllers if name in groups]
    own = groups.get(names[0]) if names else None
    if own is None:
        return None
    with contextlib.suppress(ValueError):  # of another namespace: what is mounted here is not where we are
        path = mount.point / Path(own).relative_to(mount.root)
        if ".." not in path.parts and (path / "cgroup.procs").exists():
            return path
    return None


def _delegated(path: Path, switch: bool) -> list[str]:
    """Return the controllers of version 2 that groups below this one have, switched on here if need be and possible.

    A group with members may not hand controllers down; an agent that has one for itself moves into a leaf of it.
    """
    with contextlib.suppress(OSError):
        offered = set((path / "cgroup.controllers").read_text().split()) & set(_CONTROLLERS)
        if not offered:
            return []
        switched = path / "cgroup.subtree_control"
        if switch and not offered <= set(switched.read_text().split()):
            if (path / "cgroup.procs").read_text().split() == [str(os.getpid())]:
                leaf = path / _LEAF
                leaf.mkdir(exist_ok=True)
                (leaf / "cgroup.procs").write_text(f"{os.getpid()}")
            switched.write_text(" ".join(f"+{name}" for name in sorted(offered)))
        return sorted(offered & set(switched.read_text().split()))
    return []
