"""What must be true after a tempest, job by job: the promise, the store's row, its events, and the job's own book."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aftermath import opened

from apothic.protocol.messages import Failure
from apothic.protocol.session import Packed
from apothic.store.verdicts import CRASH_BUDGET, DRAIN_MOVES

ENDS = {"refuses": "failed", "slow": "timed_out", "endless": "cancelled"}  # the others succeed


@dataclass
class Promise:
    """One job that the server has acknowledged."""

    kind: str
    number: int
    cancelled: bool = False
    seen: str | None = None  # the status in which it was first seen ended
    checked: bool = False


@dataclass
class Told:
    ended: Counter[str] = field(default_factory=Counter)
    beside: int = 0


@dataclass
class Book:
    """What the attempts themselves wrote: which began, and which found an earlier one alive."""

    ran: dict[str, list[int]] = field(default_factory=dict)
    beside: list[tuple[str, int, float]] = field(default_factory=list)


def check(data_dir: Path, book: Path, promises: dict[str, Promise], given_up: list[tuple[float, float]]) -> Told:
    """Check every promise; return the figures of those that are new, and of overlaps that may be."""
    noted, told = read(book), Told()
    found = {row["id"]: row for row in _jobs(data_dir)}
    missing = [job for job in promises if job not in found]
    assert not missing, f"{len(missing)} acknowledged jobs are gone: {missing[:3]}"
    assert not (more := set(found) - set(promises)) or all(found[job]["attempt"] <= CRASH_BUDGET + 20 for job in more)
    for job, promise in promises.items():
        row = found[job]
        assert promise.seen in (None, row["status"]), f"{job} was {promise.seen} and is {row['status']}"
        promise.seen = row["status"]
        if not promise.checked:
            _check(promise, row, noted.ran.get(job, []), _lines(data_dir, row["seq"]))
            promise.checked = True
            told.ended[row["status"]] += 1
    for job, attempt, at in noted.beside:
        apart = any(begin <= at <= over for begin, over in given_up)
        assert apart, f"attempt {attempt} of {job} ran beside the one before, which nobody had given up"
    told.beside = len(noted.beside)
    (book / "book").unlink(missing_ok=True)
    return told


def read(book: Path) -> Book:
    """Read the book; an attempt that began twice is an error at once."""
    noted = Book()
    path = book / "book"
    for line in path.read_text().splitlines() if path.exists() else []:
        word, job, attempt, at = line.split()
        if word == "beside":
            noted.beside.append((job, int(attempt), float(at)))
        else:
            noted.ran.setdefault(job, []).append(int(attempt))
    for job, ran in noted.ran.items():
        assert len(set(ran)) == len(ran), f"{job} ran as attempts {ran}"
    return noted


def _jobs(data_dir: Path) -> list[dict[str, Any]]:
    columns = "seq, id, status, attempt, user_failures, crashes, drains, result, failure"
    with opened(data_dir) as connection:
        found = connection.execute(f"SELECT {columns} FROM jobs").fetchall()
    return [dict(zip(columns.split(", "), row, strict=True)) for row in found]


def _lines(data_dir: Path, seq: int) -> list[tuple[int, str]]:
    with opened(data_dir) as connection:
        logged = "SELECT attempt, data FROM events WHERE job = ? AND type = 'job.log' ORDER BY idx"
        return [(attempt, json.loads(data)["text"]) for attempt, data in connection.execute(logged, (seq,))]


def _check(promise: Promise, row: dict[str, Any], ran: list[int], lines: list[tuple[int, str]]) -> None:
    told = f"{promise} {row} ran as attempts {ran}, lines {lines[-3:]}"
    # Fenced: what an attempt says is stored under its own number, or not at all.
    assert all(int(text.split()[0]) == attempt for attempt, text in lines), told
    assert all(1 <= attempt <= row["attempt"] for attempt in ran), told
    assert promise.kind != "once" or len(ran) <= 1, told
    status = row["status"]
    if status == "succeeded" and promise.kind != "replays":
        value = msgspec.json.decode(msgspec.msgpack.decode(row["result"], type=Packed).data or b"")
        assert value == [promise.number, row["attempt"]], told
    if status == "cancelled":
        assert promise.cancelled, told
        return
    failure = msgspec.msgpack.decode(row["failure"], type=Failure) if row["failure"] is not None else None
    lost = failure is not None and failure.kind in ("worker_lost", "startup")
    if status == ENDS.get(promise.kind, "succeeded") and not lost:
        assert status == "timed_out" or row["attempt"] in ran, told
        return
    if promise.cancelled and status in ("failed", "succeeded") and promise.kind != "endless":
        return  # it ended before the cancellation took effect
    assert status == "failed" and lost, told
    spent = row["crashes"] >= CRASH_BUDGET or row["drains"] >= DRAIN_MOVES
    assert spent or promise.kind == "once", told
