"""Named points where a test may listen, stall or break. In production a point is one dictionary look-up.

A process of its own takes its probe from the environment, `point=deed` pairs separated by commas:

* `commit.after=exit` ends it there with `os._exit(86)`; `commit.after=exit:7` at the seventh time;
* `commit.after=stall:0.5` holds its thread up for so many seconds each time; `stall:0.5:7` at the seventh time;
* `append.before=fail` raises what a broken disk does, each time; `fail:7` at the seventh time.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable
from functools import partial

# What a point inside a transaction interrupts is whole or absent after it.
POINTS = {
    "submit.before": "a submit was checked, its job is no row yet",
    "submit.after": "the job and its first event are in the transaction",
    "append.before": "output of an attempt was checked, none of it is stored",
    "append.after": "output is stored, the window is not yet trimmed",
    "trim.before": "the window is too full",
    "trim.after": "the oldest events are gone from it",
    "move.before": "a job is about to change its state",
    "move.after": "the state has changed, its events are not yet stored",
    "finish.before": "an attempt has an end, its job not yet",
    "finish.after": "the job has its end, and its three last events",
    "cancel.before": "an end was asked for, nothing is noted",
    "cancel.after": "the cancel is in the transaction",
    "claim.before": "a job was picked for a container",
    "claim.after": "the job has its attempt, and its lease",
    "release.before": "an attempt is about to give its lease back",
    "release.after": "the lease is gone, the container may be idle",
    "renew.before": "an agent asks for another term of its leases",
    "renew.after": "all its leases have it",
    "hello.before": "an agent said hello",
    "hello.after": "what it has and what the store knows agree",
    "hold.before": "a reader's hold is about to be renewed or ended",
    "hold.after": "it is",
    "sweep.before": "leases are about to be looked through",
    "sweep.after": "those that ran out are ended",
    "dispatch.before": "the queue has changed, nothing is placed",
    "dispatch.after": "all that can be placed is",
    "tick.before": "a schedule's tick is due",
    "tick.after": "the tick is noted, with its job if it has one",
    "collect.before": "a blob that nobody wants has no row any more, and still its file",
    "collect.after": "the file is gone too",
    "blob.write.before": "no byte of a blob is on disk",
    "blob.write.after": "all bytes are on disk, not yet checked",
    "blob.before": "a blob's bytes are on disk and checked, under a temporary name",
    "blob.after": "the blob has its name, and no row",
    "commit.before": "the writer's batch is done, not yet committed",
    "commit.after": "committed, nobody told",
    "page.read": "a reader looks at a page of a job's events",
    "dispatch.push": "claimed and committed, the agent not yet told",
    "hello.reply": "an agent's hello is committed, it is not yet welcomed",
    "report.reply": "an agent's report is committed, its acknowledgement not yet sent",
    "renew.reply": "another term is committed, the agent not yet told",
    "submit.reply": "a submit is committed and not yet answered",
    "submit_batch.reply": "so is a batch",
    "cancel.reply": "so is a cancel",
    "put_blob.reply": "so is a blob",
    "deploy.reply": "so is a deployment",
    "events.reply": "a page of events was read and not yet sent",
}

_OUTSIDE = ("blob.", "collect.", "dispatch.push")  # of any transaction

EXIT_STATUS = 86
Deed = Callable[[], None]


class Probe:
    """Holds what shall happen at each point; empty unless a test fills it."""

    def __init__(self) -> None:
        self._deeds: dict[str, Deed] = {}

    def reach(self, point: str) -> None:
        """Say that the program is at `point`."""
        deed = self._deeds.get(point)
        if deed is not None:
            deed()

    def on(self, point: str, deed: Deed) -> None:
        """Run `deed` each time `point` is reached. Raises `KeyError` for a point that does not exist."""
        if point not in POINTS:
            raise KeyError(f"no probe point is called {point!r}; there are {', '.join(POINTS)}")
        self._deeds[point] = deed

    def clear(self) -> None:
        """Let nothing happen anywhere any more."""
        self._deeds.clear()


def from_environment(text: str) -> Probe:
    """Make the probe that `APOTHIC_PROBE` describes. Raises `ValueError` or `KeyError` for what it cannot read."""
    probe = Probe()
    for pair in filter(None, text.split(",")):
        point, _, deed = pair.partition("=")
        probe.on(point, _deed(pair, point, *deed.split(":")))
    return probe


def _deed(pair: str, point: str, word: str, *numbers: str) -> Deed:
    try:
        match word, numbers:
            case "exit", ():
                return _at(1, _exit)
            case "exit", (nth,):
                return _at(_count(nth), _exit)
            case "fail", ():
                return partial(_fail, point)
            case "fail", (nth,):
                return _at(_count(nth), partial(_fail, point))
            case "stall", (seconds,):
                return _stall(float(seconds))
            case "stall", (seconds, nth):
                return _at(_count(nth), _stall(float(seconds)))
    except ValueError as error:
        raise ValueError(f"APOTHIC_PROBE: {pair!r} has a wrong number: {error}") from None
    raise ValueError(f"APOTHIC_PROBE: {pair!r} is none of point=exit[:n], point=stall:seconds[:n], point=fail[:n]")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"{text} is not a count from 1")
    return number


def _at(nth: int, deed: Deed) -> Deed:
    left = nth

    def counted() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            deed()

    return counted


def _exit() -> None:
    os._exit(EXIT_STATUS)


def _stall(seconds: float) -> Deed:
    return lambda: _wait(seconds)


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def _fail(point: str) -> None:
    # Of files a disk speaks through the system, of the store's rows through SQLite.
    if point.startswith(_OUTSIDE) or point.endswith(".reply"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    raise error
