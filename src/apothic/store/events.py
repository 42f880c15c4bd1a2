"""A job's event log as it is written: one index over all types, and a window of the types that can flood."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec

from apothic.protocol import values
from apothic.protocol.events import END, ERROR, ITEM, LOG, RESULT, STATUS
from apothic.protocol.messages import JobLogs, LogLine
from apothic.protocol.session import Item, Line, Packed, Said
from apothic.store.tx import Tx, dumps

__all__ = ["END", "ERROR", "ITEM", "LOG", "RESULT", "STATUS"]

# Bytes that one job keeps of a type, blobs included; how many events is the function's stream_window.
BUDGETS = {LOG: 16 * 1024 * 1024, ITEM: 64 * 1024 * 1024}
# Bytes of items that wait for the one reader they are held for, before the generator does.
HELD_BYTES = 256 * 1024 * 1024
# Lines of output that the failure of a lost worker shows.
TAIL_LINES = 20
FOREVER = (1 << 63) - 1

Event = tuple[str, dict[str, Any] | str]  # the type, and the data: as a dict, or as JSON already
_raw = msgspec.json.Decoder(msgspec.Raw).decode


class Refused(Exception):
    """What an agent reported can never be stored; sent again, it would be refused again."""


def rows(job: int, attempt: int, first: int, events: Sequence[Event]) -> list[tuple[int, int, str, int, str]]:
    """Return the rows of events under indices from `first` on."""
    return [
        (job, first + n, kind, attempt, data if isinstance(data, str) else dumps(data))
        for n, (kind, data) in enumerate(events)
    ]


@dataclass
class Window:
    """What a job keeps of one type. `kept + lost` is how many there have been, and the number of the next."""

    kind: str
    kept: int = 0
    bytes: int = 0
    lost: int = 0
    trimmed: int = -1

    @property
    def count(self) -> int:
        return self.kept + self.lost

    def trim(self, tx: Tx, job: int, most: int, upto: int) -> None:
        """Let go of the oldest past `most` events or the type's bytes, none above index `upto`."""
        least = 1 if self.kind == ITEM else 0  # one item may be larger than all the bytes; who follows must see it
        if self.kept > most or self.bytes > BUDGETS[self.kind]:
            tx.reach("trim.before")
            last = self.trimmed
            for idx, size in tx.each("oldest_events", job=job, type=self.kind, trimmed=self.trimmed, upto=upto):
                if self.kept <= least or (self.kept <= most and self.bytes <= BUDGETS[self.kind]):
                    break
                last = idx
                self.kept, self.lost, self.bytes = self.kept - 1, self.lost + 1, self.bytes - size
            tx.run("trim_events", job=job, type=self.kind, trimmed=self.trimmed, upto=last)
            if self.kind == ITEM:
                tx.run("trim_event_blobs", job=job, upto=last)
            self.trimmed = last
            tx.reach("trim.after")
        tx.run(
            "set_window", job=job, type=self.kind, kept=self.kept, bytes=max(self.bytes, 0), lost=self.lost,
            trimmed=self.trimmed,
        )  # fmt: skip


def window(tx: Tx, job: int, kind: str) -> Window:
    """Return what a job keeps of one type."""
    row = tx.one("window", job=job, type=kind)
    return Window(kind, *row) if row is not None else Window(kind)


