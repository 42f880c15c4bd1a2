"""Where control groups may be made: read from what the kernel says of mounts and of the agent's own groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apothic.agent.places import Place, find_places, mounts, own_groups


def mounted(kind: str, root: str, point: Path, options: str = "rw") -> str:
    return f"31 24 0:27 {root} {point} rw,relatime shared:9 - {kind} cgroup {options}\n"


def group(path: Path, files: dict[str, str] | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in {"cgroup.procs": "1\n", **(files or {})}.items():
        (path / name).write_text(text)
    return path


def v2(path: Path, offered: str, on: str, procs: str = "1\n") -> Path:
    return group(path, {"cgroup.controllers": offered, "cgroup.subtree_control": on, "cgroup.procs": procs})


def test_version_1_is_a_hierarchy_for_each_controller(tmp_path: Path) -> None:
    text, own = "", ""
    for number, names in enumerate(["memory", "cpu,cpuacct", "pids", "freezer", "devices"]):
        group(tmp_path / names / "unit")
        text += mounted("cgroup", "/", tmp_path / names, f"rw,{names}")
        own += f"{number}:{names}:/unit\n"
    assert find_places(text, own) == {
        "memory": Place(tmp_path / "memory" / "unit", 1),
        "cpu": Place(tmp_path / "cpu,cpuacct" / "unit", 1),
        "pids": Place(tmp_path / "pids" / "unit", 1),
        "freezer": Place(tmp_path / "freezer" / "unit", 1),
    }


def test_version_2_has_what_was_delegated_and_switched_on(tmp_path: Path) -> None:
    here = v2(tmp_path / "unit", "cpu io memory pids\n", "cpu memory pids\n")
    places = find_places(mounted("cgroup2", "/", tmp_path), "0::/unit\n")
    assert places == {what: Place(here, 2) for what in ("cpu", "memory", "pids", "kill")}


def test_version_2_is_switched_on_by_an_agent_that_is_alone_from_a_leaf(tmp_path: Path) -> None:
    here = v2(tmp_path / "unit", "memory\n", "", f"{os.getpid()}\n")
    find_places(mounted("cgroup2", "/", tmp_path), "0::/unit\n")
    assert (here / "cgroup.subtree_control").read_text() == "+memory"  # the kernel makes a list of it
    assert (here / "apothic-agent" / "cgroup.procs").read_text() == str(os.getpid())


def test_who_only_looks_switches_nothing_on_and_stays_where_it_is(tmp_path: Path) -> None:
    here = v2(tmp_path / "unit", "memory pids\n", "pids\n", f"{os.getpid()}\n")
    places = find_places(mounted("cgroup2", "/", tmp_path), "0::/unit\n", switch=False)
    assert places == {what: Place(here, 2) for what in ("pids", "kill")}
    assert (here / "cgroup.subtree_control").read_text() == "pids\n"
    assert not (here / "apothic-agent").exists()


def test_an_agent_that_has_moved_into_its_leaf_knows_its_place(tmp_path: Path) -> None:
    here = v2(tmp_path / "unit", "memory\n", "memory\n")
    v2(here / "apothic-agent", "", "")
    assert find_places(mounted("cgroup2", "/", tmp_path), "0::/unit/apothic-agent\n")["memory"] == Place(here, 2)


def test_what_is_mounted_elsewhere_is_no_place(tmp_path: Path) -> None:
    group(tmp_path)
    text = mounted("cgroup", "/docker/abc", tmp_path, "rw,memory") + "22 1 0:21 / /proc rw - proc proc rw\n"
    assert find_places(text, "4:memory:/docker/abc\n") == {"memory": Place(tmp_path, 1)}
    assert find_places(text, "4:memory:/elsewhere\n") == {}
    assert find_places(text, "4:memory:/../..\n") == {}


@pytest.mark.parametrize(("mountinfo", "own"), [("", ""), ("x", "0::/"), ("", "no groups"), ("- cgroup", "")])
def test_what_cannot_be_read_offers_nothing(mountinfo: str, own: str) -> None:
    assert find_places(mountinfo, own) == {}


def test_names_and_controllers_are_told_apart() -> None:
    assert own_groups("9:name=systemd:/a\n2:cpu,cpuacct:/b\n0::/c\n") == {
        "systemd": "/a", "cpu": "/b", "cpuacct": "/b", "": "/c",
    }  # fmt: skip
    (one,) = mounts("31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n")
    assert (one.version, one.point) == (1, Path("/sys/fs/cgroup/cpu"))
