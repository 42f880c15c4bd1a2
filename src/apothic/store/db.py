"""The database: open, pragmas, migrations, one writer that shares commits, readers beside it.

Statements of writes run on the event loop, some microseconds each: handing each write to a thread cost two switches
between cores, and at every step of SQLite a fight for the interpreter lock, more than the statements themselves. The
commit, which waits for the disk, runs in a thread beside the loop. Whatever is there when it ends is the next batch: a
commit with `synchronous=FULL` costs 0.2 to 0.4 ms whether it holds one write or a hundred. Nobody is told anything
before the commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from apothic.errors import ApothicError, ConfigError, ServerUnavailableError, StorageFullError
from apothic.probe import Probe
from apothic.protocol.lifecycle import ARROWS, FINAL, LEASED, Status
from apothic.store.queries import invariants, migrations, queries

T = TypeVar("T")
log = logging.getLogger("apothic.store")

# RETURNING and STRICT came with 3.37, UPDATE … FROM with 3.33.
OLDEST_SQLITE = (3, 37, 0)
# As many rows as one transaction may write before it is committed, though more waits: some 10 ms, in which the loop
# does nothing else.
LARGEST_BATCH = 1_000
BUSY_MS = 10_000
MIB = 1024 * 1024
_encode_json = msgspec.json.Encoder().encode


class Early(NamedTuple):
    """What is begun beside a commit, and what is done if that fails."""

    deed: Callable[[], None]
    undo: Callable[[], None]


class Tx:
    """What a write may do: run named queries, and say what shall happen once it is on disk."""

    def __init__(self, connection: sqlite3.Connection, probe: Probe) -> None:
        self._connection = connection
        self._queries = queries()
        self.reach = probe.reach
        self.rows = 0  # written, as far as is known
        self.before: list[Callable[[], None]] = []
        self.early: list[Early] = []
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

    def at_once(self, deed: Callable[[], None], undo: Callable[[], None]) -> None:
        """Do this on the event loop beside the commit, in the hope that it is made; `undo` it when it is not."""
        self.early.append(Early(deed, undo))

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

    def tell(self) -> None:
        """Tell who waits what has become of it."""
        if self.done.done():
            return
        if self.error is not None:
            self.done.set_exception(self.error)
        else:
            self.done.set_result(self.result)


Deeds = list[Callable[[], None]]


class Database:
    """One SQLite file. `write` shares commits; `read` and `look` see only what is committed."""

    def __init__(self, path: Path, *, probe: Probe, durable: bool = True) -> None:
        self.path = path
        self._probe = probe
        self._durable = durable
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[_Write] = deque()
        self._at_work = False  # a batch is being written, or about to be
        self._over = asyncio.Event()  # closing, and nothing is left to write
        self._is_open = False
        self._connection: sqlite3.Connection | None = None  # of the writer
        self._faulted = False
        self._errands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
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
        self._connection = self._opened()
        self._loop = asyncio.get_running_loop()
        self._committer = threading.Thread(target=self._run_errands, name="apothic-committer", daemon=True)
        self._committer.start()
        self._is_open = True

    async def close(self) -> None:
        """Finish what waits, then close every connection."""
        if self._is_open:
            self._is_open = False
            if self._at_work:
                await self._over.wait()
            self._errands.put(None)
            await asyncio.to_thread(self._committer.join)
        self._readers.shutdown(wait=True)
        for connection in (*self._reader_connections, self._connection):
            if connection is not None:
                connection.close()
        self._connection = None

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` in a transaction; return its result once that is on disk.

        An exception of `fn` undoes what it did and is raised here. A caller that is cancelled while waiting does not
        undo anything: the write is made or not made as a whole.
        """
        if not self._is_open or self._loop is None:
            raise ServerUnavailableError("the store is closed")
        done: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(_Write(fn, done))
        if not self._at_work:
            self._at_work = True
            self._loop.call_soon(self._turn)  # not at once: what else comes in this round shares the commit
        return await done

    async def read(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` on a read-only connection in a thread, in one snapshot. Raises `StorageFullError` for a bad disk."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, fn)
        except sqlite3.Error as error:
            raise named_error(error) from error

    def look(self, fn: Callable[[Tx], T]) -> T:
        """Do as `read`, here and now: for a few rows, which take less than the way to a thread and back."""
        try:
            return self._read(fn)
        except sqlite3.Error as error:
            raise named_error(error) from error

    def _opened(self) -> sqlite3.Connection:
        """Return the writer's connection to a file that is ready for use."""
        connection: sqlite3.Connection | None = None
        try:
            write_again(self.path.with_name(self.path.name + "-wal"))
            connection = self._connect(BUSY_MS)
            migrate(connection)
            fill_lifecycle(connection)
            connection.execute("PRAGMA busy_timeout = 0")  # the loop shall not wait
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

    def _connect(self, busy_ms: int = 0) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=256)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA busy_timeout = {busy_ms}")
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
            connection = self._connect(BUSY_MS)
            connection.execute("PRAGMA query_only = ON")
            self._local.connection = connection
            self._reader_connections.append(connection)
        try:
            connection.execute("BEGIN")
            return fn(Tx(connection, self._probe))
        finally:
            if connection.in_transaction:  # a fault may have ended it
                connection.execute("COMMIT")

    # --- the writer -----------------------------------------------------------------------------------------------

    def _run_errands(self) -> None:
        while (errand := self._errands.get()) is not None:
            errand()

    def _turn(self) -> None:
        """Write a batch of what waits, and let it be committed."""
        assert self._connection is not None
        if self._faulted:
            self._connection = self._fresh(self._connection)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if _code(error) == sqlite3.SQLITE_BUSY:  # a program of somebody else's writes to the file
                self._errands.put(self._begin_late)
                return
            self._waiting[0].fail(error)
            self._told([self._waiting.popleft()], [])
            return
        self._write_batch()

    def _begin_late(self) -> None:
        assert self._connection is not None and self._loop is not None
        try:
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._loop.call_soon_threadsafe(self._write_batch)
        except sqlite3.Error as error:
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._loop.call_soon_threadsafe(self._fail_all, error)

    def _fail_all(self, error: sqlite3.Error) -> None:
        batch = list(self._waiting)
        self._waiting.clear()
        for write in batch:
            write.fail(error)
        self._told(batch, [])

    def _write_batch(self) -> None:
        """Run what waits, as much as a transaction shall hold, then have it committed."""
        assert self._connection is not None
        connection, batch, early, after = self._connection, list[_Write](), list[Early](), Deeds()
        try:
            rows, queue_changed, fleet_changed = 0, False, False
            while self._waiting and rows < LARGEST_BATCH:
                batch.append(self._waiting.popleft())
                tx = Tx(connection, self._probe)
                self._run_one(connection, batch[-1], tx)
                rows += tx.rows
                if batch[-1].error is None:
                    after += tx.after
                    queue_changed |= tx.queue_changed
                    fleet_changed |= tx.fleet_changed
            if (queue_changed or fleet_changed) and self.last_word is not None:
                tx = self._run_last_word(connection, self.last_word, fleet_changed)
                early, after = tx.early, after + tx.after
        except Exception as error:
            self._undo(batch, error)
            self._told(batch, [])
            return
        for each in early:
            each.deed()
        self._errands.put(lambda: self._commit(batch, early, after))

    def _commit(self, batch: list[_Write], early: list[Early], after: Deeds) -> None:
        assert self._connection is not None and self._loop is not None
        try:
            self._probe.reach("commit.before")
            self._connection.execute("COMMIT")
            self._probe.reach("commit.after")
            self.commits += 1
        except Exception as error:
            self._undo(batch, error)
            after = [each.undo for each in early]
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told, batch, after)

    def _undo(self, batch: list[_Write], error: Exception) -> None:
        assert self._connection is not None
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # it is undone in any case
                self._connection.execute("ROLLBACK")
        for write in batch:
            write.fail(error)

    def _told(self, batch: list[_Write], after: Deeds) -> None:
        """Tell everybody, and go on with what has come meanwhile."""
        self._faulted = any(_faulty(write.cause) for write in batch)
        for deed in after:  # first: a caller may wait for its result, where an agent waits for an acknowledgement
            deed()
        for write in batch:
            write.tell()
        if self._waiting:
            assert self._loop is not None
            self._loop.call_soon(self._turn)
        else:
            self._at_work = False
            self._over.set()

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

    def _run_one(self, connection: sqlite3.Connection, write: _Write, tx: Tx) -> None:
        connection.execute("SAVEPOINT one")
        try:
            write.result = write.fn(tx)
            tx.finish()
        except Exception as error:
            if not connection.in_transaction:  # a full disk undoes the whole transaction by itself
                raise
            connection.execute("ROLLBACK TO one")
            write.fail(error)
        connection.execute("RELEASE one")

    def _run_last_word(
        self, connection: sqlite3.Connection, last_word: Callable[[Tx], None], fleet_changed: bool
    ) -> Tx:
        """Let the dispatcher place what the batch made ready, in the same transaction."""
        tx = Tx(connection, self._probe)
        tx.fleet_changed = fleet_changed
        connection.execute("SAVEPOINT last_word")
        try:
            last_word(tx)
            tx.finish()
        except Exception as error:
            if not connection.in_transaction or _faulty(error):
                raise
            # What was submitted is kept, and placed by a later round: a slip of the dispatcher must not lose it.
            log.exception("dispatch.failed")
            connection.execute("ROLLBACK TO last_word")
            tx = Tx(connection, self._probe)
        connection.execute("RELEASE last_word")
        return tx


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