def append(
    tx: Tx, job: dict[str, Any], said: Sequence[Said], *, sent: int = FOREVER, anew: bool = False
) -> Window | None:
    """Store what an attempt printed and yielded, in order, and let go of the oldest, in the same transaction.

    Items above `sent` are kept, whatever the window says. An item whose number was stored already is passed over: the
    attempt runs a generator once more from its start; with `anew`, its items count from 0 beside those of earlier
    attempts. Returns the window of items, if there were any. Raises `Refused` for what can never be stored.
    """
    windows: dict[str, Window] = {}
    seq, attempt = job["seq"], job["attempt"]
    rows: list[tuple[str, str, int, str | None]] = []
    for one in said:
        kind = LOG if isinstance(one, Line) else ITEM
        kept = windows.get(kind)
        if kept is None:
            kept = windows[kind] = window(tx, seq, kind)
        if isinstance(one, Line):
            text, blob, size = _line(one, kept.count, attempt), None, 0
        else:
            if not anew and one.index != kept.count:
                if one.index < kept.count:
                    continue
                raise Refused(f"item {one.index} was reported before item {kept.count}")
            text, blob, size = _item(one, attempt), one.value.sha256, one.value.size
        rows.append((kind, text, size, blob))
        kept.kept += 1
        kept.bytes += len(text) + (size if blob else 0)
    if rows:
        tx.reach("append.before")
        job["next_index"] = _insert(tx, seq, attempt, rows)
        tx.reach("append.after")
        for kept in windows.values():
            kept.trim(tx, seq, job["stream_window"], sent if kept.kind == ITEM else FOREVER)
    return windows.get(ITEM)


def _insert(tx: Tx, job: int, attempt: int, rows: list[tuple[str, str, int, str | None]]) -> int:
    """Store rows under the next indices; return the one after them."""
    given = tx.one("take_indices", job=job, n=len(rows))
    assert given is not None, f"job {job} is in the table"
    first = given[0] - len(rows)
    place = first
    for kind, run in groupby(rows, key=itemgetter(0)):
        texts = [text for _, text, _, _ in run]
        tx.run("insert_events", job=job, first=place, type=kind, attempt=attempt, texts=dumps(texts))
        place += len(texts)
    named = [(job, first + n, blob, size) for n, (_, _, size, blob) in enumerate(rows) if blob is not None]
    if named:
        tx.many("insert_event_blob", named)
    return int(given[0])


def _line(line: Line, number: int, attempt: int) -> str:
    data: dict[str, Any] = {"stream": line.stream, "text": line.text, "attempt": attempt, "at": line.at, "line": number}
    if line.cont:
        data["cont"] = True
    return dumps(data)


def _item(item: Item, attempt: int) -> str:
    return f'{{"item_index":{item.index},"attempt":{attempt},{value_text(item.value)}}}'


def value_text(value: Packed) -> str:
    """Return the member of an event's data that holds a value: `"value":…`, or `"ref":…` for one in a blob.

    JSON is put in as it was packed, on one line: decoding and encoding it again would be most of the cost of an item.
    Raises `Refused` when it is no JSON.
    """
    if value.encoding != "json" or value.data is None:
        name = "value" if value.data is not None else "ref"
        return f'"{name}":{dumps(values.to_wire(value, binary=False))}'
    try:
        _raw(value.data)
        text = value.data.decode()
        if "\n" in text or "\r" in text:
            text = dumps(msgspec.json.decode(text))
    except (ValueError, RecursionError) as error:
        raise Refused(f"a value is announced as JSON and is none: {error}") from error
    return f'"value":{{"encoding":"json","data":{text}}}'


def release(tx: Tx, job: int, most: int) -> None:
    """Let go of what was kept for one reader: the ordinary window holds again."""
    items = window(tx, job, ITEM)
    if items.kept:
        items.trim(tx, job, most, FOREVER)


# --- read -------------------------------------------------------------------------------------------------------


def tail(tx: Tx, job: int) -> str:
    """Return the last lines of a job's output."""
    rows = tx.all("last_lines", job=job, limit=TAIL_LINES)
    return "\n".join(msgspec.json.decode(row["data"])["text"] for row in reversed(rows))


def read_logs(tx: Tx, job: sqlite3.Row, *, after: int, limit: int) -> JobLogs:
    """Return retained lines with a number above `after`."""
    at = tx.one("log_line_at", job=job["seq"], line=after) if after >= 0 else None
    rows = tx.all("log_lines", job=job["seq"], after_index=at[0] if at is not None else -1, limit=limit)
    kept = tx.one("window", job=job["seq"], type=LOG)
    lines = [msgspec.convert(msgspec.json.decode(row["data"]) | {"index": row["idx"]}, LogLine) for row in rows]
    return JobLogs(
        lines=lines,
        trimmed=kept["lost"] if kept is not None else 0,
        ended=job["ended_at"] is not None and len(rows) < limit,
    )
