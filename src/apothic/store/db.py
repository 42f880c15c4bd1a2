"""The database: open, pragmas, migrations, one writer that shares commits, readers beside it.

All writes go through one thread. It takes whatever waits, runs each as a savepoint of one transaction, lets the
dispatcher have the last word, and commits once for all: a commit with `synchronous=FULL` costs 0.4 ms whether it
holds one write or a hundred. Nobody is told anything before the commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from apothic.errors import ApothicError, ConfigError, ServerUnavailableError, StorageFullError
from apothic.probe import Probe
from apothic.protocol.lifecycle import ARROWS, FINAL, LEASED, Status
from apothic.store.queries import invariants, migrations, queries

T = TypeVar("T")
log = logging.getLogger("apothic.store")

# RETURNING and STRICT came with 3.37, UPDATE … FROM with 3.33.
OLDEST_SQLITE = (3, 37, 0)
# A batch this large commits in about 20 ms; more would make the first writer in it wait.
LARGEST_BATCH = 256
MIB = 1024 * 1024
_encode_json = msgspec.json.Encoder().encode


class Tx:
    """What a write may do: run named queries, and say what shall happen once it is on disk."""

    def __init__(self, connection: sqlite3.Connection, probe: Probe) -> None:
        self._connection = connection
        self._queries = queries()
        self.reach = probe.reach
        self.after: list[Callable[[], None]] = []
        self.queue_changed = False

    def run(self, query: str, **values: Any) -> int:
        """Run a query for its effect; return how many rows it changed."""
        return self._connection.execute(self._queries[query], values).rowcount

    def many(self, query: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Run a query once for each row of positional values."""
        self._connection.executemany(self._queries[query], rows)

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

    def then(self, deed: Callable[[], None]) -> None:
        """Do this on the event loop after the commit, and only then."""
        self.after.append(deed)


class _Write:
    """One waiting write: what to run, and who waits for it."""

    def __init__(self, fn: Callable[[Tx], Any], done: asyncio.Future[Any]) -> None:
        self.fn = fn
        self.done = done
        self.result: Any = None
        self.error: BaseException | None = None
        self.cause: Exception | None = None  # the same, in SQLite's words

    def fail(self, error: Exception) -> None:
        """Note why it was not made; the first reason counts."""
        if self.error is None:
            self.error, self.cause = named_error(error), error


