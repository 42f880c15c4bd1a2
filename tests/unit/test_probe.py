"""Named points: what a probe does at them, and how it is described."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import sys
import time

import pytest

from apothic.probe import EXIT_STATUS, POINTS, Probe, from_environment


def test_a_point_runs_its_deed_each_time_until_it_is_cleared() -> None:
    probe, seen = Probe(), list[str]()
    probe.on("append.before", lambda: seen.append("append"))
    for point in ("append.before", "append.after", "append.before"):
        probe.reach(point)
    probe.clear()
    probe.reach("append.before")
    assert seen == ["append", "append"]


def test_a_point_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match=r"append\.sometime.*append\.before"):
        Probe().on("append.sometime", lambda: None)
    with pytest.raises(KeyError, match="no probe point"):
        from_environment("append.sometime=exit")


@pytest.mark.parametrize(
    "text",
    ["commit.after", "commit.after=", "commit.after=explode", "commit.after=exit:0", "commit.after=exit:x",
     "commit.after=exit:1:2", "commit.after=stall", "commit.after=stall:soon", "commit.after=fail:-1"],
)  # fmt: skip
def test_a_deed_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="APOTHIC_PROBE"):
        from_environment(text)


def test_nothing_is_the_empty_probe() -> None:
    for text in ("", ","):
        for point in POINTS:
            from_environment(text).reach(point)


def test_exit_ends_the_process_at_the_nth_time() -> None:
    code = (
        "from apothic.probe import from_environment\n"
        "probe = from_environment('commit.after=exit:3,append.before=exit:9')\n"
        "for number in range(5):\n"
        "    print(number, flush=True)\n"
        "    probe.reach('commit.after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (EXIT_STATUS, ["0", "1", "2"])


def test_fail_raises_what_a_disk_does_once_at_the_nth_time_or_each_time() -> None:
    once, always = from_environment("blob.before=fail:2"), from_environment("blob.before=fail")
    once.reach("blob.before")
    for probe in (once, always, always):
        with pytest.raises(OSError, match="space") as caught:
            probe.reach("blob.before")
        assert caught.value.errno == errno.ENOSPC
    once.reach("blob.before")


def test_fail_in_a_transaction_speaks_as_sqlite_does() -> None:
    for point in ("commit.before", "append.before"):
        with pytest.raises(sqlite3.Error) as caught:
            from_environment(f"{point}=fail").reach(point)
        assert caught.value.sqlite_errorcode == sqlite3.SQLITE_IOERR


def test_stall_holds_up_the_thread() -> None:
    probe = from_environment("sweep.before=stall:0.05:2")
    begun = time.monotonic()
    probe.reach("sweep.before")
    probe.reach("sweep.before")
    assert time.monotonic() - begun >= 0.05


def test_every_point_says_what_is_true_there() -> None:
    assert len(POINTS) >= 25
    assert all(told and "." in point for point, told in POINTS.items())
