"""What code of the store sees of a transaction, whether it writes or reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from apothic.probe import Probe
from apothic.store.queries import queries

T = TypeVar("T")
_encode_json = msgspec.json.Encoder().encode


class Tx:
    """What a write may do: run named queries, and say what shall happen once it is on disk."""

    def __init__(self, connection: sqlite3.Connection, probe: Probe) -> None:
        self._connection = connection
        self._queries = queries()
        self.reach = probe.reach
        self.rows = 0  # written, as far as is known
        self.before: list[Callable[[], None]] = []
        self.after: list[Callable[[], None]] = []
        self.queue_changed = False  # jobs may have to be placed
        self.fleet_changed = False  # so may containers

    def run(self, query: str, **values: Any) -> int:
        """Run a query for its effect; return how many rows it changed."""
        self.rows += 1
        return self._connection.execute(self._queries[query], values).rowcount

    def many(self, query: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run a query once for each row of positional values; return how many rows it changed in all."""
        self.rows += len(rows)
        return self._connection.executemany(self._queries[query], rows).rowcount

    def one(self, query: str, **values: Any) -> sqlite3.Row | None:
        """Return the first row, or `None`."""
        cursor = self._connection.execute(self._queries[query], values)
        row: sqlite3.Row | None = cursor.fetchone()
        cursor.close()  # a statement that still has rows would hold the savepoint open
        return row

    def all(self, query: str, **values: Any) -> list[sqlite3.Row]:
        """Return every row."""
        return self._connection.execute(self._queries[query], values).fetchall()

    def each(self, query: str, **values: Any) -> Iterator[sqlite3.Row]:
        """Yield rows one by one; whoever leaves early has not read the rest."""
        cursor = self._connection.execute(self._queries[query], values)
        try:
            yield from cursor
        finally:
            cursor.close()

    def guarded(self, deed: Callable[[], T]) -> T:
        """Do it as a whole or not at all; an exception undoes what it did, and nothing else, and is raised."""
        self._connection.execute("SAVEPOINT guarded")
        try:
            done = deed()
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK TO guarded")
                self._connection.execute("RELEASE guarded")
            raise
        self._connection.execute("RELEASE guarded")
        return done

    def finish(self) -> None:
        """Do what was left for the end of this write."""
        deeds, self.before = self.before, []
        for deed in deeds:
            deed()

    def at_end(self, deed: Callable[[], None]) -> None:
        """Do this when the write has done all else, still as a part of it."""
        self.before.append(deed)

    def then(self, deed: Callable[[], None]) -> None:
        """Do this on the event loop after the commit, and only then."""
        self.after.append(deed)


def dumps(value: Any) -> str:
    """Return compact JSON, as events keep it."""
    return _encode_json(value).decode()
