"""A job's event log: one index over logs, status, result, error and end; a window of the types that can flood."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from apothic.protocol.messages import JobLogs, LogLine
from apothic.protocol.session import Line
from apothic.store.db import Tx, dumps

LOG, STATUS, RESULT, ERROR, END = "job.log", "job.status", "job.result", "job.error", "job.end"
# Bytes of log text that one job keeps; lines are limited by the function's stream_window.
LOG_BYTES = 16 * 1024 * 1024
# Lines of output that the failure of a lost worker shows.
TAIL_LINES = 20

Event = tuple[str, dict[str, Any]]


def store(tx: Tx, job: int, attempt: int, next_index: int, events: Sequence[Event]) -> None:
    """Store events under the last indices that the job has given out, which end before `next_index`."""
    first = next_index - len(events)
    tx.many("insert_event", [(job, first + n, kind, attempt, dumps(data)) for n, (kind, data) in enumerate(events)])


def append_lines(tx: Tx, job: int, attempt: int, lines: Sequence[Line], window: int) -> None:
    """Store lines of output and let go of the oldest past the window, in the same transaction."""
    if not lines:
        return
    row = tx.one("window", job=job, type=LOG)
    kept, size, lost, trimmed = tuple(row) if row is not None else (0, 0, 0, -1)
    events: list[Event] = []
    for n, line in enumerate(lines):
        data: dict[str, Any] = {"stream": line.stream, "text": line.text, "attempt": attempt, "at": line.at}
        data["line"] = kept + lost + n
        if line.cont:
            data["cont"] = True
        events.append((LOG, data))
    indices = tx.one("take_indices", job=job, n=len(events))
    assert indices is not None, f"job {job} is in the table"
    store(tx, job, attempt, indices[0], events)
    kept += len(events)
    size += sum(len(dumps(data)) for _, data in events)
    while kept > window or size > LOG_BYTES:
        oldest = tx.all("oldest_events", job=job, type=LOG, trimmed=trimmed, n=max(kept - window, 1))
        tx.run("trim_events", job=job, type=LOG, trimmed=trimmed, upto=oldest[-1]["idx"])
        trimmed = oldest[-1]["idx"]
        kept -= len(oldest)
        lost += len(oldest)
        size -= sum(row["bytes"] for row in oldest)
    tx.run("set_window", job=job, type=LOG, kept=kept, bytes=max(size, 0), lost=lost, trimmed=trimmed)


def tail(tx: Tx, job: int) -> str:
    """Return the last lines of a job's output."""
    rows = tx.all("last_lines", job=job, limit=TAIL_LINES)
    return "\n".join(msgspec.json.decode(row["data"])["text"] for row in reversed(rows))


def read_logs(tx: Tx, job: sqlite3.Row, *, after: int, limit: int) -> JobLogs:
    """Return retained lines with a number above `after`."""
    at = tx.one("log_line_at", job=job["seq"], line=after) if after >= 0 else None
    rows = tx.all("log_lines", job=job["seq"], after_index=at[0] if at is not None else -1, limit=limit)
    window = tx.one("window", job=job["seq"], type=LOG)
    lines = [msgspec.convert(msgspec.json.decode(row["data"]) | {"index": row["idx"]}, LogLine) for row in rows]
    return JobLogs(
        lines=lines,
        trimmed=window["lost"] if window is not None else 0,
        ended=job["ended_at"] is not None and len(rows) < limit,
    )