class Database:
    """One SQLite file. `write` shares commits; `read` sees only what is committed."""

    def __init__(self, path: Path, *, probe: Probe, durable: bool = True) -> None:
        self.path = path
        self._probe = probe
        self._durable = durable
        self._waiting: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._local = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="apothic-reader")
        self.last_word: Callable[[Tx], None] | None = None
        self.commits = 0

    def open(self) -> None:
        """Create or migrate the file and start the writer. Raises `ConfigError` when it cannot be used."""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise ConfigError(
                f"this Python has SQLite {sqlite3.sqlite_version}, too old",
                hint="use a Python whose sqlite3 module has SQLite 3.37 or newer",
            )
        connection = self._opened()
        self._loop = asyncio.get_running_loop()
        self._writer = threading.Thread(target=self._write_all, args=(connection,), name="apothic-writer", daemon=True)
        self._writer.start()

    async def close(self) -> None:
        """Finish what waits, then close every connection."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._waiting.put(None)
            await asyncio.to_thread(writer.join)
        self._readers.shutdown(wait=True)
        for connection in self._reader_connections:
            connection.close()

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` in a transaction; return its result once that is on disk.

        An exception of `fn` undoes what it did and is raised here. A caller that is cancelled while waiting does not
        undo anything: the write is made or not made as a whole.
        """
        if self._writer is None:
            raise ServerUnavailableError("the store is closed")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.put(_Write(fn, done))
        return await done

    async def read(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` on a read-only connection, in one snapshot. Raises `StorageFullError` when the disk fails."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, fn)
        except sqlite3.Error as error:
            raise named_error(error) from error

    def _opened(self) -> sqlite3.Connection:
        """Return the writer's connection to a file that is ready for use."""
        connection: sqlite3.Connection | None = None
        try:
            write_again(self.path.with_name(self.path.name + "-wal"))
            connection = self._connect()
            migrate(connection)
            fill_lifecycle(connection)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if not isinstance(error, sqlite3.Error | OSError):
                raise
            raise ConfigError(
                f"the database {self.path} cannot be opened: {error}",
                hint="check that the data directory is on a local disk and writable, or choose another --data-dir",
            ) from error
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=256)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA busy_timeout = 10000")
            connection.execute("PRAGMA temp_store = MEMORY")
            # 8 MiB of pages: the hot rows of 10^5 jobs; the default of 2 MiB rereads them.
            connection.execute("PRAGMA cache_size = -8192")
        except BaseException:
            connection.close()
            raise
        return connection

    def _read(self, fn: Callable[[Tx], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.execute("PRAGMA query_only = ON")
            self._local.connection = connection
            self._reader_connections.append(connection)
        try:
            connection.execute("BEGIN")
            return fn(Tx(connection, self._probe))
        finally:
            if connection.in_transaction:  # a fault may have ended it
                connection.execute("COMMIT")

    # --- the writer's thread ------------------------------------------------------------------------------------

    def _write_all(self, connection: sqlite3.Connection) -> None:
        open_for_more, faulted = True, False
        while open_for_more:
            first = self._waiting.get()
            batch = [] if first is None else [first]
            open_for_more = first is not None
            while open_for_more and len(batch) < LARGEST_BATCH:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                open_for_more = more is not None
                if more is not None:
                    batch.append(more)
            if batch:
                if faulted:
                    connection = self._fresh(connection)
                after = self._commit(connection, batch)
                faulted = any(_faulty(write.cause) for write in batch)
                self._tell(batch, after)
        connection.close()

    def _fresh(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Return a connection that has read nothing through a fault; the old one while there is no other.

        A page that was read short would be believed for ever, as long as a connection has it in memory. The new one is
        there before the old one goes: the last to leave would write the log into the database.
        """
        try:
            fresh = self._connect()
        except sqlite3.Error as error:
            log.warning("store.fault error=%s", error)
            return connection
        connection.close()
        return fresh

    def _commit(self, connection: sqlite3.Connection, batch: list[_Write]) -> list[Callable[[], None]]:
        """Run and commit a batch; return what shall be done now that it is on disk."""
        after: list[Callable[[], None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            queue_changed = False
            for write in batch:
                tx = Tx(connection, self._probe)
                self._run_one(connection, write, tx)
                if write.error is None:
                    after += tx.after
                    queue_changed |= tx.queue_changed
            if queue_changed and self.last_word is not None:
                after += self._run_last_word(connection, self.last_word)
            self._probe.reach("commit.before")
            connection.execute("COMMIT")
            self._probe.reach("commit.after")
            self.commits += 1
        except Exception as error:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # it is undone in any case
                    connection.execute("ROLLBACK")
            for write in batch:
                write.fail(error)
            return []
        return after

    def _run_one(self, connection: sqlite3.Connection, write: _Write, tx: Tx) -> None:
        connection.execute("SAVEPOINT one")
        try:
            write.result = write.fn(tx)
        except Exception as error:
            if not connection.in_transaction:  # a full disk undoes the whole transaction by itself
                raise
            connection.execute("ROLLBACK TO one")
            write.fail(error)
        connection.execute("RELEASE one")

    def _run_last_word(
        self, connection: sqlite3.Connection, last_word: Callable[[Tx], None]
    ) -> list[Callable[[], None]]:
        """Let the dispatcher place what the batch made ready, in the same transaction."""
        tx = Tx(connection, self._probe)
        connection.execute("SAVEPOINT last_word")
        try:
            last_word(tx)
        except Exception as error:
            if not connection.in_transaction or _faulty(error):
                raise
            # What was submitted is kept, and placed by a later round: a slip of the dispatcher must not lose it.
            log.exception("dispatch.failed")
            connection.execute("ROLLBACK TO last_word")
            tx.after.clear()
        connection.execute("RELEASE last_word")
        return tx.after

    def _tell(self, batch: list[_Write], after: list[Callable[[], None]]) -> None:
        def tell() -> None:
            for write in batch:
                if write.done.done():
                    continue
                if write.error is not None:
                    write.done.set_exception(write.error)
                else:
                    write.done.set_result(write.result)
            for deed in after:
                deed()

        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(tell)


def named_error(error: Exception) -> Exception:
    """Turn what SQLite says into one of our errors, where it is one."""
    if isinstance(error, ApothicError):
        return error
    if _code(error) == sqlite3.SQLITE_FULL:
        return StorageFullError(
            f"the data directory cannot take more: {error}",
            hint="free some space; what was acknowledged is safe, and the server goes on by itself",
        )
    if _faulty(error):
        return StorageFullError(
            f"the data directory's disk fails: {error}",
            hint="see that the disk has space and is in order; what was acknowledged is safe, and the server goes on "
            "by itself",
        )
    return error


def _code(error: Exception | None) -> int:
    """Return SQLite's primary code of an error, or 0."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _faulty(error: Exception | None) -> bool:
    """Tell whether a disk, not a statement, is at fault."""
    return _code(error) in (
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
    )


def write_again(wal: Path) -> None:
    """Write and sync the log that a process before this one has left, as it is seen. Raises `OSError`.

    After a sync that failed, Linux shows what was written, takes it for clean, and will never write it: SQLite would
    find transactions in the log that are not on the disk, and build upon them what the next power cut takes with them
    (https://lwn.net/Articles/752063/).
    """
    with contextlib.suppress(FileNotFoundError), wal.open("r+b") as file:
        while seen := file.read(MIB):
            file.seek(-len(seen), os.SEEK_CUR)
            file.write(seen)
        file.flush()
        os.fsync(file.fileno())


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest schema, each step in a transaction of its own."""
    have: int = connection.execute("PRAGMA user_version").fetchone()[0]
    steps = migrations()
    if have > steps[-1][0]:
        raise ConfigError(
            f"the data directory was written by a newer apothic (schema {have}, this one knows {steps[-1][0]})",
            hint="upgrade apothic-runtime, or use another --data-dir",
        )
    for number, sql in steps:
        if number > have:
            connection.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")


def fill_lifecycle(connection: sqlite3.Connection) -> None:
    """Write the lifecycle table into the database, so that SQL never repeats it."""
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO statuses (status, final, leased) VALUES (?, ?, ?) "
        "ON CONFLICT (status) DO UPDATE SET final = excluded.final, leased = excluded.leased",
        [(status.value, status in FINAL, status in LEASED) for status in Status],
    )
    connection.execute("DELETE FROM arrows")
    connection.executemany(
        "INSERT INTO arrows (move, source, target) VALUES (?, ?, ?)",
        [(move.value, source.value, target.value) for move, row in ARROWS.items() for source, target in row.items()],
    )
    connection.execute("COMMIT")


def audit(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Run the auditor's rules; return for each broken one the first ten ids that break it."""
    broken = {
        name: [str(row[0]) for row in connection.execute(sql).fetchmany(10)] for name, sql in invariants().items()
    }
    return {name: ids for name, ids in broken.items() if ids}


def dumps(value: Any) -> str:
    """Return compact JSON, as events keep it."""
    return _encode_json(value).decode()
